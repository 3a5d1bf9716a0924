"""Receivers of callbacks: real HTTP servers on loopback, well-behaved and others."""

import contextlib
import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.service import eventually


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Remembers what it is sent, and answers as it was told: the first request as by the first answer, and so on.

    The last answer is for all that follow.
    """

    def __init__(
        self, *answers: "Answer", trust: ssl.SSLContext | None = None, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.received: list[Received] = []
        self.connections = 0
        self.flooded = 0
        self.closing = threading.Event()
        self._answers = itertools.chain(answers[:-1], itertools.repeat(answers[-1] if answers else status(204)))
        self._next = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = False

            def process_request(self, request: Any, client_address: Any) -> None:
                receiver.connections += 1
                super().process_request(request, client_address)

            def handle_error(self, *_: object) -> None:
                pass  # a client that has gone

        self._server = Server((address, port), Handler)
        if trust is not None:
            self._server.socket = trust.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        port: int = self._server.server_address[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/done"

    def ids(self) -> list[str]:
        return [received.headers["webhook-id"] for received in self.received]

    def wait(self, count: int = 1, within: float = 20.0) -> list[Received]:
        """Wait until so many requests have come; return all."""
        assert eventually(lambda: len(self.received) >= count, within=within), f"{len(self.received)} of {count}"
        return self.received

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._next:
            answer = next(self._answers)
            self.received.append(Received(handler.path, headers, body, time.time()))
        with contextlib.suppress(OSError):
            answer(self, handler)


Answer = Callable[[Receiver, BaseHTTPRequestHandler], None]


def status(code: int, **headers: str) -> Answer:
    """Answer with this status, and headers (``retry_after="5"``)."""

    def answer(_receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def hang(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    """Never answer."""
    receiver.closing.wait(60)
    handler.close_connection = True


def slowly(seconds: float) -> Answer:
    """Answer 204 after a while."""

    def answer(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
        receiver.closing.wait(seconds)
        status(204)(receiver, handler)

    return answer


def drip(text: bytes, every: float = 0.05) -> Answer:
    """Answer byte by byte, for ever: after the text there is more of its last byte."""

    def answer(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        for byte in itertools.chain(text, itertools.repeat(text[-1])):
            handler.wfile.write(bytes([byte]))
            if receiver.closing.wait(every):
                return

    return answer


def flood(receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
    """Answer with more than anybody wants to read, and without an end."""
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        receiver.flooded += 65536  # before: a write that the client cuts short raises
        handler.wfile.write(b"x" * 65536)
        if receiver.closing.is_set():
            return


def say(text: bytes) -> Answer:
    """Send these bytes and close the connection."""

    def answer(_receiver: Receiver, handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(text)
        handler.close_connection = True

    return answer
