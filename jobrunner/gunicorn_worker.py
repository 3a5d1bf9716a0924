"""A gunicorn thread worker that gives a thread only to a client that has something to say.

gunicorn's own (27.0) hands each accepted connection to a thread, which waits up
to five seconds for the first byte: as many idle connections as there are
threads, and nobody else is answered. Browsers and HTTP clients open such spare
connections by themselves. It also closes connections in its main loop with
blocking reads, so that one client that does not close its end stops all others.

Here the main loop holds every connection that waits for its client: for the
first byte, for the next request, for the client's end. That costs a
descriptor and no thread. For plain HTTP/1; relies on gunicorn's internals,
hence the bounds of its version in ``setup.cfg``.
"""

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from selectors import EVENT_READ
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import TConn, ThreadWorker

FIRST_BYTE_SECONDS = 10.0
"""How long a new connection may say nothing."""

HEAD_SECONDS = 10.0
"""How long a client may pause in the middle of a request's head."""

BODY_SECONDS = 60.0
"""How long it may pause in a body, or take nothing of an answer."""

LINGER_SECONDS = 2.0
"""How long to wait for the client's end after ours (RFC 9112, section 9.6)."""

STALL_SECONDS = 0.02
"""When all threads are taken and none was given back for so long, new clients are left to the other workers."""

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


class _ForkGuard:
    """Keeps signals for later, from the fork of a worker until its handlers are there.

    One that is told to stop before would never hear of it, and the master
    would wait for it in vain.
    """

    def __init__(self) -> None:
        self._is_due = False
        self._mask: set[int] = set()
        os.register_at_fork(before=self._block, after_in_parent=self.restore)

    def expect(self) -> None:
        """Guard the next fork: it makes a worker of ours."""
        self._is_due = True

    def _block(self) -> None:
        if self._is_due:
            self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS))

    def restore(self) -> None:
        """Hear signals again as before, those too that came meanwhile."""
        if self._is_due:
            self._is_due = False
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


_guard = _ForkGuard()


_INVALID = "Invalid request from ip="
"""How gunicorn begins the line about a request that it can't read."""


class QuietLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Makes no access log unless somebody reads it; gunicorn's own makes each line first, and then drops it."""

    def access(self, *args: Any) -> None:
        """Log a request."""
        if self.access_log.isEnabledFor(logging.INFO):
            super().access(*args)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log an error with its traceback; a client that was too slow is none."""
        log = super().debug if isinstance(sys.exc_info()[1], TimeoutError) else super().exception
        # Of a URL no query: it may be signed.
        log(msg, *(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in args), **kwargs)

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log a warning; of a request that is none only what is wrong with it, not its text: that may be anything."""
        if msg.startswith(_INVALID):
            msg = f"{msg.partition(': ')[0]}: {type(sys.exc_info()[1]).__name__}"
        super().warning(msg, *args, **kwargs)


class _PatientConn(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A connection whose client must not keep a thread waiting for ever."""

    def init(self) -> None:
        """Begin with a request; its first byte is there."""
        super().init()
        self.sock.settimeout(HEAD_SECONDS)


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module. `_serve` runs on the pool's threads; all the rest in the main loop."""

    on_stop: Callable[[], None] | None = None
    """Called once when the worker is told to stop: has requests return that wait for something."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _guard.expect()  # the master makes this object, and forks
        self._waiting: dict[TConn, bool] = {}  # registered in the poller → whether it only lingers
        self._lock = threading.Lock()
        self._busy = 0
        self._last_done = 0.0
        self._accept_again_at = 0.0
        self._sweep_at = 0.0
        self._notify_at = 0.0

    def init_signals(self) -> None:
        """Hear signals, those too that came since the fork."""
        super().init_signals()
        _guard.restore()

    def notify(self) -> None:
        """Tell the arbiter that the loop turns: at most once a second, its patience is half a minute."""
        now = time.monotonic()
        if now >= self._notify_at:
            self._notify_at = now + 1.0
            super().notify()

    def handle_exit(self, sig: int, frame: object) -> None:
        """Begin to stop."""
        if self.alive and self.on_stop is not None:
            self.on_stop()
        super().handle_exit(sig, frame)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take part in accepting, or not; the loop asks on each turn, and at last when it stops."""
        super().set_accept_enabled(enabled and not self._is_stalled())
        if not enabled and not self.alive:
            # Requests may take a while to be answered; whoever starts the service anew must be able to listen.
            for listener in self.sockets:
                listener.close()

    def is_parent_alive(self) -> bool:
        """Look; without a parent the worker stops as if it had been told to, so that it closes the listener at once."""
        is_alive: bool = super().is_parent_alive()
        self.alive: bool = self.alive and is_alive
        return is_alive

    def _is_stalled(self) -> bool:
        now = time.monotonic()
        taken = self._busy >= self.cfg.threads and now - self._last_done > STALL_SECONDS
        return taken or now < self._accept_again_at

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection, unless another worker was faster."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_FILES:  # else the listener would be readable in a tight loop
                self.log.error("can't accept connections: %s", error)  # noqa: TRY400
                self._accept_again_at = time.monotonic() + 0.5
                self.set_accept_enabled(enabled=False)
            return
        with self._lock:
            self.nr_conns += 1
        self._await(_PatientConn(self.cfg, client, address, listener.getsockname()), FIRST_BYTE_SECONDS)

    def _await(self, conn: TConn, seconds: float, *, lingering: bool = False) -> None:
        """Have the loop hold a connection. The caller must not touch it any more: the next event is another's."""
        conn.timeout = time.monotonic() + seconds
        conn.sock.settimeout(0)  # the loop must not wait for one
        with self._lock:  # the loop may have an event before the next line is reached
            self.poller.register(conn.sock, EVENT_READ, partial(self._on_readable, conn))
            self._waiting[conn] = lingering

    def _on_readable(self, conn: TConn, _socket: object) -> None:
        with self._lock:
            lingering = self._waiting[conn]
        if lingering:
            self._discard(conn)
            return
        self._forget(conn)
        conn.data_ready = True
        self._enqueue(conn)

    def _enqueue(self, conn: TConn) -> None:
        with self._lock:
            self._busy += 1
        self.tpool.submit(self._serve, conn)

    def _discard(self, conn: TConn) -> None:
        """Read on from a client whose connection is over, until it closes its end too."""
        try:
            if conn.sock.recv(65536, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._drop(conn)

    def _forget(self, conn: TConn) -> None:
        del self._waiting[conn]
        self.poller.unregister(conn.sock)

    def _drop(self, conn: TConn) -> None:
        self._forget(conn)
        self._close(conn)

    def _close(self, conn: TConn) -> None:
        with self._lock:
            self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Close what has waited too long, and when stopping what says nothing; the loop calls it on each turn."""
        now = time.monotonic()
        if now < self._sweep_at and self.alive:
            return
        self._sweep_at = now + 0.25
        for conn, lingering in list(self._waiting.items()):
            if now >= conn.timeout or (not self.alive and not lingering and not _has_data(conn)):
                self._drop(conn)

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Answer a request whose head is there."""
        conn.sock.settimeout(BODY_SECONDS)
        answered: bool = super().handle_request(req, conn)
        return answered

    def _serve(self, conn: TConn) -> None:
        """Answer a request, then have the loop wait for the next one, or for the client's end. Runs in the pool.

        The loop itself need not wake up for that: to wait it only has to be in
        the poller. gunicorn's own wakes it for each request.
        """
        keep = False
        try:
            keep = self.handle(conn)
        finally:
            with self._lock:
                self._busy -= 1
            self._last_done = time.monotonic()
            self._after(conn, keep=keep)
            if not self._accepting or not self.alive:
                self.method_queue.defer(_do_nothing)  # the loop waits for this

    def _after(self, conn: TConn, *, keep: bool) -> None:
        try:
            if keep and conn.parser.unreader.buf.getvalue():
                self._enqueue(conn)  # the next request was read with this one
            elif keep:
                self._await(conn, self.cfg.keepalive)
            else:
                conn.sock.shutdown(socket.SHUT_WR)
                self._await(conn, LINGER_SECONDS, lingering=True)
        except (OSError, ValueError):  # the client, or the handler, has closed it
            self._close(conn)


def _do_nothing() -> None:
    pass


def _has_data(conn: TConn) -> bool:
    try:
        return bool(conn.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False
