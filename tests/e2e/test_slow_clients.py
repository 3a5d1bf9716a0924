"""Clients that send nothing, half a request, or a byte now and then take no thread, and are sent away after a while."""

import json
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import requests

from jobrunner.gunicorn_connection import MOST_TAKERS
from jobrunner.gunicorn_worker import MOST_READERS
from tests.conftest import StartService
from tests.e2e.test_many_connections import GENEROUS, idle_connections, slowest_look_up
from tests.factories import children_of
from tests.service import Service, eventually

MANY = 200
GONE = 60.0
"""Seconds, after which surely nobody is waited for: 10 are given for a head, 15 and a few for a body."""


def head(
    service: Service, *lines: str, method: str = "POST", path: str = "/v1/jobs", token: str | None = None
) -> bytes:
    authorization = f"Authorization: Bearer {token or service.token}"
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", authorization, *lines, "", ""]).encode()


class Slow:
    """A client that sends something, and then perhaps a byte now and then, until it gets an answer."""

    def __init__(self, service: Service, begin: bytes, drip: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=30)
        self.socket.sendall(begin)
        self.drip = drip
        self.answer = b""
        self.is_over = False

    def send(self) -> None:
        try:
            self.socket.sendall(self.drip)
        except OSError:
            self.drip = b""

    def receive(self) -> None:
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        self.answer += data
        self.is_over = not data

    @property
    def status(self) -> int | None:
        """Of the last answer; None: the connection was closed without one."""
        *_, last = self.answer.split(b"HTTP/1.1 ")
        return int(last[:3]) if last else None


class Crowd:
    """Slow clients, moved by a thread."""

    def __init__(self) -> None:
        self.clients: list[Slow] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._move)

    def _move(self) -> None:
        drip_at = 0.0
        while not self._is_over.is_set():
            open_ones = {client.socket: client for client in self.clients if not client.is_over}
            if not open_ones:
                return
            poller = select.poll()
            by_number = {sock.fileno(): client for sock, client in open_ones.items()}
            for number in by_number:
                poller.register(number, select.POLLIN)
            for number, _ in poller.poll(200):
                by_number[number].receive()
            if time.monotonic() >= drip_at:
                drip_at = time.monotonic() + 1.0
                for client in open_ones.values():
                    if client.drip and not client.is_over:
                        client.send()

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        for client in self.clients:
            client.socket.close()

    def has_gone(self) -> bool:
        return all(client.is_over for client in self.clients)


def threads_of_workers(service: Service) -> int:
    """Count the threads of the process that has the most, of those that answer requests."""
    master = next(pid for pid in children_of(service.pid) if b"web" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return max(len(list(Path(f"/proc/{worker}/task").iterdir())) for worker in children_of(master))


def test_slow_clients_delay_nobody_take_no_thread_and_are_sent_away(start_service: StartService) -> None:
    service = start_service()
    job = service.run(argv=["true"])
    half = head(service, method="GET")[:-2]
    body = head(service, "Content-Type: application/json", "Content-Length: 1000")
    chunks = head(service, "Content-Type: application/json", "Transfer-Encoding: chunked")
    pipelined = head(service, method="GET", path="/healthz") + half
    asking = head(service, "Content-Type: application/json", "Content-Length: 100000", "Expect: 100-continue")

    crowd = Crowd()
    heads = [Slow(service, half, b"X") for _ in range(MANY // 2)] + [Slow(service, half) for _ in range(MANY // 4)]
    heads += [Slow(service, pipelined) for _ in range(MANY // 4)]
    bodies = [Slow(service, body, b" ") for _ in range(MANY // 2)] + [Slow(service, body) for _ in range(MANY // 4)]
    bodies += [Slow(service, chunks, b"1\r\n \r\n") for _ in range(MANY // 4)]
    large = [Slow(service, asking, b" ") for _ in range(12)]
    crowd.clients = heads + bodies + large
    with idle_connections(service, MANY), crowd:
        assert slowest_look_up(service, f"/v1/jobs/{job['id']}") < GENEROUS
        submitted = [service.post("/v1/jobs", {"argv": ["true"]}).status_code for _ in range(20)]
        assert submitted == [202] * 20
        # Some that the first look-ups and submissions took, four for large bodies, and what a worker always has.
        assert threads_of_workers(service) < 20

        assert eventually(crowd.has_gone, within=GONE)
        assert {client.status for client in heads + bodies} == {408}
        assert {client.status for client in large} <= {408, 503}
        assert {json.loads(client.answer.partition(b"\r\n\r\n")[2])["type"] for client in bodies} == {
            "/problems/too-slow"
        }
    assert "Traceback" not in service.log.read_text()
    assert service.get("/v1/stats").json()["states"]["succeeded"] >= 1


@contextmanager
def connected(service: Service, data: bytes) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", service.port), timeout=20)) as client:
        client.sendall(data)
        yield client


def test_a_stranger_with_a_large_body_is_refused_before_it_is_read(service: Service) -> None:
    begin = head(service, "Content-Type: application/json", "Content-Length: 10000000", token="wrong") + b" " * 70_000

    with connected(service, begin) as client, closing(client.makefile("rb")) as answer:
        assert answer.read().startswith(b"HTTP/1.1 401 "), "and the connection is closed"


def test_a_large_body_that_comes_in_time_is_read_whichever_way_it_comes(service: Service) -> None:
    body = json.dumps({"argv": ["wc", "-c"], "stdin": "x" * 300_000}).encode()
    chunked = b"".join(
        b"%x\r\n%b\r\n" % (len(body[at : at + 9999]), body[at : at + 9999]) for at in range(0, 300_100, 9999)
    )
    start = ("Content-Type: application/json", "Prefer: wait=20", "Connection: close")
    ways = [
        [head(service, *start, f"Content-Length: {len(body)}"), body[:70_000], body[70_000:200_000], body[200_000:]],
        [head(service, *start, f"Content-Length: {len(body)}") + body],
        [head(service, *start, "Transfer-Encoding: chunked"), chunked[:90_000], chunked[90_000:], b"0\r\n\r\n"],
    ]
    for pieces in ways:
        with connected(service, pieces[0]) as client, closing(client.makefile("rb")) as answer:
            for piece in pieces[1:]:
                client.sendall(piece)
            head_of_answer, _, document = answer.read().partition(b"\r\n\r\n")
        assert head_of_answer.startswith(b"HTTP/1.1 200 ")
        assert json.loads(document)["stdout"]["text"] == "300000\n"


def test_a_client_that_asks_whether_to_send_its_body_is_told(service: Service) -> None:
    body = b'{"argv": ["true"]}'
    lines = (
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Expect: 100-continue",
        "Connection: close",
    )

    with connected(service, head(service, *lines)) as client, closing(client.makefile("rb")) as answer:
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        client.sendall(body)
        assert answer.read().startswith(b"\r\nHTTP/1.1 202 ")
    with connected(service, head(service, *lines, token="wrong")) as client, closing(client.makefile("rb")) as answer:
        assert b"HTTP/1.1 401 " in answer.read()


def test_requests_that_come_together_are_answered_one_after_the_other(service: Service) -> None:
    body = b'{"argv": ["true"]}'
    post = head(service, "Content-Type: application/json", f"Content-Length: {len(body)}", path="/v1/jobs?dry_run=true")
    last = head(service, "Connection: close", method="GET", path="/healthz")
    data = (post + body + head(service, method="GET", path="/v1/absent")) * 5 + last

    for at in (len(data), len(post), len(post + body) + 7, len(data) - 1):
        with connected(service, data[:at]) as client, closing(client.makefile("rb")) as answer:
            client.sendall(data[at:])
            found = [part[:3] for part in answer.read().split(b"HTTP/1.1 ")[1:]]
        assert found == [b"200", b"404"] * 5 + [b"200"]


GUNICORN = (sys.executable, "-m", "gunicorn", "wsgi:app", "--workers", "1", "--worker-connections")


def test_more_connections_than_a_worker_may_have_keep_nobody_out(start_service: StartService) -> None:
    """Those that have been idle for the longest time are closed."""
    service = start_service(command=(*GUNICORN, "100"))
    job = service.run(argv=["true"])

    with idle_connections(service, 300):
        assert slowest_look_up(service, f"/v1/jobs/{job['id']}") < GENEROUS


def test_half_requests_take_a_limited_amount_of_memory(start_service: StartService) -> None:
    service = start_service(command=(*GUNICORN, "1000"))
    begin = head(service, "Content-Type: application/json", "Content-Length: 65000") + b" " * 64_000

    with ExitStack() as stack:
        clients = [stack.enter_context(connected(service, begin)) for _ in range(300)]
        assert eventually(lambda: select.select([clients[0]], [], [], 0)[0])
        assert clients[0].recv(100).startswith(b"HTTP/1.1 503 ")
        assert requests.get(f"{service.url}/healthz", timeout=10).ok


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\nHost: localhost\n\n"]
)
def test_what_is_no_http_is_refused_at_once(service: Service, data: bytes) -> None:
    with connected(service, data) as client:
        client.settimeout(8)  # less than half a head may take
        assert client.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_clients_that_take_a_file_slowly_keep_nobody_from_being_answered(start_service: StartService) -> None:
    """There are more of them than there are threads."""
    few = {"workers": 1, "threads": 1, "max_followers": 1, "max_waiters": 1}
    service = start_service({"server": few})
    job = service.run(command="truncate -s 200M large")
    request = head(service, method="GET", path=f"/v1/jobs/{job['id']}/files/large")
    threads = sum(few.values()) - few["workers"] + MOST_READERS + MOST_TAKERS
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(socket.socket())) for _ in range(2 * threads)]
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", service.port))
            client.sendall(request)
        assert eventually(lambda: len(select.select(clients, [], [], 0)[0]) >= threads)

        assert service.get("/v1/jobs", timeout=30).status_code == 200
