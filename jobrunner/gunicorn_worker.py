"""A gunicorn thread worker that gives a thread only to a request that is there.

gunicorn's own (27.0) hands each accepted connection to a thread, which waits up
to five seconds for the first byte, and for as long as a client likes for the
rest: as many such clients as there are threads, and nobody else is answered.
It also closes connections in its main loop with blocking reads, so that one
client that does not close its end stops all others.

Here the main loop holds every connection that waits for its client: for the
first byte, for the rest of a request, for the next one, for the client's end.
That costs a descriptor and some bytes, and no thread. Of a large body the loop
takes the begin only; for the rest some threads are set aside, once the
application knows whose it is. For plain HTTP/1; relies on gunicorn's
internals, hence the bounds of its version in ``setup.cfg``. It is one module, for
all of it is about who owns a connection: the loop, or a thread.
"""

import errno
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from selectors import EVENT_READ
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from jobrunner.forkguard import ForkGuard
from jobrunner.gunicorn_connection import ANSWER_SECONDS, ClientSocket, PatientConn
from jobrunner.gunicorn_errors import find_refusal
from jobrunner.incoming import State
from jobrunner.seats import Seats
from jobrunner.web.refusal import Refuser

FIRST_BYTE_SECONDS = 10.0
"""How long a new connection may say nothing."""

LINGER_SECONDS = 2.0
"""How long to wait for the client's end after ours (RFC 9112, section 9.6)."""

MOST_READERS = 4
"""Threads that may wait for the rest of a large body."""

QUEUE_SECONDS = 10.0
"""How long a large body may wait for those before it."""

STOP_SECONDS = 1.0
"""How long a request may take to come, or the rest of one, when the worker is told to stop."""

STALL_SECONDS = 0.02
"""When all threads are taken and none was given back for so long, new clients are left to the other workers."""

MOST_HELD = 1 << 24
"""Bytes of requests that are not all there; beyond, the oldest of them is given up."""

_AT_A_TIME = 1 << 14
_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_REFUSALS: dict[State, tuple[int, str]] = {
    State.NO_HTTP: (400, "this is no HTTP/1 request; the service speaks no TLS itself"),
    State.LONG_HEAD: (431, "the request line and the header fields are too long, all in all"),
}

_guard = ForkGuard()


class PatientWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module. `_serve` runs on the pool's threads; all the rest in the main loop, if nothing else is said."""

    unread_patience = 0.01
    """Seconds that the rest of a body may take which nobody reads."""

    on_stop: Callable[[], None] | None = None
    """Called once when the worker is told to stop: has requests return that wait for something."""

    refuser = Refuser({})
    """Says what is not answered by the application."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _guard.expect()  # the master makes this object, and forks
        self._waiting: dict[PatientConn, bool] = {}  # registered in the poller → whether it only lingers
        self.readers = Seats[PatientConn](MOST_READERS, QUEUE_SECONDS, self._submit_large)
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

    def is_parent_alive(self) -> bool:
        """Look; without a parent the worker stops as if it had been told to, so that it closes the listener at once."""
        is_alive: bool = super().is_parent_alive()
        self.alive: bool = self.alive and is_alive
        return is_alive

    # ── new connections ──

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take part in accepting, or not; the loop asks on each turn, and at last when it stops."""
        super().set_accept_enabled(enabled and not self._is_stalled())
        if not enabled and not self.alive:
            # Requests may take a while to be answered; whoever starts the service anew must be able to listen.
            for listener in self.sockets:
                listener.close()

    def _is_stalled(self) -> bool:
        now = time.monotonic()
        taken = self._busy >= self.cfg.threads and now - self._last_done > STALL_SECONDS
        return taken or now < self._accept_again_at

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection, unless another worker was faster."""
        try:
            client, address = ClientSocket.accept_from(listener)
        except OSError as error:
            if error.errno in _OUT_OF_FILES:  # else the listener would be readable in a tight loop
                self.log.error("can't accept connections: %s", error)  # noqa: TRY400
                self._accept_again_at = time.monotonic() + 0.5
                self.set_accept_enabled(enabled=False)
            return
        with self._lock:
            self.nr_conns += 1
            oldest = next(iter(self._waiting), None)
        if self.nr_conns >= self.worker_connections and oldest is not None:
            self._drop(oldest)  # else whoever keeps enough of them would keep everybody out
        self._await(PatientConn(self.cfg, client, address, listener.getsockname()), FIRST_BYTE_SECONDS)

    # ── connections that wait for their client ──

    def _await(self, conn: PatientConn, seconds: float, *, lingering: bool = False) -> None:
        """Have the loop hold a connection. The caller must not touch it any more: the next event is another's."""
        conn.timeout = time.monotonic() + seconds
        conn.sock.settimeout(0)  # the loop must not wait for one
        with self._lock:  # the loop may have an event before the next line is reached
            self.poller.register(conn.sock, EVENT_READ, partial(self._on_readable, conn))
            self._waiting[conn] = lingering

    def _on_readable(self, conn: PatientConn, _socket: object) -> None:
        with self._lock:
            lingering = self._waiting[conn]
        try:
            data = conn.sock.recv(_AT_A_TIME)
        except BlockingIOError:
            return
        except OSError:
            self._drop(conn)
            return
        if lingering or not (data or conn.incoming.data):
            if not data:
                self._drop(conn)  # it has closed its end too
            return
        state = conn.incoming.feed(data, time.monotonic())
        if state is State.MORE:
            conn.timeout = conn.incoming.deadline
        else:
            self._forget(conn)
            self._begin(conn, state)

    def _forget(self, conn: PatientConn) -> None:
        del self._waiting[conn]
        self.poller.unregister(conn.sock)

    def _drop(self, conn: PatientConn) -> None:
        self._forget(conn)
        self._close(conn)

    def _close(self, conn: PatientConn) -> None:
        with self._lock:
            self.nr_conns -= 1
        conn.close()

    def _refuse(self, conn: PatientConn, status: int, detail: str) -> None:
        """Answer instead of the application, and wait for the client's end. On any thread."""
        try:
            conn.sock.settimeout(0)
            conn.sock.send(self.refuser.render(_port_of(conn.sock), status, detail))
            conn.sock.shutdown(socket.SHUT_WR)
            self._await(conn, LINGER_SECONDS, lingering=True)
        except OSError:
            self._close(conn)

    def murder_pending(self) -> None:
        """Close what has waited too long, and when stopping what is only kept; the loop calls it on each turn."""
        now = time.monotonic()
        if now < self._sweep_at and self.alive:
            return
        self._sweep_at = now + 0.25
        held = 0
        for conn, lingering in list(self._waiting.items()):
            count = len(conn.incoming.data)
            held += count
            if not self.alive and not lingering:
                # A client that keeps a connection expects it to be closed; one that has just made it is about to ask.
                asks = count or not conn.initialized or _has_data(conn)
                conn.timeout = min(conn.timeout, now + STOP_SECONDS if asks else now)
            if now < conn.timeout:
                continue
            if count and not lingering:
                self._forget(conn)
                self._refuse(conn, 408, "the request came too slowly")
            else:
                self._drop(conn)
        if held > MOST_HELD:
            self._give_up(held - MOST_HELD)
        for conn in self.readers.expired(now):
            self._refuse(conn, 503, "too many large requests come at once; try again later")

    def _give_up(self, excess: int) -> None:
        """Refuse requests of which some has come, the oldest first, until so many bytes are free."""
        for conn, lingering in list(self._waiting.items()):
            if excess > 0 and conn.incoming.data and not lingering:
                excess -= len(conn.incoming.data)
                self._forget(conn)
                self._refuse(conn, 503, "too many requests are not all there; send faster, or again later")

    # ── requests ──

    def _begin(self, conn: PatientConn, state: State) -> None:
        """Go on with a connection on which a request has come, or something that is none. On any thread."""
        if state in _REFUSALS:
            self._refuse(conn, *_REFUSALS[state])
        elif state is State.LARGE:
            self.readers.enter(conn, time.monotonic())
        else:
            self._submit(conn)

    def _submit(self, conn: PatientConn) -> None:
        with self._lock:
            self._busy += 1
        self.tpool.submit(self._serve, conn)

    def _submit_large(self, conn: PatientConn) -> None:
        conn.begin_reading(self.readers.leave)
        self._submit(conn)

    def handle_request(self, req: Any, conn: PatientConn) -> bool:
        """Answer a request whose head is there. Runs in the pool."""
        conn.sock.settimeout(ANSWER_SECONDS)
        answered: bool = super().handle_request(req, conn)
        return answered

    def handle_error(self, _req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer a request that the parser refuses, or that has failed outside of the application. Runs in the pool."""
        status, detail = find_refusal(exc) or (500, "the service has made a mistake; its log tells more")
        if status == 500:
            self.log.error("a request has failed", exc_info=exc)
        else:
            # Not the words: they may repeat what was sent, a secret for example.
            self.log.info("refused what %s has sent: %s", addr, type(exc).__name__)
        try:
            client.sendall(self.refuser.render(_port_of(client), status, detail))
        except OSError:
            self.log.debug("nobody is there to be told of an error")

    def _keepalive_after(self, conn: PatientConn, keepalive: bool) -> bool:
        """Tell whether another request may follow: there must be nothing left of this one. Runs in the pool."""
        # Nobody waits here for a body that the application did not want: the connection is closed. But what is here
        # already takes no waiting, and the client was told that it may go on, however late this thread is.
        deadline = None if conn.was_received() else time.monotonic() + self.unread_patience
        return keepalive and bool(conn.parser.finish_body(deadline=deadline))

    def _serve(self, conn: PatientConn) -> None:
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
            conn.end_reading()
            self._last_done = time.monotonic()
            self._after(conn, keep=keep)
            if not self._accepting or not self.alive:
                self.method_queue.defer(_do_nothing)  # the loop waits for this

    def _after(self, conn: PatientConn, *, keep: bool) -> None:
        conn.incoming.clear()
        try:
            if not keep:
                conn.sock.shutdown(socket.SHUT_WR)
                self._await(conn, LINGER_SECONDS, lingering=True)
            elif rest := conn.take_rest():  # the next request was read with this one
                now = time.monotonic()
                state = conn.incoming.feed(rest, now)
                if state is State.MORE:
                    self._await(conn, conn.incoming.deadline - now)
                else:
                    self._begin(conn, state)
            else:
                self._await(conn, self.cfg.keepalive)
        except (OSError, ValueError):  # the client, or the handler, has closed it
            self._close(conn)


def _do_nothing() -> None:
    pass


def _has_data(conn: PatientConn) -> bool:
    try:
        return bool(conn.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def _port_of(client: socket.socket) -> int | None:
    """Return the port that a client has connected to; None: it has come by a unix socket."""
    return None if client.family == socket.AF_UNIX else client.getsockname()[1]
