"""rexec, held against what the original answers, byte for byte."""

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.dialects.conversation import ANYONE, Asking, doors, speaking
from tests.factories import children_of, is_dead
from tests.process.serving import child
from tests.service import Service, eventually, free_port

PLAIN = "text/plain; charset=utf-8"
INVALID_PATH = (501, "Invalid path.")
IN_USE = (409, '[Rexec] AlreadyRunning : ""')


def not_started(text: str) -> tuple[int, str]:
    return 404, f'[Rexec] FailedToExecuteProcess : "{text}"'


ABSENT = not_started("No such file or directory (os error 2)")
DENIED = not_started("Permission denied (os error 13)")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    work_dir = tmp_path_factory.mktemp("work")
    (work_dir / "below").mkdir()
    (work_dir / "file").touch()
    with speaking(tmp_path_factory.mktemp("rexec"), "rexec", ANYONE, storage={"work_dir": work_dir}) as running:
        yield running


@pytest.fixture
def both(service: Service) -> list[Asking]:
    """Clients at both doors."""
    return doors(service, "rexec")


@pytest.fixture
def ask(both: list[Asking]) -> Asking:
    """A client at the dialect's own port."""
    return both[0]


def body(cmd: str, *args: str, alias: str = "a", **members: Any) -> str:
    return json.dumps({"alias": alias, "cmd": cmd, "args": args, **members})


def run(ask: Asking, cmd: str, *args: str, **members: Any) -> tuple[int, str]:
    answer = ask("POST", "/process", body(cmd, *args, **members))
    assert answer.headers["content-type"] == PLAIN
    return answer.status, answer.body.decode(errors="surrogateescape")


@contextmanager
def listening(ask: Asking, cmd: str, *args: str, **members: Any) -> Iterator[http.client.HTTPResponse]:
    """Run something and hear it; when this is left, the client goes."""
    with ask.stream("POST", "/process", body(cmd, *args, **members)) as response:
        assert response.status == 200, response.read()
        yield response


def newest(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.get("/v1/jobs?limit=1").json()["jobs"][0]
    return found


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/"),
        ("GET", "/process"),
        ("PUT", "/process"),
        ("DELETE", "/process"),
        ("OPTIONS", "/process"),
        ("POST", "/process/"),
        ("POST", "//process"),
        ("POST", "/process/a"),
        ("POST", "/Process"),
        ("GET", "/v1/jobs"),
    ],
)
def test_there_is_one_path(both: list[Asking], method: str, path: str) -> None:
    for ask in both:
        answer = ask(method, path, body("true"))

        assert (answer.status, answer.text) == INVALID_PATH
    assert (ask("HEAD", "/process").status, ask("HEAD", "/process").body) == (501, b"")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (b"", ""),
        (b'{"alias": "a", "cmd": "true"} x', ""),
        (b'{"alias": "a", "alias": "a", "cmd": "true"}', ""),
        (b'{"alias": "a", "Cmd": "true"}', ""),
        (b'{"alias": "a", "cmd": "true", "cwd": null}', ""),
        (b'{"alias": "\xff"}', "invalid utf-8 sequence of 1 bytes from index 11"),
        (b"\xe2\x82A", "invalid utf-8 sequence of 2 bytes from index 0"),
        (b'{"\xf0\x9f', "incomplete utf-8 byte sequence from index 2"),
    ],
)
def test_what_is_no_request_is_refused(both: list[Asking], given: bytes, text: str) -> None:
    for ask in both:
        answer = ask("POST", "/process", given)

        assert (answer.status, answer.text) == (500, f'[Rexec] InvalidCreateProcessRequest : "{text}"')
        assert answer.headers["content-type"] == PLAIN


def test_stdout_is_the_answer(both: list[Asking], service: Service) -> None:
    for ask in both:
        answer = ask("POST", "/process?ignored=1", body("sh", "-c", "echo out; echo err >&2; printf end; exit 3"))

        assert (answer.status, answer.body) == (200, b"out\nend\n")
        assert answer.headers["transfer-encoding"] == "chunked"
        job = newest(service)
        assert (job["api"], job["name"], job["owner"], job["exit_code"]) == ("rexec", "a", "admin", 3)
        assert service.get(f"/v1/jobs/{job['id']}/stderr").text == "err\n"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", ""),
        (r"\n", "\n"),
        (r"a", "a\n"),
        (r"a\r\nb\r", "a\nb\r\n"),
        (r"a\r\r\n\n\r\n", "a\r\n\n\n"),
        (r"\377\342\202\n", "\udcff\udce2\udc82\n"),
        (r"a\000b", "a\0b\n"),
    ],
)
def test_lines_are_ended_alike(ask: Asking, written: str, expected: str) -> None:
    assert run(ask, "printf", written) == (200, expected)


def test_large_output_is_whole(ask: Asking) -> None:
    status, text = run(ask, "seq", "400000")

    assert status == 200
    assert text.split() == [str(number) for number in range(1, 400001)]


def test_where_and_with_what_it_runs(ask: Asking, service: Service) -> None:
    work_dir = service.environment["JOBRUNNER_STORAGE_WORK_DIR"]
    assert run(ask, "pwd") == (200, f"{work_dir}\n")
    assert run(ask, "pwd", cwd="below/../below") == (200, f"{work_dir}/below\n")
    assert run(ask, "pwd", cwd="..") == (200, f"{work_dir.rpartition('/')[0]}\n")
    assert run(ask, "pwd", cwd="/usr") == (200, "/usr\n")
    assert run(ask, "printenv", "A", "PATH", envs={"A": "ä b"})[1].startswith("ä b\n/")
    assert run(ask, "printf", "<%s>", "$HOME", "", "*", "' x") == (200, "<$HOME><><*><' x>\n")


def test_a_path_that_is_given_is_where_the_program_is_looked_for(ask: Asking, service: Service) -> None:
    directory = service.data_dir.parent / "bin"
    directory.mkdir(exist_ok=True)
    (directory / "greet").write_text("#!/bin/sh\necho hello")
    (directory / "greet").chmod(0o755)

    assert run(ask, "greet") == ABSENT
    assert run(ask, "greet", envs={"PATH": str(directory)}) == (200, "hello\n")
    assert run(ask, "./greet", cwd=str(directory)) == (200, "hello\n")
    assert run(ask, "ls", envs={"PATH": str(directory)}) == ABSENT


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"cmd": "absent-program"}, ABSENT),
        ({"cmd": "/absent/program"}, ABSENT),
        ({"cmd": ""}, ABSENT),
        ({"cmd": "/"}, DENIED),
        ({"cmd": "/etc/passwd"}, DENIED),
        ({"cmd": "true", "cwd": "absent"}, ABSENT),
        ({"cmd": "true", "cwd": ""}, ABSENT),
        ({"cmd": "true", "cwd": "file"}, not_started("Not a directory (os error 20)")),
        ({"cmd": "true", "args": ["x" * 131073]}, not_started("Argument list too long (os error 7)")),
        ({"cmd": "true", "cwd": "x" * 5000}, not_started("File name too long (os error 36)")),
        ({"cmd": "true", "cwd": "x" * 300}, not_started("File name too long (os error 36)")),
        ({"cmd": "true", "envs": {"": "1"}}, not_started("Invalid argument (os error 22)")),
        *(
            ({"cmd": "true", **members}, not_started("nul byte found in provided data"))
            for members in ({"cmd": "\0"}, {"args": ["\0"]}, {"cwd": "\0"}, {"envs": {"\0": ""}}, {"envs": {"A": "\0"}})
        ),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_what_can_not_be_started_is_told(ask: Asking, members: dict[str, Any], expected: tuple[int, str]) -> None:
    assert run(ask, **members) == expected
    assert run(ask, "true") == (200, ""), "the alias is free at once"


def test_lines_come_as_they_are_written(ask: Asking, service: Service) -> None:
    """The head too, when the program has begun: it writes only when it is told."""
    told = service.data_dir.parent / "told"
    with listening(ask, "sh", "-c", f"while [ ! -e {told} ]; do sleep .05; done; echo one; exec sleep 60") as response:
        told.touch()
        assert response.readline() == b"one\n"


@pytest.mark.parametrize("alias", ["b", "", "x" * 500, "two\nlines", "ä"])
def test_an_alias_is_one_programs_alone(both: list[Asking], alias: str) -> None:
    with listening(both[0], "sh", "-c", "echo; exec cat /dev/zero >/dev/null", alias=alias) as response:
        response.readline()
        for ask in both:
            assert run(ask, "true", alias=alias) == IN_USE
        assert run(ask, "true", alias=f"another {alias}"[:100]) == (200, "")
    assert eventually(lambda: run(ask, "true", alias=alias) == (200, ""), within=60)


def test_jobs_of_others_take_no_alias(ask: Asking, service: Service) -> None:
    job = service.submit(argv=["sleep", "60"], name="taken", exclusive=True)

    assert run(ask, "true", alias="taken") == (200, "")
    service.post(f"/v1/jobs/{job['id']}/cancel")


def test_the_alias_is_free_when_the_answer_has_ended(ask: Asking) -> None:
    """Though something that it has started keeps its stdout open."""
    for number in range(10):
        assert run(ask, "sh", "-c", f"setsid sleep 60 & echo {number}") == (200, f"{number}\n")


def test_all_that_it_has_started_dies_when_the_client_goes(both: list[Asking], service: Service) -> None:
    script = (
        "trap '' TERM HUP INT; echo $$; setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 60; done' & wait; wait"
    )
    for ask in both:
        with listening(ask, "sh", "-c", script) as response:
            pids = [int(response.readline()) for _ in range(2)]
            assert not any(map(is_dead, pids))

        assert eventually(lambda: all(map(is_dead, pids)), within=60)  # noqa: B023
        assert eventually(lambda: newest(service)["state"] == "canceled", within=60)
        assert newest(service)["cancel"]["by"] == "admin"


def test_a_client_that_goes_while_its_program_waits_for_a_slot_takes_it_along(start_service: StartService) -> None:
    port = free_port()
    dialect = {"enabled": "yes", "port": port, "auth": "none", "run_as": "admin"}
    limits = {"max_running": 1, "max_queued": 1}
    service = start_service({"dialect_rexec": dialect, "executor": limits, "server": {"max_followers": 6}})
    ask = Asking(port)
    first = service.submit(argv=["sleep", "60"])
    assert eventually(lambda: service.get("/v1/stats").json()["running"] == 1)
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        sent = body("echo", "never", alias="gone").encode()
        connection.sendall(
            b"POST /process HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent
        )
        assert eventually(lambda: newest(service)["state"] == "queued" and newest(service)["name"] == "gone")
        full = ask("POST", "/process", body("true", alias="one too many"))
        assert (full.status, full.headers["content-type"], full.headers["retry-after"]) == (503, PLAIN, "5")
        assert run(ask, "true", alias="gone") == IN_USE
    assert eventually(lambda: newest(service)["state"] == "canceled", within=60)

    answers: list[tuple[int, str]] = []
    waiting = threading.Thread(target=lambda: answers.append(run(ask, "echo", "here", alias="gone")))
    waiting.start()
    assert eventually(lambda: newest(service)["state"] == "queued")
    service.post(f"/v1/jobs/{first['id']}/cancel")
    waiting.join(60)
    assert answers == [(200, "here\n")]

    canceled = service.submit(argv=["sleep", "60"])
    assert eventually(lambda: service.get("/v1/stats").json()["running"] == 1)
    waiting = threading.Thread(target=lambda: answers.append(run(ask, "echo")))
    waiting.start()
    assert eventually(lambda: newest(service)["state"] == "queued")
    service.post(f"/v1/jobs/{newest(service)['id']}/cancel")
    waiting.join(60)
    assert answers[1] == not_started("Operation canceled (os error 125)")
    service.post(f"/v1/jobs/{canceled['id']}/cancel")


def test_a_program_outlives_no_worker_that_is_killed(start_service: StartService) -> None:
    """Its client is gone with the worker, and nobody is left to tell so. One that waits for a slot is never started."""
    port = free_port()
    dialect = {"enabled": "yes", "port": port, "auth": "none", "run_as": "admin"}
    service = start_service(
        {"dialect_rexec": dialect, "server": {"workers": 1, "pin_workers": "no"}, "executor": {"max_running": 2}}
    )
    ask = Asking(port)
    other = service.submit(argv=["sleep", "60"])
    (worker,) = children_of(child(service, "web"))
    answers: list[object] = []

    def wait_in_vain() -> None:
        try:
            answers.append(run(ask, "echo", alias="waits"))
        except (OSError, http.client.HTTPException) as error:
            answers.append(error)

    with suppress(OSError, http.client.HTTPException), listening(ask, "sh", "-c", "echo $$; exec sleep 60") as response:
        pid = int(response.readline())
        waiting = threading.Thread(target=wait_in_vain)
        waiting.start()
        assert eventually(lambda: newest(service)["name"] == "waits")
        os.kill(worker, signal.SIGKILL)
        waiting.join(60)

    assert isinstance(answers[0], (OSError, http.client.HTTPException))
    assert eventually(lambda: is_dead(pid), within=60)
    assert eventually(lambda: service.http.get(f"{service.url}/readyz").ok, within=60)
    assert eventually(lambda: newest(service)["state"] == "canceled", within=60)
    assert (newest(service)["started_at"], newest(service)["cancel"]["by"]) == (None, "service")
    for alias in ("a", "waits"):
        assert run(ask, "true", alias=alias) == (200, "")
    again = service.post(f"/v1/jobs/{newest(service)['id']}/rerun").json()
    assert service.wait(again["id"])["state"] == "succeeded", "one of /v1 needs no client"
    service.post(f"/v1/jobs/{other['id']}/cancel")


def test_a_seat_comes_before_the_program(start_service: StartService) -> None:
    port = free_port()
    dialect = {"enabled": "yes", "port": port}
    service = start_service({"dialect_rexec": dialect, "server": {"max_followers": 1, "workers": 1}})
    ask = Asking(port, "", {"Authorization": f"Bearer {service.token}"})
    job = service.submit(argv=["sleep", "60"])
    with service.get(f"/v1/jobs/{job['id']}/stdout?follow=1", stream=True):
        answer = ask("POST", "/process", body("true"))
        assert (answer.status, answer.headers["content-type"]) == (503, PLAIN)
    assert newest(service)["id"] == job["id"]
    nobody = Asking(port)("POST", "/process", body("true"))
    assert (nobody.status, nobody.text) == (401, "Not Authorized\n")


def test_policy_refuses_in_the_words_of_the_system(start_service: StartService) -> None:
    port = free_port()
    dialect = {"enabled": "yes", "port": port, "auth": "none", "run_as": "admin"}
    start_service({"dialect_rexec": dialect, "policy": {"allow_commands": "/usr/bin/echo, /bin/echo"}})
    ask = Asking(port)

    assert run(ask, "echo", "x") == (200, "x\n")
    assert run(ask, "env") == DENIED
    assert run(ask, "absent-program") == ABSENT
    assert (ask("POST", "/process", body("true"), Host="evil.example")).status == 421
