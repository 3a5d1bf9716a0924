"""The log tells who did what, from where, by which rule; and nothing that would let its readers in."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from jobrunner.drain import Drain
from tests.e2e.checks import check_problem, send_raw
from tests.e2e.commands import jobrunner
from tests.e2e.test_authorization import make_token
from tests.service import Service, eventually

SECRET = "correct-horse-battery"
INJECTED = "x\n2026-01-31T12:00:00.123Z INFO jobrunner.audit action=token-create result=accepted\x1b[2J\u2028\x9b"


@dataclass
class Used:
    """A service after everything that can be done with it was done; what happened, and what must not be told."""

    service: Service
    style: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)

    def audits(self, action: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["action"] == action]

    def audit(self, action: str, **wanted: Any) -> dict[str, Any]:
        (found,) = [line for line in self.audits(action) if wanted.items() <= line.items()]
        return found


@pytest.fixture(scope="module", params=["json", "text"])
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Used:
    """One service for each form of the log."""
    settings = {
        "logging": {"format": request.param, "level": "debug"},
        "callbacks": {"schedule": "0, 1h"},
    }
    service = Service(tmp_path_factory.mktemp("audit") / "data", settings).start()
    one = Used(service, request.param)
    try:
        use_everything(one)
    finally:
        assert service.stop() == 0
    one.lines = list(read_audit(one))
    return one


def use_everything(used: Used) -> None:
    service = used.service
    used.secrets |= {SECRET, service.token}
    env = {"API_TOKEN": SECRET, "PLAIN": "plain-value"}
    used.secrets.add("plain-value")  # no value is told, but in the command line those that are no secret

    job = service.submit(argv=["echo", f"--token={SECRET}", INJECTED], env=env)
    service.wait(job["id"])
    absent = service.run(argv=[f"/nowhere/{SECRET}"], env=env)
    assert absent["error"]["code"] == "not-found"
    again = service.post(f"/v1/jobs/{job['id']}/rerun", headers={"Idempotency-Key": "k"}).json()
    assert service.post(f"/v1/jobs/{job['id']}/rerun", headers={"Idempotency-Key": "k"}).json()["id"] == again["id"]
    sleeper = service.submit(argv=["sleep", "300"], name="sleeps", exclusive=True)
    assert eventually(lambda: service.get(f"/v1/jobs/{sleeper['id']}").json()["state"] == "running")
    service.post(f"/v1/jobs/{sleeper['id']}/signal", {"signal": "SIGCONT"})
    check_problem(service.post("/v1/jobs", {"argv": ["true"], "name": "sleeps", "exclusive": True}), 409)
    use_streams(used, sleeper)
    drain = Drain(service.data_dir / "run" / "draining")
    drain.begin()
    check_problem(service.post("/v1/jobs", {"argv": ["true"]}), 503, "draining")
    check_problem(service.get("/readyz"), 503, "not-ready")
    drain.end()
    service.post(f"/v1/jobs/{sleeper['id']}/cancel", {"grace": 0, "signal": "INT"})
    service.wait(sleeper["id"])
    told = service.run(argv=["true"], callback_url=f"http://127.0.0.1:1/?key={SECRET}", env=env)
    assert service.post(f"/v1/jobs/{told['id']}/callbacks/retry").status_code == 202
    assert service.request("DELETE", f"/v1/jobs/{absent['id']}").status_code == 204
    used.jobs = {"first": job, "absent": absent, "again": again, "sleeper": sleeper, "told": told}
    use_tokens(used)
    use_it_wrongly(used)


def use_streams(used: Used, job: dict[str, Any]) -> None:
    service = used.service
    for _ in range(2):
        url = service.post(f"/v1/jobs/{job['id']}/stream-url").json()["url"]
        (signature,) = parse_qs(urlsplit(url).query)["signature"]
        used.secrets.add(signature)
        with service.stream(url, {}) as stream:
            assert stream.status == 200
            assert stream.read1(10)
    check_problem(requests.get(f"{service.url}{url}x", timeout=30), 401)


def use_tokens(used: Used) -> None:
    service = used.service
    done = jobrunner(service, "token", "create", "hook", "--scope", "read", "--scripts", "a*")
    token = done.stdout.decode().strip()
    used.secrets.add(token)
    with service.log.open("a") as log:  # the operator's terminal is a log of this, too
        log.write(done.stderr.decode())
        for headers in (
            {"Authorization": f"Bearer {token}"},
            {"Authorization": "Basic " + base64.b64encode(f"me:{token}".encode()).decode()},
        ):
            response = requests.post(f"{service.url}/v1/jobs", json={"argv": ["true"]}, headers=headers, timeout=30)
            check_problem(response, 403)
        used.secrets.add(base64.b64encode(f"me:{token}".encode()).decode())
        log.write(jobrunner(service, "token", "revoke", "hook").stderr.decode())


def use_it_wrongly(used: Used) -> None:
    service = used.service
    known = f"Authorization: Bearer {service.token}"
    check_problem(
        requests.get(f"{service.url}/v1/jobs", headers={"Authorization": f"Bearer x{SECRET}"}, timeout=30), 401
    )
    check_problem(service.get("/v1/jobs", headers={"Host": f"{SECRET}.example"}), 421)
    check_problem(service.post("/v1/jobs", {}, headers={"Origin": "http://evil.example"}), 403)
    check_problem(service.post("/v1/jobs", {"script": INJECTED}), 422)
    check_problem(service.post("/v1/jobs", {"argv": ["true"], "env": {"A_TOKEN=": SECRET}}), 422)
    reader = make_token(service, "reader", "read")
    used.secrets.add(reader)
    mine = {"Authorization": f"Bearer {reader}"}
    job = used.jobs["sleeper"]["id"]
    check_problem(requests.post(f"{service.url}/v1/jobs/{job}/cancel", headers=mine, timeout=30), 403)
    signature = max(used.secrets, key=len)
    for request in (
        f"GET /v1/jobs/1/events?signature={signature} HTTP/1.1 x\r\n\r\n",
        f"GET / HTTP/1.1\r\n{known.replace(':', '')}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{known}\r\n folded {service.token}\r\n\r\n",
        f"{SECRET} /?{SECRET} HTTP/1.1\r\n\r\n",
        (
            f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n{known}\r\nContent-Type: application/json\r\n"
            f"Transfer-Encoding: chunked\r\n\r\n{SECRET}\r\n"
        ),
        (
            f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n{known}\r\nContent-Type: application/json\r\n"
            f'Content-Length: 2\r\n\r\n{{}}{{"env": {{"A": "{SECRET}"}}}}\r\n\r\n'
        ),
    ):
        with suppress(HTTPException, OSError):
            send_raw(service, request.encode())


def read_audit(used: Used) -> Iterator[dict[str, Any]]:
    for line in used.service.log.read_text().split("\n"):
        if used.style == "json" and line.startswith("{") and json.loads(line)["logger"] == "jobrunner.audit":
            yield json.loads(line)
        elif used.style == "text" and " jobrunner.audit " in line:
            yield parse_text(line)


def parse_text(line: str) -> dict[str, Any]:
    """Take a line of text apart: words, or JSON."""
    head, _, rest = line.partition(" jobrunner.audit ")
    assert re.fullmatch(r"\S+Z (INFO|WARNING)", head), line
    found: dict[str, Any] = {"level": head.split()[1].lower()}
    if about := re.match(r"\[job (\d+)\] ", rest):
        found["job"] = int(about[1])
        rest = rest[about.end() :]
    decoder = json.JSONDecoder()
    rest = rest.replace(r"\x", r"\u00")
    while rest:
        key, _, rest = rest.partition("=")
        if rest[0] in '"[{':
            found[key], end = decoder.raw_decode(rest)
            rest = rest[end + 1 :]
            continue
        word, _, rest = rest.partition(" ")
        try:
            found[key] = json.loads(word)
        except ValueError:
            found[key] = word
    return found


def test_nothing_that_lets_its_readers_in_is_in_the_log(used: Used) -> None:
    log = used.service.log.read_text()

    assert "***" in log
    assert {secret for secret in used.secrets if secret in log} == set()
    assert "Traceback" not in log


def test_nobody_writes_lines_of_their_own_into_the_log(used: Used) -> None:
    log = used.service.log.read_text()

    assert "2026-01-31" in log  # it was told
    for line in log.split("\n"):
        assert line.isprintable(), line
        assert not line.startswith("2026-01-31")


def test_a_submission_is_told(used: Used) -> None:
    job = used.jobs["first"]
    line = used.audit("submit", id=job["id"])

    assert line["job"] == job["number"]
    assert (line["by"], line["from"], line["owner"]) == ("admin", "127.0.0.1", "admin")
    assert (line["route"], line["result"], line["kind"]) == ("POST /v1/jobs", "accepted", "argv")
    assert line["argv"][:2] == ["echo", "--token=***"]
    assert line["env"] == ["API_TOKEN", "PLAIN"]
    assert line["rule"]


def test_a_repetition_is_told_and_one_that_started_nothing_as_such(used: Used) -> None:
    lines = [line for line in used.audits("rerun") if line["id"] == used.jobs["again"]["id"]]

    assert [line["result"] for line in lines] == ["accepted", "repeated"]
    assert lines[0]["argv"][1] == "--token=***"


def test_what_is_done_with_a_job_is_told_once(used: Used) -> None:
    told = {
        (action, name)
        for action in ("signal", "cancel", "delete", "callback-retry", "stream-url")
        for line in used.audits(action)
        for name, job in used.jobs.items()
        if line["id"] == job["id"] and line["job"] == job["number"] and line["by"] == "admin"
    }

    assert told == {
        ("signal", "sleeper"),
        ("cancel", "sleeper"),
        ("delete", "absent"),
        ("callback-retry", "told"),
        ("stream-url", "sleeper"),
    }
    assert used.audit("signal")["signal"] == "SIGCONT"
    assert (used.audit("cancel")["signal"], used.audit("cancel")["grace"]) == ("SIGINT", 0)
    assert len(used.audits("stream-url")) == 2


def test_tokens_that_are_made_and_revoked_are_told(used: Used) -> None:
    first, hook = used.audits("token-create")
    gone = used.audit("token-revoke")

    assert (first["by"], first["token"], first["scopes"]) == ("service", "admin", ["admin"])
    assert (hook["by"], hook["token"], hook["scopes"], hook["scripts"]) == ("local", "hook", ["read"], ["a*"])
    assert hook["commands"] == ["*"]
    assert hook["from"].startswith("uid:")
    assert (gone["by"], gone["token"]) == ("local", "hook")


def test_each_refusal_is_told_with_who_and_why(used: Used) -> None:
    refusals = [
        (line["status"], line["rule"], line["by"], line["route"])
        for line in used.audits("request")
        if (line["level"], line["result"], line["from"]) == ("warning", "refused", "127.0.0.1")
    ]

    submit = "POST /v1/jobs"
    assert refusals == [
        (409, "name-in-use", "admin", submit),
        (401, "unauthorized", None, "GET /v1/jobs/<job_id>/events"),
        (503, "draining", "admin", submit),
        (403, "forbidden", "hook", submit),
        (403, "forbidden", "hook", submit),
        (401, "unauthorized", None, "GET /v1/jobs"),
        (421, "misdirected-request", None, "GET /v1/jobs"),
        (403, "foreign-origin", None, submit),
        (422, "invalid-request", "admin", submit),
        (422, "invalid-request", "admin", submit),
        (403, "forbidden", "reader", "POST /v1/jobs/<job_id>/cancel"),
        *refusals[11:],
    ]
    assert all(route == submit for *_, route in refusals[11:])
    assert used.audit("request", by="reader")["asked_job"] == used.jobs["sleeper"]["id"]


def test_a_program_that_is_not_there_is_told_without_secrets(used: Used) -> None:
    assert "/nowhere/***" in used.service.log.read_text()


def test_what_the_service_can_not_do_now_is_told_but_not_what_probes_hear(used: Used) -> None:
    line = used.audit("request", status=503)

    assert (line["rule"], line["by"], line["route"]) == ("draining", "admin", "POST /v1/jobs")
