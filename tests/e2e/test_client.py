"""The client for Python, against a running service and against whatever else may answer."""

import doctest
import io
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from itertools import pairwise

import pytest

import jobrunner.client
from jobrunner.client import Client, Ended, Moved, NeverSent, Output, Patience, ServiceError, event_id
from jobrunner.domain.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    JobNotFound,
    NotFound,
    TooBusy,
    Unauthenticated,
    Unreachable,
)
from jobrunner.domain.streams import Stream
from tests.e2e.checks import check_job
from tests.e2e.commands import Listener, answering, http, never_answering, read_request
from tests.e2e.test_follow import step, until
from tests.service import ROOT, Service, clean_environment, eventually, free_port


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url + "/", service.token) as opened:
        yield opened


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that are loaded after a statement in a fresh Python."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True
    )
    return set(ended.stdout.split())


def test_whoever_uses_the_client_loads_nothing_of_the_service() -> None:
    server = {"flask", "werkzeug", "sqlalchemy", "alembic", "pydantic", "gunicorn", "sqlite3"}

    assert not loaded_by("import jobrunner.client") & (server | {"click", "rich"})
    for module in ("run", "output", "submission", "control"):
        assert not loaded_by(f"import jobrunner.cli.{module}") & (server | {"rich"})


def test_the_example_works_as_it_is_written(service: Service) -> None:
    documented = (jobrunner.client.__doc__ or "").partition("\n\n")[2].partition("\n\nDocuments")[0]
    example = textwrap.dedent(documented).replace("http://127.0.0.1:8080", service.url)
    example = example.replace('["make", "all"]', '["echo", "made"]').replace(
        "sys.stdout.buffer.write", "written.append"
    )
    written: list[bytes] = []

    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(example, "example", "exec"), {"token": service.token, "written": written})

    assert (b"".join(written), printed.getvalue()) == (b"made\n", "0\n")
    assert not doctest.DocTestParser().get_examples(documented)  # nothing in it claims to be checked elsewhere


def test_a_job_is_submitted_waited_for_and_looked_up(client: Client) -> None:
    job = check_job(client.submit({"argv": ["sh", "-c", "echo out; exit 3"]}, wait=30))

    assert (job["exit_code"], job["stdout"]["text"]) == (3, "out\n")
    assert check_job(client.get(job["id"])) == check_job(client.get(str(job["number"])))
    assert client.get(job["id"], output=True)["stdout"]["text"] == "out\n"
    assert check_job(client.rerun(job["id"], wait=30))["exit_code"] == 3
    assert client.plan({"argv": ["true"]})["argv"] == ["true"]
    assert client.stats()["slots"] > 0
    assert isinstance(client.scripts(), list)


def test_a_key_makes_a_repeat_harmless(client: Client) -> None:
    first, second = (client.submit({"argv": ["true"]}, idempotency_key="client once") for _ in range(2))
    again = {client.rerun(first["id"], idempotency_key="client again")["id"] for _ in range(2)}

    assert first["id"] == second["id"]
    assert len(again | {first["id"]}) == 2


def test_who_is_patient_needs_no_key_of_his_own(service: Service) -> None:
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(read_request(connection)[0])
        if len(heads) == 3:
            connection.sendall(http("202 Accepted", '{"id": "1"}'))

    with Listener(serve) as forgetful, Client(f"http://127.0.0.1:{forgetful.port}", "token") as client:
        assert client.submit({"argv": ["true"]}, patience=Patience(30)) == {"id": "1"}

    keys = [line for head in heads for line in head.split(b"\r\n") if line.startswith(b"Idempotency-Key: ")]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_waiting_is_cut_but_not_short(client: Client, service: Service) -> None:
    job = client.submit({"command": until("go")}, wait=0.2)

    assert job["state"] in {"queued", "running"}
    assert client.get(job["id"], wait=0.2)["state"] == "running"
    step(service, job, "go")
    assert client.get(job["id"], wait=30)["state"] == "succeeded"


def test_a_job_is_signalled_canceled_and_deleted(client: Client) -> None:
    job = client.submit({"argv": ["sh", "-c", "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done"]})
    with closing(client.follow(job["id"])) as events:
        written = (event.data for event in events if isinstance(event, Output))
        assert next(written) == b"ready\n"
        client.signal(job["id"], "SIGUSR1")
        assert next(written) == b"usr1\n"
        with pytest.raises(Conflict):
            client.delete(job["id"])
        assert client.cancel(job["id"], signal="SIGINT", grace=0)["cancel"]["by"] == "admin"
    assert client.get(job["id"], wait=30)["state"] == "canceled"
    client.delete(job["id"])
    with pytest.raises(JobNotFound):
        client.get(job["id"])
    running = client.submit({"argv": ["sleep", "60"]})
    client.delete(running["id"], force=True)
    with pytest.raises(JobNotFound):
        client.get(running["id"])


def test_a_list_is_as_long_as_was_asked_for(client: Client) -> None:
    for _ in range(3):
        client.submit({"argv": ["true"], "name": "client list"})

    assert len(client.list({"name": "client list"})) == 3
    assert len(client.list({"name": "client list", "limit": 2})) == 2
    assert len(client.list({"name": "client list", "limit": 2000})) == 3  # more than one page can have
    assert client.list()[0]["number"] >= 3


def test_output_is_read_and_followed(client: Client, service: Service) -> None:
    job = client.submit({"command": f"printf 0123456789; printf err >&2; {until('go')}; printf abc"})
    assert eventually(lambda: b"".join(client.output(job["id"])) == b"0123456789")

    assert b"".join(client.output(job["id"], "stderr")) == b"err"
    assert b"".join(client.output(job["id"], tail=3)) == b"789"
    followed = client.output(job["id"], follow=True, offset=8)
    assert next(followed) == b"89"
    step(service, job, "go")
    assert b"".join(followed) == b"abc"


def test_what_a_job_has_in_its_directory_is_listed_and_read(client: Client) -> None:
    """Under its exact name, which need not be text."""
    script = "mkdir 'a b'; printf one > 'a b/%41?#'; head -c 300000 /dev/zero > \"$(printf '\\377')\""
    job = client.submit({"command": script}, wait=30)

    found = {entry["path"]: entry for entry in client.files(job["id"])["files"]}

    assert b"".join(client.download(found["a b/%41?#"]["href"])) == b"one"
    assert b"".join(client.download(found["\ufffd"]["href"])) == bytes(300_000)
    with pytest.raises(NotFound, match="file"):
        list(client.download(found["\ufffd"]["href"] + "x"))


def test_events_go_on_behind_any_of_them(client: Client) -> None:
    job = client.submit({"command": "echo out; echo err >&2; exit 3"}, wait=30)

    events = list(client.events(job["id"]))

    assert [type(event) for event in events] == [Moved, Output, Output, Ended]
    for before, event in pairwise(events):
        first = next(found for found in client.events(job["id"], before.id) if not isinstance(found, Moved))
        assert first == event
    end = events[-1]
    assert isinstance(end, Ended)
    assert check_job(end.job) == client.get(job["id"])
    assert list(client.events(job["id"], end.id)) == []
    assert list(client.follow(job["id"], end.id)) == []
    later = list(client.events(job["id"], event_id(stdout=2, stderr=10**18 - 1)))
    assert [(event.stream, event.data) for event in later if isinstance(event, Output)] == [(Stream.STDOUT, b"t\n")]


def test_whether_an_end_was_told_is_listed_and_told_again(client: Client) -> None:
    with answering(http("204 No Content")) as receiver:
        url = f"http://127.0.0.1:{receiver.port}/ended"
        job = client.submit({"argv": ["true"], "callback_url": url}, wait=30)

        def attempts() -> int:
            (callback,) = client.callbacks(job["id"])
            assert callback["url"] == url
            return len([attempt for attempt in callback["attempts"] if attempt["status"] == 204])

        assert eventually(lambda: attempts() == 1)
        assert len(client.retry_callbacks(job["id"])) == 1
        assert eventually(lambda: attempts() == 2)
    assert client.callbacks(client.submit({"argv": ["true"]})["id"]) == []


def test_a_stream_url_needs_no_token(client: Client, service: Service) -> None:
    job = client.submit({"argv": ["true"]}, wait=30)

    document = client.stream_url(job["id"])

    assert document["url"].startswith(f"{service.url}/v1/jobs/{job['id']}/events?")
    assert document["expires_at"]


# ── refusals ──


def test_what_the_service_refuses_is_raised_by_its_kind(client: Client, service: Service) -> None:
    with pytest.raises(InvalidRequest) as refused:
        client.submit({"argv": ["true"], "env": {"": "x"}, "name": "\n"})
    assert {problem.pointer for problem in refused.value.problems} == {"#/env/", "#/name"}
    with pytest.raises(NotFound):
        client.get("../healthz")
    with pytest.raises(JobNotFound):
        list(client.follow("999999"))
    with Client(service.url, "wrong") as stranger, pytest.raises(Unauthenticated):
        stranger.list()


def test_a_follower_that_is_left_gives_its_seat_back(client: Client, service: Service) -> None:
    job = client.submit({"command": f"echo x; {until('go')}"})

    with closing(client.follow(job["id"])) as events:
        assert any(isinstance(event, Output) for event in events if not isinstance(event, Moved))

    step(service, job, "go")
    assert client.get(job["id"], wait=30)["state"] == "succeeded"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (http("503 Unavailable", '{"detail": "full"}', Retry_After="7"), TooBusy),
        (http("503 Unavailable", "<html>", Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"), TooBusy),
        (http("403 Forbidden", '{"detail": "no"}'), Forbidden),
        (http("413 Too Large", "<html>"), Forbidden),
        (http("422 Unprocessable", '{"detail": "no"}'), ServiceError),
        (http("502 Bad Gateway", "<html>"), ServiceError),
        (http("302 Found", Location="/elsewhere"), ServiceError),
        (http("200 OK", '{"id": 1}').removesuffix(b"}"), Unreachable),
        (http("200 OK", "nothing of ours"), ServiceError),
        (b"", Unreachable),
        (b"HTTP/1.1 200", Unreachable),
    ],
)
def test_an_answer_that_is_none_is_told_from_one(answer: bytes, error: type[Exception]) -> None:
    with (
        answering(answer) as somebody,
        Client(f"http://127.0.0.1:{somebody.port}", "token") as client,
        pytest.raises(error) as raised,
    ):
        client.submit({"argv": ["true"]})
    assert type(raised.value) is error  # not one that tells nothing has come of it
    if isinstance(raised.value, TooBusy):
        assert raised.value.retry_after in {1, 7}


def test_a_service_that_does_not_answer_in_time_may_have_heard() -> None:
    with (
        never_answering() as silent,
        Client(f"http://127.0.0.1:{silent.port}", "token", timeout=0.3) as client,
        pytest.raises(Unreachable) as raised,
    ):
        client.submit({"argv": ["true"]})
    assert not isinstance(raised.value, NeverSent)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://no.such.host.invalid"])
def test_nothing_has_come_of_what_was_never_sent(url: str) -> None:
    with Client(url.format(port=free_port()), "token") as client:
        for patience in (None, Patience(60)):
            with pytest.raises(NeverSent):
                client.submit({"argv": ["true"]}, patience=patience)
        with pytest.raises(NeverSent):
            list(client.follow("1"))


def test_a_redirect_is_not_followed() -> None:
    """It would make a look-up of a submission, and tell the token to whomever it names."""
    with answering(http("200 OK", "{}")) as elsewhere:
        moved = http("307 Temporary Redirect", Location=f"http://127.0.0.1:{elsewhere.port}/")
        with (
            answering(moved) as somebody,
            Client(f"http://127.0.0.1:{somebody.port}", "token") as client,
            pytest.raises(ServiceError, match="redirects"),
        ):
            client.submit({"argv": ["true"]})
        assert elsewhere.connections == 0


@pytest.mark.parametrize("path", ["", "/stdout", "/stdout?follow=true"])
def test_an_answer_is_never_taken_for_whole_when_it_was_cut(client: Client, service: Service, path: str) -> None:
    """At whatever byte: Python's own library makes nothing of a head that breaks off."""
    job = client.submit({"argv": ["echo", "out"]}, wait=30)
    answer = ask_raw(service, f"/v1/jobs/{job['id']}{path}")
    cut = [answer[:length] for length in range(len(answer))]

    with answering(*cut, then=answer) as somebody, Client(f"http://127.0.0.1:{somebody.port}", "token") as other:

        def ask() -> object:
            return b"".join(other.output("1", follow="follow" in path)) if path else other.get("1")

        whole = b"out\n" if path else client.get(job["id"])
        broken = 0
        for _ in cut:
            try:
                assert ask() == whole
            except Unreachable:
                broken += 1
        assert ask() == whole
    # Of chunks the last one may do without its line end.
    assert broken >= len(cut) - len("\r\n\r\n")


def ask_raw(service: Service, path: str) -> bytes:
    """Return an answer as it comes over the wire."""
    head = ["Host: localhost", "Connection: close", f"Authorization: Bearer {service.token}", "", ""]
    request = "\r\n".join([f"GET {path} HTTP/1.1", *head])
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(request.encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_events_that_break_off_are_not_the_end() -> None:
    chunk = b"event: state\nid: 0-0\ndata: {}\n\n"
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(chunk), chunk)
    nothing = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"

    for answer, number in ((whole, 1), (nothing, 0)):
        with answering(answer) as somebody, Client(f"http://127.0.0.1:{somebody.port}", "token") as client:
            events = client.events("1")
            assert [next(events) for _ in range(number)] == [Moved("0-0", {})] * number
            with pytest.raises(Unreachable):
                next(events)
