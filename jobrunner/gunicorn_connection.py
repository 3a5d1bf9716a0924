"""A client's connection, whose client must neither send nor take so slowly that a thread waits for it for long."""

import io
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn

from jobrunner.incoming import Incoming

ANSWER_SECONDS = 60.0
"""How long a client may take nothing of an answer; and for all of it, besides what its bytes are worth."""

ANSWER_RATE = 16384
"""Bytes a second of a file: so much time each of them is worth."""


class ClientSocket(socket.socket):
    """The socket of a client that must take a file in a time that is bounded."""

    patience = ANSWER_SECONDS

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
            OSError: there is no client any more.
        """
        left = os.fstat(file.fileno()).st_size - offset if count is None else count
        began, sent = time.monotonic(), 0
        try:
            while sent < left:
                try:
                    more = os.sendfile(self.fileno(), file.fileno(), offset + sent, left - sent)
                except BlockingIOError:
                    self._wait_for_space(began + self.patience + sent / ANSWER_RATE)
                    continue
                if not more:
                    break
                sent += more
        finally:
            with suppress(OSError, ValueError):
                file.seek(offset + sent)
        return sent

    def _wait_for_space(self, deadline: float) -> None:
        left = min(deadline - time.monotonic(), self.patience)
        poller = select.poll()
        poller.register(self.fileno(), select.POLLOUT)
        if left <= 0 or not poller.poll(left * 1000):
            raise TimeoutError("the client takes its answer too slowly")


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

    def take_rest(self) -> bytes:
        """Take back what was received with a request that is answered, but is not of it."""
        rest: bytes = self.parser.unreader.take_buffered()
        return rest


class _Unreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """Has gunicorn's parser read what has been received, and then the rest, which must come fast enough."""

    def __init__(self, conn: PatientConn) -> None:
        super().__init__(conn.sock)
        self._conn = conn
        self._count = 0

    def supply(self) -> None:
        """Begin with what has been received."""
        data = self._conn.incoming.data
        self.buf = io.BytesIO(data)
        self._count = len(data)

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Wait for more of the body.

        Raises:
            TimeoutError: it comes too slowly.
            OSError: there is no client any more.
        """
        left = self._conn.incoming.body_deadline(self._count) - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request comes too slowly")
        self.sock.settimeout(left)
        try:
            data: bytes = super().chunk(size_hint)
        finally:
            self.sock.settimeout(ANSWER_SECONDS)
        self._count += len(data)
        if not self._conn.incoming.is_missing(self._count):
            self._conn.end_reading()
        return data
