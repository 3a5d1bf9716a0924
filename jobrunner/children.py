"""The two children of the supervisor: how one is started, what it tells, and when it is started again."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobrunner.listener import Listeners
from jobrunner.parent import PARENT, READY, READY_FD

EXECUTOR, WEB = "executor", "web"
"""Names in the log, and (hidden) commands of ``jobrunner``."""

LISTEN_FDS = "_JOBRUNNER_LISTEN_FD"
"""Tells ``jobrunner web`` which descriptors to accept connections from."""

DRAINED = 75
"""Exit code of an executor that was drained: nothing is left to do."""

FIRST_DELAY, MOST_DELAY, LONG_LIFE = 0.2, 30.0, 2.0
"""Seconds until a child that died is started again: doubled while they die at once, up to a most."""

RETRY_SECONDS = 1.0
"""Between two tries to start a process that the system refuses."""


@dataclass
class Child:
    """A process of ours: the executor, or gunicorn's master.

    Attributes:
        ready_fd: where it tells how far it is; None once it has, or was taken over.
        is_up: it has told that it is ready, or stands by.
        is_leaving: it was told to end.
    """

    name: str
    pid: int
    started_at: float
    ready_fd: int | None = None
    is_up: bool = False
    is_leaving: bool = False

    def hear(self) -> None:
        """Take in what it tells; only when ``ready_fd`` is readable."""
        assert self.ready_fd is not None
        word = os.read(self.ready_fd, 16)
        self.is_up = self.is_up or bool(word)
        if not word or READY in word:
            self.close()

    def close(self) -> None:
        """Listen to it no longer."""
        if self.ready_fd is not None:
            os.close(self.ready_fd)
            self.ready_fd = None


def command_line(name: str) -> list[str]:
    """Return that of a child of this name."""
    return [sys.executable, "-m", "jobrunner", name]


def start_child(name: str, environ: Mapping[str, str], listeners: Listeners) -> Child:
    """Start a process of the service, which inherits the listeners if it is gunicorn.

    Raises:
        OSError: no descriptor, no memory, or no process is to be had.
    """
    ready, write = os.pipe2(os.O_CLOEXEC)
    environ = {**environ, READY_FD: str(write), PARENT: str(os.getpid())}
    inherited = [write]
    if name == WEB:
        sockets = [listener.fileno() for listener in listeners.sockets]
        environ[LISTEN_FDS] = ",".join(map(str, sockets))
        inherited.extend(sockets)
    for fd in inherited:
        os.set_inheritable(fd, True)
    try:
        # A group of its own: what a terminal sends to all is for us to pass on.
        pid = os.posix_spawn(sys.executable, command_line(name), environ, setpgroup=0)
    except BaseException:
        os.close(ready)
        raise
    finally:
        for fd in inherited:
            os.set_inheritable(fd, False)
        os.close(write)
    return Child(name, pid, time.monotonic(), ready)


def peek() -> os.waitid_result | None:
    """Look at a child that has ended, without reaping it."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return None


class Restarts:
    """Which children are to be started again, and when: ever later, as long as they die at once."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._delays: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._at)

    @property
    def times(self) -> Sequence[float]:
        """When they are due, by the monotonic clock."""
        return list(self._at.values())

    def add_dead(self, child: Child) -> float:
        """Plan the next one of a child that has died; return the seconds until then."""
        now = time.monotonic()
        delay = FIRST_DELAY if now - child.started_at > LONG_LIFE else self._delays.get(child.name, FIRST_DELAY)
        self._delays[child.name] = min(delay * 2, MOST_DELAY)
        self._at[child.name] = now + delay
        return delay

    def add_refused(self, name: str) -> None:
        """Plan to try it again with one that the system has refused."""
        self._at[name] = time.monotonic() + RETRY_SECONDS

    def take_due(self, now: float) -> list[str]:
        """Return the names of those that are to be started now, and forget them."""
        due = [name for name, at in self._at.items() if now >= at]
        for name in due:
            del self._at[name]
        return due

    def clear(self) -> None:
        """Start none of them again."""
        self._at.clear()
