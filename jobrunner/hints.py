"""Wake-ups between processes: datagrams on unix sockets in ``DATA/run``.

A hint carries no state: what it is about is in the database, and whoever
waits for one also looks by itself after a while. So any hint may be lost.

``executor.sock`` gets one byte for "there is something to do"; each web worker
that waits for jobs has a ``web-….sock`` of its own and gets the ids of jobs
that have ended.
"""

import errno
import os
import secrets
import select
import socket
from contextlib import suppress
from pathlib import Path

_EXECUTOR = "executor.sock"


class Inbox:
    """A socket that hints come to."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / name
        self._path.unlink(missing_ok=True)  # of one who died
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        try:
            # The path of a unix socket has at most 107 bytes, a data directory may have more.
            self._socket.bind(f"/proc/self/fd/{fd}/{name}")
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(fd)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def wait(self, seconds: float) -> set[bytes]:
        """Wait for hints at most this long; return all that have come, each once."""
        self._poll.poll(seconds * 1000)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        found: set[bytes] = set()
        with suppress(BlockingIOError):
            while True:
                found.add(self._socket.recv(256))
        return found

    def interrupt(self) -> None:
        """Make `wait` return at once. From any thread, and from a signal handler."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop listening."""
        self._path.unlink(missing_ok=True)
        self._socket.close()
        os.close(self._wake)


class Hints:
    """Sends hints; opens inboxes. One object serves all threads of a process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._fd: int | None = None
        self._listed_at: int | None = None
        self._listeners: list[str] = []

    def open_executor_inbox(self) -> Inbox:
        """Listen as the executor of this data directory; its lock must be held."""
        return Inbox(self._directory, _EXECUTOR)

    def open_web_inbox(self) -> Inbox:
        """Listen for jobs that end."""
        return Inbox(self._directory, f"web-{os.getpid()}-{secrets.token_hex(4)}.sock")

    def wake_executor(self) -> None:
        """Tell the executor that there is something to do."""
        self._send(_EXECUTOR, b"!")

    def job_ended(self, job_id: str) -> None:
        """Tell all web workers that a job has ended."""
        for name in self._list_listeners():
            self._send(name, job_id.encode())

    def close(self) -> None:
        """Give the descriptors back."""
        self._socket.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _directory_fd(self) -> int:
        if self._fd is None:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def _list_listeners(self) -> list[str]:
        try:
            changed = os.stat(self._directory_fd()).st_mtime_ns
            if changed != self._listed_at:
                self._listeners = [name for name in os.listdir(self._directory) if name.startswith("web-")]
                self._listed_at = changed
        except OSError:
            return []
        return self._listeners

    def _send(self, name: str, message: bytes) -> None:
        try:
            self._socket.sendto(message, f"/proc/self/fd/{self._directory_fd()}/{name}")
        except OSError as error:
            # Nobody listens, or its buffer is full: it looks by itself soon.
            if error.errno == errno.ECONNREFUSED and name != _EXECUTOR:
                with suppress(OSError):  # left by a worker that was killed
                    (self._directory / name).unlink()
