"""rtot, held against what the original answers, byte for byte."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jobrunner
from tests.conftest import StartService
from tests.e2e.dialects.conversation import Answer, Asking, doors, speaking
from tests.factories import is_dead
from tests.service import Service, eventually, free_port

PLAIN, JSON = "text/plain; charset=utf-8", "application/json; charset=UTF-8"
SECRET = "s3cret with blanks"
AUTH = f"rtot {SECRET}"
NOT_FOUND = (404, PLAIN, b"404 page not found\n")
NOT_AUTHORIZED = (401, PLAIN, b"Not Authorized\n")
NO_JOB = (404, JSON, b'{"error":"no such job"}')
INVALID = rb'{"error":"invalid job number","message":"what is \"%s\"?"}'
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{0,8}[1-9])? \+0000 UTC"
ZERO = "0001-01-01 00:00:00 +0000 UTC"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with speaking(tmp_path_factory.mktemp("rtot"), "rtot", {"secret": SECRET}) as running:
        yield running


@pytest.fixture(params=["port", "prefix"])
def ask(service: Service, request: pytest.FixtureRequest) -> Asking:
    """A client, at either door."""
    port, prefix = doors(service, "rtot", Authorization=AUTH)
    return port if request.param == "port" else prefix


@pytest.fixture
def at_port(service: Service) -> Asking:
    """A client at the dialect's own port."""
    return doors(service, "rtot", Authorization=AUTH)[0]


def only(answer: Answer) -> dict[str, Any]:
    """Return the one job of an answer, which must be compact JSON."""
    document = json.loads(answer.body)
    assert document.keys() == {"jobs"}
    (job,) = document["jobs"]
    assert answer.headers["content-type"] == JSON
    assert isinstance(job, dict)
    return job


def run(ask: Asking, script: str | bytes) -> dict[str, Any]:
    """Run a script; return its job, complete."""
    number = only(ask("POST", "/jobs", script))["id"]
    assert eventually(lambda: ask("GET", f"/jobs/{number}?fields=").status == 200, within=60)
    return only(ask("GET", f"/jobs/{number}"))


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", (200, JSON, b'{"links":{"jobs":"/jobs{?state}","jobs.by_id":"/jobs/{jobs.id}","ping":"/ping"}}')),
        ("GET", "/jobs/99999", (404, JSON, b'{"jobs":[]}')),
        ("GET", "/jobs/-1", (404, JSON, b'{"jobs":[]}')),
        ("GET", "/jobs/99999/", (404, JSON, b'{"jobs":[]}')),
        ("GET", "/jobs/abc", (400, JSON, INVALID % b"abc")),
        ("DELETE", "/jobs/abc", (400, JSON, INVALID % b"abc")),
        ("GET", "/jobs/0x1", (400, JSON, INVALID % b"0x1")),
        ("GET", "/jobs/a%22%3Cb%3E%09", (400, JSON, INVALID % rb'a\\\"\u003cb\u003e\\t')),
        (
            "GET",
            "/jobs/9223372036854775808",
            (400, JSON, INVALID % b"9223372036854775808"),
        ),
        ("GET", "/jobs/%D9%A1", (400, JSON, INVALID % b"\xd9\xa1")),
        ("DELETE", "/jobs/99999", NO_JOB),
        ("DELETE", "/jobs/9223372036854775807", NO_JOB),
        ("GET", "/jobs?state=odd", (200, JSON, b'{"jobs":[]}')),
        ("DELETE", "/jobs?state=odd", (204, JSON, b"")),
        ("GET", "/absent", NOT_FOUND),
        ("GET", "/jobs/1/absent", NOT_FOUND),
        ("GET", "//ping", NOT_FOUND),
        ("GET", "//jobs", NOT_FOUND),
        ("GET", "/jobs//", NOT_FOUND),
        ("GET", "/v1/jobs", NOT_FOUND),
        ("GET", "/healthz", NOT_FOUND),
        ("PUT", "/jobs", NOT_FOUND),
        ("PATCH", "/jobs/1", NOT_FOUND),
        ("POST", "/", NOT_FOUND),
        ("POST", "/ping", NOT_FOUND),
        ("OPTIONS", "/jobs", NOT_FOUND),
        ("HEAD", "/", (200, JSON, b"")),
        ("HEAD", "/jobs", (200, JSON, b"")),
        ("HEAD", "/jobs/99999", (404, JSON, b"")),
        ("HEAD", "/ping", (200, JSON, b"")),
        ("HEAD", "/absent", (404, PLAIN, b"")),
    ],
)  # fmt: skip
def test_each_request_has_its_answer(ask: Asking, method: str, path: str, expected: tuple[int, str, bytes]) -> None:
    answer = ask(method, path)

    assert (answer.status, answer.headers["content-type"], answer.body) == expected
    assert answer.headers["rtot-version"] == jobrunner.__version__


@pytest.mark.parametrize(
    "given", [None, "", SECRET, "rtot", "rtot ", f"Bearer {SECRET}", f"RTOT {SECRET}", f"{AUTH}x", "rtot \xff"]
)
def test_without_the_secret_nothing_is_told(ask: Asking, given: str | None) -> None:
    routes = (
        "GET /, GET /jobs, POST /jobs, DELETE /jobs, DELETE /, GET /jobs/0, DELETE /jobs/0, GET /absent, GET /ping/"
    )
    for method, path in (route.split() for route in [*routes.split(", "), "POST /ping", "GET //ping"]):
        answer = ask(method, path, Authorization=given)

        assert (answer.status, answer.headers["content-type"], answer.body) == NOT_AUTHORIZED, (method, path)
        assert "rtot-version" not in answer.headers


def test_to_head_a_ping_takes_the_secret(ask: Asking) -> None:
    answer = ask("HEAD", "/ping", Authorization=None)

    assert (answer.status, answer.body) == (401, b"")


def test_a_token_of_the_service_is_not_the_secret(service: Service, ask: Asking) -> None:
    for kind in ("Bearer", "rtot"):
        assert ask("GET", "/jobs", Authorization=f"{kind} {service.token}").status == 401


def test_a_ping_takes_nothing(ask: Asking) -> None:
    answer = ask("GET", "/ping", Authorization=None)

    assert answer.status == 200
    assert re.fullmatch(
        r'\{"ping":\[\{"message":"still here","uptime":"(\d+h)?(\d+m)?\d+(\.\d*[1-9])?(s|ms|µs)"\}\]\}', answer.text
    )
    assert answer.headers["rtot-version"] == jobrunner.__version__


def test_a_script_is_run(ask: Asking, service: Service) -> None:
    made = ask("POST", "/jobs", "echo out; echo err >&2; exit 3", Content_Type="application/x-www-form-urlencoded")

    assert made.status == 201
    job = only(made)
    number = job["id"]
    assert list(job) == ["id", "state", "start", "complete", "create", "filename", "href"]
    assert (job["state"], job["start"], job["complete"]) == ("new", ZERO, ZERO)
    assert re.fullmatch(TIME, job["create"])
    assert eventually(lambda: ask("GET", f"/jobs/{number}").status == 200, within=60)
    answer = ask("GET", f"/jobs/{number}")
    done = only(answer)
    assert list(done) == [
        "id", "out", "err", "state", "exit", "start", "complete", "create", "filename", "href",
    ]  # fmt: skip
    assert {name: done[name] for name in ("id", "out", "err", "state", "exit", "href", "create", "filename")} == {
        **{name: job[name] for name in ("id", "create", "filename")},
        "out": "out\n",
        "err": "err\n",
        "state": "complete",
        "exit": "exit status 3",
        "href": f"{ask.prefix}/jobs/{number}",
    }
    assert answer.headers["location"] == f"{ask.prefix}/jobs/{number}"
    for name in ("start", "complete"):
        assert re.fullmatch(TIME, done[name])
    assert json.dumps(done, separators=(",", ":")) in answer.text
    script = Path(done["filename"])
    assert script.read_text() == "#!/bin/bash\necho out; echo err >&2; exit 3"
    assert script.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("", {}),
        ("true", {}),
        ("exit 255", {"exit": "exit status 255"}),
        ("kill -9 $$", {"exit": "signal: killed"}),
        ("kill -TERM $$", {"exit": "signal: terminated"}),
        ("kill -SEGV $$", {"exit": "signal: segmentation fault"}),
        ("[[ a == a ]] && echo $BASH", {"out": "/bin/bash\n"}),
        ("#!/bin/sh\necho $0", {"out": "{filename}\n"}),
        ("#!/usr/bin/python3\nprint('<&>')", {"out": "<&>\n"}),
        ("#!/no/such/interpreter\n", {"exit": "fork/exec {filename}: no such file or directory"}),
        (b"printf 'a\\xffb\\xe2\\x82c'", {"out": "a\ufffdb\ufffd\ufffdc"}),
        (b"printf '\\xc3\\xa9' >&2 # \xff\xfe", {"err": "é"}),
        ("printf 'a\\0b'", {"out": "a\0b"}),
    ],
)
def test_how_a_script_ends_is_told(at_port: Asking, script: str | bytes, expected: dict[str, str]) -> None:
    job = run(at_port, script)

    told = {name: job[name] for name in ("out", "err", "exit") if name in job}
    assert told == {name: text.replace("{filename}", job["filename"]) for name, text in expected.items()}
    assert job["state"] == "complete"


def test_json_is_escaped_as_go_escapes_it(at_port: Asking) -> None:
    number = run(at_port, r"printf '<\u2028&\u00e9>'")["id"]

    assert r'"out":"\u003c\u2028\u0026é\u003e"' in at_port("GET", f"/jobs/{number}").text


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", {"out", "err", "exit", "create", "start", "complete", "filename"}),
        ("?fields=", {"exit"}),
        ("?fields=out", {"exit", "out"}),
        ("?fields=out,err", {"exit", "out", "err"}),
        ("?fields=create,start,complete,filename", {"exit", "create", "start", "complete", "filename"}),
        ("?fields=odd,%20out", {"exit"}),
        ("?fields=out&fields=err", {"exit", "out"}),
    ],
)
def test_fields_are_chosen(at_port: Asking, query: str, names: set[str]) -> None:
    number = run(at_port, "echo out; echo err >&2; exit 1")["id"]

    for answer in (at_port("GET", f"/jobs/{number}{query}"), at_port("GET", f"/jobs{query}")):
        (job,) = (job for job in json.loads(answer.body)["jobs"] if job["id"] == number)
        assert job.keys() == {"id", "state", "href", *names}
    assert only(at_port("POST", f"/jobs{query}", "true")).keys() == {
        "id", "state", "href", *names - {"exit", "out", "err"},
    }  # fmt: skip


def test_a_running_job_is_202_and_shows_what_it_has_written(at_port: Asking) -> None:
    number = only(at_port("POST", "/jobs", "echo begun; exec sleep 60"))["id"]

    assert eventually(lambda: only(at_port("GET", f"/jobs/{number}")).get("out") == "begun\n", within=60)
    answer = at_port("GET", f"/jobs/{number}")
    job = only(answer)
    assert (answer.status, job["state"], job["complete"]) == (202, "running", ZERO)
    assert "exit" not in job
    states = {
        state: json.loads(at_port("GET", f"/jobs?state={state}").body)["jobs"] for state in ("running", "complete")
    }
    assert number in {job["id"] for job in states["running"]}
    assert number not in {job["id"] for job in states["complete"]}
    assert at_port("DELETE", f"/jobs/{number}").status == 204


def test_to_delete_a_running_job_kills_it(at_port: Asking, service: Service) -> None:
    number = only(at_port("POST", "/jobs", "trap '' TERM; echo $$; while :; do sleep 60; done"))["id"]
    assert eventually(lambda: only(at_port("GET", f"/jobs/{number}")).get("out"), within=60)
    job = only(at_port("GET", f"/jobs/{number}"))

    answer = at_port("DELETE", f"/jobs/{number}")

    assert (answer.status, answer.body) == (204, b"")
    assert is_dead(int(job["out"]))
    assert not Path(job["filename"]).parent.exists()
    assert at_port("GET", f"/jobs/{number}").status == 404
    assert at_port("DELETE", f"/jobs/{number}").status == 404


def test_numbers_count_up_and_none_comes_twice(at_port: Asking) -> None:
    first = only(at_port("POST", "/jobs", "true"))["id"]
    at_port("DELETE", f"/jobs/{first}")
    second = only(at_port("POST", "/jobs", "true"))["id"]

    assert (second, only(at_port("GET", f"/jobs/+{second}"))["id"]) == (first + 1, second)
    listed = [job["id"] for job in json.loads(at_port("GET", "/jobs?fields=").body)["jobs"]]
    assert listed == sorted(listed)
    assert listed[-1] == second


def test_only_jobs_of_rtot_are_shown_and_the_service_shows_these_too(at_port: Asking, service: Service) -> None:
    number = only(at_port("POST", "/jobs", "true"))["id"]
    other = service.submit(argv=["true"])

    theirs = service.get("/v1/jobs?limit=2").json()["jobs"]
    assert [(job["api"], job["owner"]) for job in theirs] == [("v1", "admin"), ("rtot", "rtot")]
    again = service.post(f"/v1/jobs/{theirs[1]['id']}/rerun").json()
    assert (again["api"], service.wait(again["id"])["state"]) == ("v1", "succeeded")
    listed = [job["id"] for job in json.loads(at_port("GET", "/jobs").body)["jobs"]]
    assert listed[-1] == number
    assert len(set(listed)) == len(listed)
    service.wait(other["id"])


def test_many_jobs_are_listed_whole(at_port: Asking) -> None:
    numbers = [only(at_port("POST", "/jobs?fields=", "echo x"))["id"] for _ in range(105)]

    listed = [job["id"] for job in json.loads(at_port("GET", "/jobs?fields=out").body)["jobs"]]
    assert listed[-105:] == numbers


def test_what_can_not_be_taken_is_refused_in_words(at_port: Asking) -> None:
    foreign = at_port("GET", "/jobs", Host="evil.example")
    page = at_port("POST", "/jobs", "true", Origin="http://evil.example")
    large = at_port("POST", "/jobs", b"#" * (16777216 + 1))

    assert [(answer.status, answer.headers["content-type"]) for answer in (foreign, page, large)] == [
        (421, PLAIN), (403, PLAIN), (413, PLAIN),
    ]  # fmt: skip
    for answer in (foreign, page, large):
        assert answer.text.endswith("\n")
        assert "{" not in answer.text


def test_policy_and_a_full_queue_refuse_in_their_own_form(start_service: StartService) -> None:
    port = free_port()
    dialect = {"enabled": "yes", "port": port, "auth": "none", "run_as": "admin"}
    service = start_service({"dialect_rtot": dialect, "policy": {"allow_shell": "no"}})
    refused = Asking(port)("POST", "/jobs", "true")
    assert (refused.status, refused.headers["content-type"]) == (403, JSON)
    assert json.loads(refused.body).keys() == {"error"}
    assert Asking(port)("DELETE", "/").status == 403
    assert Asking(service.port, "/rtot")("GET", "/jobs").body == b'{"jobs":[]}'


def test_all_are_killed_and_removed_and_numbers_outlive_the_service(start_service: StartService) -> None:
    dialect = {"enabled": "yes", "port": free_port(), "secret": "s", "allow_shutdown": "yes"}
    settings = {"dialect_rtot": dialect, "executor": {"max_running": 2, "max_queued": 4}}
    service = start_service(settings)
    ask = Asking(int(str(dialect["port"])), "", {"Authorization": "rtot s"})
    done = run(ask, "true")
    running = [only(ask("POST", "/jobs", "echo $$; exec sleep 60"))["id"] for _ in range(6)]
    assert eventually(lambda: len(json.loads(ask("GET", "/jobs?state=running&fields=out").body)["jobs"]) == 2)

    def pids() -> list[int]:
        jobs = json.loads(ask("GET", "/jobs?state=running&fields=out").body)["jobs"]
        return [int(job["out"]) for job in jobs if "out" in job]

    assert eventually(lambda: len(pids()) == 2)
    alive = pids()
    assert (done["id"], running) == (0, [1, 2, 3, 4, 5, 6])
    full = ask("POST", "/jobs", "true")
    assert (full.status, full.headers["content-type"], full.headers["retry-after"]) == (503, PLAIN, "5")
    other = service.post("/v1/jobs", {"argv": ["true"]})
    assert other.status_code == 503

    assert ask("DELETE", "/jobs?state=new").status == 204
    assert [job["id"] for job in json.loads(ask("GET", "/jobs?fields=").body)["jobs"]] == [0, 1, 2]
    assert ask("DELETE", "/jobs?state=complete").status == 204
    assert [job["id"] for job in json.loads(ask("GET", "/jobs?fields=").body)["jobs"]] == [1, 2]
    kept = service.submit(argv=["true"])
    assert ask("DELETE", "/jobs").status == 204
    assert ask("GET", "/jobs").body == b'{"jobs":[]}'
    assert all(map(is_dead, alive))
    assert service.wait(kept["id"])["state"] == "succeeded"
    assert [each for each in os.listdir(service.data_dir / "jobs") if os.listdir(service.data_dir / "jobs" / each)] == [
        kept["id"][-2:]
    ]

    assert service.process is not None
    assert (ask("DELETE", "/").status, service.process.wait(30)) == (204, 1)
    service.stop()
    again = start_service(settings, data_dir=service.data_dir)
    assert run(ask, "true")["id"] == 7, "not 0 again"
    assert again.stop() == 0
