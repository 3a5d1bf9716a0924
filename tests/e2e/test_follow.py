"""Output that is followed while the job writes it."""

import hashlib
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_problem
from tests.factories import children_of
from tests.service import Service, eventually

PIECES = """
import os, sys, time
from pathlib import Path
for number in range(200):
    data = bytes((number + at) % 256 for at in range(1 + number * 37 % 5000))
    while data:
        data = data[os.write(1, data[:997]):]
    if number % 20 == 0:
        time.sleep(0.03)
"""


def pieces() -> bytes:
    """Return what `PIECES` writes."""
    return b"".join(bytes((number + at) % 256 for at in range(1 + number * 37 % 5000)) for number in range(200))


@contextmanager
def followed(service: Service, job: dict[str, Any], query: str = "", stream: str = "stdout") -> Iterator[HTTPResponse]:
    """Follow a stream on a connection of its own."""
    with service.stream(f"/v1/jobs/{job['id']}/{stream}?follow=true{query}") as response:
        assert response.status == 200, response.read()
        yield response


def step(service: Service, job: dict[str, Any], name: str) -> None:
    """Let a job go on that waits for this file in its directory."""
    directory = Path(service.data_dir, "jobs", job["id"][-2:], job["id"], "scratch")
    assert eventually(directory.is_dir)  # it may not have begun
    (directory / name).touch()


def until(name: str) -> str:
    return f"while [ ! -e {name} ]; do sleep 0.02; done"


def test_each_line_comes_while_the_job_runs(service: Service) -> None:
    """The job writes the next line only when the one before has been seen."""
    script = "; ".join(f"echo line {number}; {until(f'go{number}')}" for number in range(5))
    job = service.submit(command=f"{script}; echo end; exit 4")

    with followed(service, job) as response:
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        for number in range(5):
            assert response.readline() == f"line {number}\n".encode()
            step(service, job, f"go{number}")
        assert response.read() == b"end\n"
    assert service.wait(job["id"])["exit_code"] == 4


def test_nothing_is_lost_and_nothing_comes_twice(service: Service) -> None:
    job = service.submit(argv=["python3", "-c", PIECES])

    with followed(service, job) as response:
        assert hashlib.sha256(response.read()).hexdigest() == hashlib.sha256(pieces()).hexdigest()


def test_following_begins_at_any_byte(service: Service) -> None:
    job = service.submit(command=f"printf 0123456789; {until('go')}; printf abc")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}/stdout").content == b"0123456789")

    with followed(service, job, "&offset=7") as offset, followed(service, job, "&tail=2") as tail:
        with followed(service, job, "&offset=12") as ahead:
            step(service, job, "go")
            assert ahead.read() == b"c"
        assert offset.read() == b"789abc"
        assert tail.read() == b"89abc"


def test_both_streams_can_be_followed(service: Service) -> None:
    job = service.submit(command=f"echo out; echo err >&2; {until('go')}; echo more >&2")

    with followed(service, job) as out, followed(service, job, stream="stderr") as err:
        assert (out.readline(), err.readline()) == (b"out\n", b"err\n")
        step(service, job, "go")
        assert (out.read(), err.read()) == (b"", b"more\n")


def test_the_output_of_an_ended_job_is_sent_and_closed(service: Service) -> None:
    job = service.run(command="printf 0123456789; printf x >&2")

    with followed(service, job) as whole, followed(service, job, "&offset=8") as part:
        assert (whole.read(), part.read()) == (b"0123456789", b"89")
    with followed(service, job, "&offset=10") as nothing:
        assert nothing.read() == b""
    check_problem(service.get(f"/v1/jobs/{job['id']}/stdout?follow&offset=11"), 416, "range-not-satisfiable")
    head = service.request("HEAD", f"/v1/jobs/{job['id']}/stdout?follow")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("query", ["offset=3", "follow=perhaps", "follow&offset=-1", "follow&offset=1&tail=2"])
def test_what_can_not_be_followed_is_told(service: Service, query: str) -> None:
    job = service.run(argv=["true"])

    check_problem(service.get(f"/v1/jobs/{job['id']}/stdout?{query}"), 422, "invalid-request")


def test_a_job_in_the_queue_can_be_followed(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    first = service.submit(command=until("go"))
    second = service.submit(command="echo second")

    with followed(service, second) as response:
        step(service, first, "go")
        assert response.read() == b"second\n"


def test_seats_are_bounded_and_given_back_when_a_client_has_gone(start_service: StartService) -> None:
    """The job is silent: nothing that could not be sent tells that the client has gone."""
    service = start_service({"server": {"max_followers": 2, "workers": 1}})
    job = service.submit(command=until("go"))

    with followed(service, job), followed(service, job):
        refused = service.get(f"/v1/jobs/{job['id']}/stdout?follow=true")
        check_problem(refused, 503, "busy")
        assert int(refused.headers["Retry-After"]) > 0
        assert service.get("/v1/stats").json()["followers"] == 2
        assert service.get(f"/v1/jobs/{job['id']}/stdout").status_code == 200

    assert eventually(lambda: service.get("/v1/stats").json()["followers"] == 0)
    with followed(service, job) as response:
        step(service, job, "go")
        assert response.read() == b""


def test_a_client_that_stops_reading_gets_all_when_it_goes_on(service: Service) -> None:
    size = 30 << 20  # more than the sockets between take
    job = service.submit(command=f"head -c {size} /dev/zero | tr '\\0' x; {until('go')}")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["stdout"]["bytes"] == size)

    with followed(service, job) as response:
        first = response.read(1000)
        step(service, job, "go")
        service.wait(job["id"])
        assert len(first + response.read()) == size


def test_a_stream_goes_on_over_the_death_of_the_executor(start_service: StartService) -> None:
    service = start_service()
    job = service.submit(command=f"echo one; {until('go')}; echo two; exit 5")

    with followed(service, job) as response:
        assert response.readline() == b"one\n"
        executor = next(pid for pid in children_of(service.pid) if b"executor" in _command_line(pid))
        os.kill(executor, signal.SIGKILL)
        step(service, job, "go")
        assert response.read() == b"two\n"
    assert service.wait(job["id"])["exit_code"] == 5


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def kill_workers(service: Service) -> None:
    """Kill those who answer requests; others take their place."""
    master = next(pid for pid in children_of(service.pid) if b"web" in _command_line(pid))
    for worker in children_of(master):
        os.kill(worker, signal.SIGKILL)


def read_until_broken(response: HTTPResponse, most: int) -> bytes:
    """Read so many bytes, or up to where the connection breaks."""
    found = b""
    try:
        while len(found) < most and (data := response.read1(1 << 16)):
            found += data
    except (IncompleteRead, ConnectionError):
        pass
    return found


@pytest.mark.parametrize("killed", ["worker", "client"])
def test_a_stream_that_broke_off_is_resumed_at_the_exact_byte(start_service: StartService, killed: str) -> None:
    service = start_service({"server": {"workers": 1}})
    job = service.submit(argv=["python3", "-c", PIECES.replace("0.03", "0.2")])
    expected, found = pieces(), b""

    breaks = 0
    while len(found) < len(expected):
        with followed(service, job, f"&offset={len(found)}") as response:
            found += read_until_broken(response, 40_000 if breaks < 6 else len(expected))
            if killed == "worker" and breaks < 3:
                kill_workers(service)
                found += read_until_broken(response, len(expected))
                service.http.close()  # its connection has died with the worker
            breaks += 1

    assert breaks >= 3
    assert hashlib.sha256(found).hexdigest() == hashlib.sha256(expected).hexdigest()


def test_a_stream_that_the_service_breaks_off_does_not_look_complete(start_service: StartService) -> None:
    service = start_service({"executor": {"on_stop": "kill", "grace": 2}})
    job = service.submit(command="echo begun; exec sleep 60")

    with followed(service, job) as response:
        assert response.readline() == b"begun\n"
        assert service.stop(within=2 + 5) == 0
        with pytest.raises((IncompleteRead, ConnectionError)):
            response.read()


def test_a_raw_connection_closed_in_the_middle_of_a_chunk_harms_nobody(start_service: StartService) -> None:
    service = start_service({"server": {"workers": 1}})
    job = service.submit(command=f"head -c 5000000 /dev/zero; {until('go')}")
    with closing(socket.create_connection(("127.0.0.1", service.port), timeout=10)) as client:
        request = f"GET /v1/jobs/{job['id']}/stdout?follow HTTP/1.1\r\nHost: localhost\r\n"
        client.sendall(f"{request}Authorization: Bearer {service.token}\r\n\r\n".encode())
        assert client.recv(100)

    assert eventually(lambda: service.get("/v1/stats").json()["followers"] == 0)
    step(service, job, "go")
    assert service.wait(job["id"])["state"] == "succeeded"
