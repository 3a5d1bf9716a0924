"""A load generator: one thread, epoll, keep-alive connections, requests made beforehand.

It costs about 30 µs of one core a request, which is part of every figure
here: service and generator share the machine.
"""

import re
import selectors
import socket
import time
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        rate: answers a second.
        latencies: seconds, sorted.
        statuses: how often each status came.
    """

    rate: float
    latencies: list[float]
    statuses: dict[int, int]

    def percentile(self, share: float) -> float:
        """Return a latency in milliseconds: 0.99 is exceeded by one in a hundred."""
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)] * 1000


def make_request(method: str, path: str, token: str, body: bytes = b"", **headers: str) -> bytes:
    """Make the bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.buffer = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """Read what is there; return the status once the answer is complete."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = _LENGTH.search(self.buffer, 0, head)
        assert length, self.buffer[:head]
        if len(self.buffer) < head + 4 + int(length[1]):
            return None
        return int(self.buffer[9:12])


def run(port: int, request: bytes, *, clients: int, seconds: float) -> Result:
    """Have so many clients send this request, each as soon as it has its answer, for so long."""
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    with selectors.EpollSelector() as selector:
        connections = [_Connection(port) for _ in range(clients)]
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(request)
        begin = time.perf_counter()
        end = begin + seconds
        pending = clients
        while pending:
            for key, _ in selector.select(10):
                connection = key.data
                status = connection.receive()
                if status is None:
                    continue
                now = time.perf_counter()
                latencies.append(now - connection.sent_at)
                statuses[status] = statuses.get(status, 0) + 1
                if now < end:
                    connection.send(request)
                else:
                    pending -= 1
        took = time.perf_counter() - begin
        for connection in connections:
            connection.socket.close()
    latencies.sort()
    return Result(len(latencies) / took, latencies, statuses)


def new_connection_latencies(port: int, request: bytes, *, seconds: float) -> list[float]:
    """Send the request on a new connection each time, one after the other; return the latencies, sorted."""
    latencies = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        connection = _Connection(port)
        connection.send(request)
        while connection.receive() is None:
            pass
        latencies.append(time.perf_counter() - begin)
        connection.socket.close()
    return sorted(latencies)
