"""What happens to a job, as server-sent events."""

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from typing import Any, NamedTuple

import pytest
import requests
from requests_sse import EventSource, InvalidStatusCodeError

from tests.conftest import StartService
from tests.e2e.checks import check_job, check_problem
from tests.e2e.commands import jobrunner
from tests.e2e.test_follow import kill_workers, step, until
from tests.service import Service, eventually


class Event(NamedTuple):
    """One event, its data parsed."""

    name: str
    id: str
    data: dict[str, Any]

    @property
    def content(self) -> bytes:
        """The bytes of an output event."""
        if "base64" in self.data:
            return base64.b64decode(self.data["base64"])
        text: str = self.data["text"]
        return text.encode()


@contextmanager
def listening(
    service: Service, job: dict[str, Any], *, last: str | None = None, url: str | None = None
) -> Iterator[HTTPResponse]:
    """Open the events of a job, with the token, or with a URL that needs none."""
    headers = {} if url else {"Authorization": f"Bearer {service.token}"}
    if last is not None:
        headers["Last-Event-ID"] = last
    with service.stream(url or f"/v1/jobs/{job['id']}/events", headers) as response:
        yield response


def read_events(response: HTTPResponse) -> Iterator[Event]:
    """Parse events as they come."""
    fields: dict[str, str] = {}
    while line := response.readline().decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "event" in fields:
            yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}


def output(events: list[Event], stream: str) -> bytes:
    return b"".join(event.content for event in events if event.name == stream)


def test_all_that_happens_is_told_as_it_happens(service: Service) -> None:
    job = service.submit(command=f"echo öut; echo err >&2; {until('go')}; echo more; exit 3")

    with listening(service, job) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["X-Accel-Buffering"] == "no"
        events = read_events(response)
        seen = [next(events)]
        while output(seen, "stdout") != "öut\n".encode() or output(seen, "stderr") != b"err\n":
            seen.append(next(events))
        step(service, job, "go")
        seen += events

    assert output(seen, "stdout") == "öut\nmore\n".encode()
    assert [event.data["state"] for event in seen if event.name == "state"][-2:] == ["running", "failed"]
    assert [event.name for event in seen].count("end") == 1
    end = seen[-1]
    assert end.name == "end"
    assert check_job(end.data)["exit_code"] == 3
    assert end.data == service.get(f"/v1/jobs/{job['id']}").json()


def test_each_id_resumes_at_the_exact_byte(service: Service) -> None:
    text = "".join(f"{number} äöü€🙂\n" for number in range(3000))
    script = f"import sys; sys.stdout.write({text!r}); sys.stderr.write({text[::-1]!r})"
    job = service.run(argv=["python3", "-c", script])
    with listening(service, job) as response:
        events = list(read_events(response))
    assert len(events) > 4

    for at, event in enumerate(events[:-1]):
        with listening(service, job, last=event.id) as response:
            rest = list(read_events(response))
        for stream, whole in (("stdout", text), ("stderr", text[::-1])):
            assert output(events[: at + 1], stream) + output(rest, stream) == whole.encode()
        assert rest[-1] == events[-1]


def test_after_the_end_there_is_nothing_to_come_back_for(service: Service) -> None:
    job = service.run(command="echo x")
    with listening(service, job) as response:
        *_, end = read_events(response)

    with listening(service, job, last=end.id) as response:
        assert (response.status, response.read()) == (204, b"")


def test_bytes_that_are_no_text_come_exactly(service: Service) -> None:
    data = bytes(range(256)) * 300
    job = service.run(argv=["python3", "-c", "import os; os.write(1, bytes(range(256)) * 300)"])

    with listening(service, job) as response:
        assert output(list(read_events(response)), "stdout") == data


@pytest.mark.parametrize("last", ["x", "1", "1-", "1-2-3", "-1-0", "1-2-END", "9999999999999999999-0"])
def test_an_id_of_somebody_else_is_refused(service: Service, last: str) -> None:
    job = service.run(argv=["true"])

    response = service.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": last})

    assert "Last-Event-ID" in check_problem(response, 422, "invalid-request")["errors"][0]["pointer"]


def test_a_quiet_stream_is_kept_alive(service: Service) -> None:
    job = service.submit(command=until("go"))

    with listening(service, job) as response:
        while response.readline() != b":\n":
            pass
        step(service, job, "go")
        assert list(read_events(response))[-1].name == "end"


# ── without a token ──


def signed(service: Service, job: dict[str, Any]) -> str:
    response = service.post(f"/v1/jobs/{job['id']}/stream-url")
    assert response.status_code == 200, response.text
    url: str = response.json()["url"]
    return url


def test_a_signed_url_needs_no_token(service: Service) -> None:
    job = service.run(command="echo x")

    for reference in (job["id"], job["number"]):
        with listening(service, job, url=signed(service, {"id": reference})) as response:
            assert output(list(read_events(response)), "stdout") == b"x\n"


def test_a_signed_url_is_for_one_job_and_one_thing_only(service: Service) -> None:
    job, other = service.run(argv=["true"]), service.run(argv=["true"])
    url = signed(service, job)
    signature = url.partition("?")[2]

    for path in (
        f"/v1/jobs/{other['id']}/events?{signature}",
        f"/v1/jobs/{job['id']}/stdout?{signature}",
        f"/v1/jobs/{job['id']}?{signature}",
        f"{url}x",
        f"/v1/jobs/{job['id']}/events?signature=",
        f"/v1/jobs/{job['id']}/events",
    ):
        with listening(service, job, url=path) as response:
            assert response.status == 401, path


def test_a_signed_url_is_worthless_when_its_token_was_revoked(start_service: StartService) -> None:
    service = start_service()
    secret = jobrunner(service, "token", "create", "page", "--scope", "admin").stdout.decode().strip()
    job = service.run(argv=["true"])
    headers = {"Authorization": f"Bearer {secret}"}
    url = service.post(f"/v1/jobs/{job['id']}/stream-url", headers=headers).json()["url"]
    with listening(service, job, url=url) as response:
        assert response.status == 200

    jobrunner(service, "token", "revoke", "page")

    def status() -> int:
        with listening(service, job, url=url) as response:
            return response.status

    assert eventually(lambda: status() == 401)


def test_a_client_of_others_goes_on_by_itself_when_the_worker_dies(start_service: StartService) -> None:
    """With a parser that is not ours, and the reconnection that ``retry``, ``id`` and 204 are for."""
    service = start_service({"server": {"workers": 1}})
    job = service.submit(command=f"echo öne; {until('go')}; echo two; exit 3")
    heard = []
    with ExitStack() as opened:
        session = opened.enter_context(requests.Session())
        session.trust_env = False

        def close_later(response: requests.Response, **_: Any) -> None:
            opened.callback(response.close)  # EventSource closes nothing that broke off

        session.hooks["response"].append(close_later)
        with EventSource(service.url + signed(service, job), session=session, timeout=30) as source:
            for event in source:
                heard.append((event.type, json.loads(event.data or "")))
                if heard[-1] == ("stdout", {"offset": 0, "text": "öne\n"}):
                    kill_workers(service)
                    step(service, job, "go")
                if event.type == "end":
                    break
            with pytest.raises(InvalidStatusCodeError) as refused:
                next(source)

    assert refused.value.status_code == 204
    assert [data["text"] for name, data in heard if name == "stdout"] == ["öne\n", "two\n"]
    assert (heard[-1][0], heard[-1][1]["exit_code"]) == ("end", 3)
