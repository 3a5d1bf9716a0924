"""Connections that say nothing, and requests that wait, delay nobody else."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import requests

from tests.conftest import StartService
from tests.service import Service, eventually

IDLE = 64
LOOK_UPS = 50
GENEROUS = 1.0
"""Seconds; gunicorn's own thread worker needs five when its threads wait for a first byte."""


@contextmanager
def idle_connections(service: Service, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        address = ("127.0.0.1", service.port)
        clients = [stack.enter_context(closing(socket.create_connection(address, timeout=10))) for _ in range(count)]
        for client in clients:
            client.sendall(data)
        yield clients


def slowest_look_up(service: Service, path: str) -> float:
    """Look a job up on connections of their own; return the seconds of the slowest answer."""
    slowest = 0.0
    headers = {"Authorization": f"Bearer {service.token}"}
    for _ in range(LOOK_UPS):
        began = time.monotonic()
        assert requests.get(service.url + path, headers=headers, timeout=30).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def test_idle_connections_delay_nobody(service: Service) -> None:
    job = service.run(argv=["true"])

    with idle_connections(service, IDLE):
        assert slowest_look_up(service, f"/v1/jobs/{job['id']}") < GENEROUS


def test_connections_kept_for_a_next_request_delay_nobody(service: Service) -> None:
    job = service.run(argv=["true"])
    with ExitStack() as stack:
        for _ in range(IDLE):
            client = stack.enter_context(closing(HTTPConnection("127.0.0.1", service.port, timeout=10)))
            client.request("GET", "/healthz")
            with client.getresponse() as response:
                assert response.read()

        assert slowest_look_up(service, f"/v1/jobs/{job['id']}") < GENEROUS


class Waiter:
    """A request that waits for the end of a job, on a connection of its own."""

    def __init__(self, service: Service, job: dict[str, Any]) -> None:
        self.connection = HTTPConnection("127.0.0.1", service.port, timeout=90)
        headers = {"Authorization": f"Bearer {service.token}", "Prefer": "wait=60"}
        self.connection.request("GET", f"/v1/jobs/{job['id']}", headers=headers)

    def has_answer(self) -> bool:
        sock = self.connection.sock
        sock.setblocking(False)
        try:
            return bool(sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            sock.settimeout(90)

    def answer(self) -> tuple[HTTPResponse, dict[str, Any]]:
        response = self.connection.getresponse()
        with response:
            document: dict[str, Any] = json.loads(response.read())
            return response, document

    def close(self) -> None:
        self.connection.close()


def seat_waiters(service: Service, job: dict[str, Any], count: int, stack: ExitStack) -> list[Waiter]:
    """Have so many requests wait; who is refused tries again, as told: another worker may have a seat."""
    waiters: list[Waiter] = []

    def fill() -> bool:
        for waiter in [waiter for waiter in waiters if waiter.has_answer()]:
            response, _ = waiter.answer()
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            waiters.remove(waiter)
            waiter.close()
        waiters.extend(stack.enter_context(closing(Waiter(service, job))) for _ in range(count - len(waiters)))
        # Refusals come at once, or on a busy machine a little later.
        return not eventually(lambda: any(waiter.has_answer() for waiter in waiters), within=1.0)

    assert eventually(fill, within=60)
    return waiters


def test_as_many_as_may_wait_delay_nobody_and_one_more_is_refused(start_service: StartService) -> None:
    service = start_service({"server": {"max_waiters": "64", "workers": "2"}})
    job = service.submit(argv=["sleep", "120"])

    with ExitStack() as stack:
        waiters = seat_waiters(service, job, 64, stack)

        assert slowest_look_up(service, f"/v1/jobs/{job['id']}") < GENEROUS
        for _ in range(4):
            one_more = stack.enter_context(closing(Waiter(service, job)))
            response, problem = one_more.answer()
            assert (response.status, problem["type"]) == (503, "/problems/busy")
            assert int(response.headers["Retry-After"]) >= 1
        with idle_connections(service, IDLE):
            assert slowest_look_up(service, f"/v1/jobs/{job['id']}") < GENEROUS

        service.post(f"/v1/jobs/{job['id']}/cancel")
        ended_at = time.monotonic()
        answers = [waiter.answer() for waiter in waiters]

    assert time.monotonic() - ended_at < 10, "not one waits for its time to be up, which is a minute"
    assert {response.status for response, _ in answers} == {200}
    assert {document["state"] for _, document in answers} == {"canceled"}
    assert service.get("/v1/stats").json()["waiters"] == 0


def test_the_service_stops_at_once_though_requests_wait(start_service: StartService) -> None:
    service = start_service()
    job = service.submit(argv=["sleep", "5"])

    with ExitStack() as stack:
        waiters = [stack.enter_context(closing(Waiter(service, job))) for _ in range(8)]
        assert eventually(lambda: service.get("/v1/stats").json()["waiters"] > 0)
        with idle_connections(service, 8):
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 15, "that is grace and 5 s; a request waits a minute"
        answers = [waiter.answer() for waiter in waiters]

    assert {response.status for response, _ in answers} == {200}
    assert {document["state"] for _, document in answers} == {"running"}


def test_a_client_that_has_just_connected_is_answered_though_the_service_stops(start_service: StartService) -> None:
    service = start_service()
    look_up = f"GET /healthz HTTP/1.1\r\nHost: localhost:{service.port}\r\n\r\n".encode()
    kept = HTTPConnection("127.0.0.1", service.port, timeout=10)
    with closing(kept), idle_connections(service, 1) as clients:
        kept.request("GET", "/healthz")
        assert kept.getresponse().read()

        os.kill(service.pid, signal.SIGTERM)
        assert kept.sock.recv(1) == b"", "what has had its answer is closed first"
        clients[0].sendall(look_up)
        answer = clients[0].makefile("rb").read()

    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert b"\r\nConnection: close\r\n" in answer
    assert service.stop() == 0


def test_a_client_that_reads_slowly_delays_nobody(service: Service) -> None:
    job = service.run(command="head -c 50000000 /dev/zero")
    request = (
        f"GET /v1/jobs/{job['id']}/stdout HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n\r\n"
    )

    with idle_connections(service, 8, request.encode()):
        assert slowest_look_up(service, f"/v1/jobs/{job['id']}") < GENEROUS


def test_as_many_as_may_follow_delay_nobody(start_service: StartService) -> None:
    """Half of a silent job, half of one that writes line after line."""
    service = start_service({"server": {"max_followers": 64, "workers": 2}})
    silent = service.submit(argv=["sleep", "120"])
    busy = service.submit(command="while :; do echo line; sleep 0.01; done")

    with ExitStack() as stack:
        for number in range(32):  # more would be refused if one worker got them all
            job = (silent, busy)[number % 2]
            stack.enter_context(service.stream(f"/v1/jobs/{job['id']}/{('stdout?follow', 'events')[number // 16]}"))

        assert slowest_look_up(service, f"/v1/jobs/{silent['id']}") < GENEROUS
        with idle_connections(service, IDLE):
            assert slowest_look_up(service, f"/v1/jobs/{silent['id']}") < GENEROUS

    for job in (silent, busy):
        service.post(f"/v1/jobs/{job['id']}/cancel", {"grace": 0})
    assert eventually(lambda: service.get("/v1/stats").json()["followers"] == 0)
