"""A client's connection, whose client must neither send nor take so slowly that a thread waits for it for long."""

import io
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from jobrunner.incoming import Incoming

ANSWER_SECONDS = 60.0
"""How long a client may take nothing of an answer; and for all of it, besides what its bytes are worth."""

ANSWER_RATE = 16384
"""Bytes a second of a file: so much time each of them is worth."""


FAST_RATE = 1 << 20
"""Bytes a second: who takes a file at this rate is not waited for so often that it matters."""

MOMENT = 0.25
"""Seconds after which it shows whether a client is fast."""

MOST_TAKERS = 16
"""Threads that may wait for clients that take a file slowly."""


class Takers:
    """The clients that take a file slowly: a thread waits for each. One too many, and the slowest is given up.

    For any thread.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._paces: dict[ClientSocket, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def waiting(self, client: "ClientSocket", pace: float) -> Iterator[None]:
        """Count a client among them, that has taken so many bytes a second, for as long as it is waited for."""
        with self._lock:
            self._paces[client] = pace
            if len(self._paces) > self.most:
                slowest = min(self._paces, key=self._paces.__getitem__)
                with suppress(OSError):  # it has left just now
                    slowest.shutdown(socket.SHUT_RDWR)  # whoever waits for it is woken up
        try:
            yield
        finally:
            with self._lock:
                del self._paces[client]


class ClientSocket(socket.socket):
    """The socket of a client that must take a file in a time that is bounded."""

    patience = ANSWER_SECONDS
    takers = Takers(MOST_TAKERS)

    @classmethod
    def accept_from(cls, listener: socket.socket) -> "tuple[ClientSocket, Any]":
        """Take a new connection; return it, and the address of its client.

        Raises:
            OSError: as accept(2) says.
        """
        accepted, address = listener.accept()
        return cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach()), address

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send so many bytes of a file from there, or all that there are; leave its position behind the last one sent.

        Raises:
            TimeoutError: the client takes them too slowly.
            OSError: there is no client any more, or it was given up for others.
        """
        left = os.fstat(file.fileno()).st_size - offset if count is None else count
        began, sent = time.monotonic(), 0
        try:
            while sent < left:
                try:
                    more = os.sendfile(self.fileno(), file.fileno(), offset + sent, left - sent)
                except BlockingIOError:
                    self._wait_for_space(began, sent)
                    continue
                if not more:
                    break
                sent += more
        finally:
            with suppress(OSError, ValueError):
                file.seek(offset + sent)
        return sent

    def _wait_for_space(self, began: float, sent: int) -> None:
        """Wait for a client that has taken so much since then: one that seems to be slow only together with others."""
        now = time.monotonic()
        left = min(began + self.patience + sent / ANSWER_RATE - now, self.patience)
        if left > MOMENT and (now < began + MOMENT or sent >= FAST_RATE * (now - began)):
            if self._poll(MOMENT):
                return
            left -= MOMENT
        with self.takers.waiting(self, sent / max(now - began, MOMENT)):
            if left <= 0 or not self._poll(left):
                raise TimeoutError("the client takes its answer too slowly")

    def _poll(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self.fileno(), select.POLLOUT)
        return bool(poller.poll(seconds * 1000))


class PatientConn(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A connection, and what has come of the next request on it (`incoming`)."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.incoming = Incoming()
        self.data_ready = True  # always, when a thread gets it
        self._on_read: Callable[[], None] | None = None

    def init(self) -> None:
        """Give the parser what has come; a thread begins with a request."""
        if not self.initialized:
            super().init()
            self.parser.unreader = _Unreader(self)
        self.parser.unreader.supply()

    def begin_reading(self, on_read: Callable[[], None]) -> None:
        """Begin with a large request: call this once when its last byte is there, or it is over."""
        self.incoming.begin_reading(time.monotonic())
        self._on_read = on_read

    def end_reading(self) -> None:
        """Say that nothing is read any more; harmless when nothing was."""
        on_read, self._on_read = self._on_read, None
        if on_read is not None:
            on_read()

    def was_received(self) -> bool:
        """Tell whether all of the current request is here, read or not."""
        return not self.incoming.is_missing(self.parser.unreader.count)

    def take_rest(self) -> bytes:
        """Take back what was received with a request that is answered, but is not of it."""
        rest: bytes = self.parser.unreader.take_buffered()
        return rest


class _Unreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """Has gunicorn's parser read what has been received, and then the rest, which must come fast enough.

    Attributes:
        count: bytes of the current request that are here.
    """

    def __init__(self, conn: PatientConn) -> None:
        super().__init__(conn.sock)
        self._conn = conn
        self.count = 0

    def supply(self) -> None:
        """Begin with what has been received."""
        data = self._conn.incoming.data
        self.buf = io.BytesIO(data)
        self.count = len(data)

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Wait for more of the body.

        Raises:
            TimeoutError: it comes too slowly.
            OSError: there is no client any more.
        """
        left = self._conn.incoming.body_deadline(self.count) - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request comes too slowly")
        self.sock.settimeout(left)
        try:
            data: bytes = super().chunk(size_hint)
        finally:
            self.sock.settimeout(ANSWER_SECONDS)
        self.count += len(data)
        if not self._conn.incoming.is_missing(self.count):
            self._conn.end_reading()
        return data
