"""Wake-ups between processes: datagrams on unix sockets.

A hint carries no state: what it is about is in the database, and whoever
waits for one also looks by itself after a while. So any hint may be lost.

The executor listens at ``DATA/run/executor.sock`` for a `Hint`, and who sends
callbacks at ``DATA/run/callbacks.sock`` for any datagram. Whoever waits for
the end of a job listens at an abstract address made of the job's id
(unix(7)): no file that could be left over, and nobody to tell who waits.
"""

import os
import select
import socket
import threading
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Self

_EXECUTOR = "executor.sock"
_DELIVERER = "callbacks.sock"


class Hint(Enum):
    """What the executor should look for."""

    QUEUED = b"q"
    """A job waits in the queue."""

    CONTROL = b"c"
    """A running job should end, or get a signal."""


class Inbox:
    """A socket that hints come to. `wait` is for one thread; the others may only `interrupt`."""

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound
        self._closing = threading.RLock()  # a signal handler may come while its own thread holds it
        self._poll = select.poll()
        self._poll.register(bound, select.POLLIN)
        self.is_deserted = False

    def watch(self, peer: int) -> None:
        """Have `wait` return as well when the other end of this socket is closed; `is_deserted` tells then."""
        self._poll.register(peer, select.POLLRDHUP)

    def wait(self, seconds: float) -> set[bytes]:
        """Wait for hints at most this long; return all that have come, each once."""
        found: set[bytes] = set()
        ready = self._poll.poll(seconds * 1000)
        self.is_deserted = self.is_deserted or any(fd != self._socket.fileno() for fd, _ in ready)
        if ready:
            with suppress(BlockingIOError):
                while hint := self._socket.recv(256):  # nothing is the end: interrupted
                    found.add(hint)
        return found

    def interrupt(self) -> None:
        """Make `wait` return at once, now and from now on. From any thread, and from a signal handler."""
        # When the inbox is closed already, the descriptor's number may be another's.
        with self._closing:
            if self._socket.fileno() >= 0:
                self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Stop listening."""
        with self._closing:
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Hints:
    """Sends hints; opens inboxes. One object serves all threads of a process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd: int | None = None
        self._opening = threading.Lock()
        self._socket = _make_socket()

    def open_executor_inbox(self) -> Inbox:
        """Listen as the executor of this data directory; its lock must be held."""
        return self._open_inbox(_EXECUTOR)

    def open_deliverer_inbox(self) -> Inbox:
        """Listen as the one who sends the callbacks of this data directory."""
        return self._open_inbox(_DELIVERER)

    def _open_inbox(self, name: str) -> Inbox:
        bound = _make_socket()
        mine = f"{name}.{os.getpid()}.{bound.fileno()}"
        bound.bind(self._address(mine))
        # In the place of one who died; at no moment is there none.
        (self._directory / mine).rename(self._directory / name)
        return Inbox(bound)

    def open_job_inbox(self, job_id: str) -> Inbox:
        """Listen for the end of a job."""
        bound = _make_socket()
        # Several may wait for the same job: each takes the next free place.
        for place in range(_PLACES):
            with suppress(OSError):
                bound.bind(_job_address(job_id, place))
                break
        return Inbox(bound)

    def wake_executor(self, hint: Hint) -> None:
        """Tell the executor that there is something to do."""
        self._wake(_EXECUTOR, hint.value)

    def wake_deliverer(self) -> None:
        """Tell who sends callbacks that one is due."""
        self._wake(_DELIVERER, b"!")

    def _wake(self, name: str, hint: bytes) -> None:
        with suppress(OSError):  # nobody listens, or has too much to do: they look by themselves soon
            self._socket.sendto(hint, self._address(name))

    def job_ended(self, job_id: str, *, owes_callback: bool = False) -> None:
        """Tell everyone who waits for the end of this job, and who sends its callback."""
        if owes_callback:
            self.wake_deliverer()
        for place in range(_PLACES):
            try:
                self._socket.sendto(b"!", _job_address(job_id, place))
            except ConnectionRefusedError:
                # Nobody at this place. One who came late may sit behind one
                # who has left; they look by themselves.
                return
            except OSError:
                continue

    def close(self) -> None:
        """Give the descriptors back."""
        self._socket.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _address(self, name: str) -> str:
        with self._opening:
            if self._fd is None:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # The path of a unix socket has at most 107 bytes, a data directory may have more.
        return f"/proc/self/fd/{self._fd}/{name}"


_PLACES = 256


def _job_address(job_id: str, place: int) -> str:
    return f"\0jobrunner/{job_id}/{place}"


def _make_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
