"""A control group (cgroup v2, Linux ≥ 5.14) for each job, where the service has one to divide.

Nothing that a job starts gets out of it, whatever it does to its session and
its environment, and ``cgroup.kill`` ends all of it at once: not even a fork
bomb is faster. Not every service owns a control group (systemd gives one with
``Delegate=yes``), so without one there are the other means, see `tree`.
"""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

logger = logging.getLogger("jobrunner.executor")

_DELEGATED = ("trusted.delegate", "user.delegate")
"""Attributes by which systemd marks what it leaves to a service."""


class ControlGroups:
    """The control groups of jobs, all in one that is the service's own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def find(cls, setting: str) -> Self | None:
        """Return where jobs get control groups; None: nowhere.

        Args:
            setting: ``no``; ``auto``: in the one of this process, if it was left to the service; or its directory.

        Raises:
            OSError: the directory is no control group, or can't be written.
        """
        if setting == "no":
            return None
        if setting == "auto":
            own = _own_group()
            if own is None or not _is_delegated(own) or not _is_usable(own):
                return None
            return cls(own)
        root = Path(setting)
        _try_out(root)
        return cls(root)

    def path(self, job_id: str) -> Path:
        """Return the directory of a job's control group."""
        return self._root / f"job-{job_id}"

    @contextmanager
    def entrance(self, job_id: str) -> Iterator[Callable[[], Any] | None]:
        """Make the control group of a job; give what its process calls to enter it, before it executes anything.

        To be moved there from outside would be too late: by then it may have started others. Without a group (None)
        all goes on, with a warning.
        """
        path = self.path(job_id)
        try:
            path.mkdir(exist_ok=True)
            door = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            logger.warning("the job gets no control group: %s", error)
            yield None
            return
        try:
            # Nothing but a call of the system: no thread of ours is there to release a lock.
            yield partial(os.write, door, b"0")
        finally:
            os.close(door)

    def list_pids(self, job_id: str) -> list[int]:
        """Return the processes in the control group of a job; zombies are not in it any more."""
        try:
            return [int(pid) for pid in (self.path(job_id) / "cgroup.procs").read_text().split()]
        except OSError:  # there is none, or it was removed
            return []

    def kill(self, job_id: str) -> None:
        """Send SIGKILL to everything in the control group of a job, at once."""
        with suppress(OSError):  # there is none; or the kernel is older than 5.14, and each is killed by itself
            (self.path(job_id) / "cgroup.kill").write_text("1")

    def remove(self, job_id: str) -> None:
        """Remove the control group of a job; what could not be killed keeps it."""
        with suppress(OSError):
            self.path(job_id).rmdir()


def _own_group() -> Path | None:
    """Return the directory of this process's control group in the hierarchy of version 2."""
    with suppress(OSError):
        found = re.search(r"^0::(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
        mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for left, right in (mount for mount in mounts if len(mount) == 2):
            if found and right.startswith("cgroup2 "):
                # proc(5): the fourth field is what of the hierarchy is mounted, the fifth where.
                _, _, _, top, where, *_ = left.split(" ")
                return Path(where, os.path.relpath(found[1], top))
    return None


def _is_delegated(path: Path) -> bool:
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _is_usable(path: Path) -> bool:
    try:
        _try_out(path)
    except OSError:
        return False
    return True


def _try_out(path: Path) -> None:
    """Make a control group, let a process enter it, and remove it again.

    Raises:
        OSError: that is not possible here.
    """
    trial = path / f"try-{os.getpid()}"
    trial.mkdir()
    try:
        os.close(os.open(trial / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        # Who may write there may still not bring a process from elsewhere (cgroups(7), delegation containment).
        enter = ["sh", "-c", 'echo 0 > "$1"', "sh", f"{trial}/cgroup.procs"]
        nowhere = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        _, status = os.waitpid(os.posix_spawn("/bin/sh", enter, {}, file_actions=nowhere), 0)
        if status != 0:
            raise OSError(errno.EACCES, "the service's processes can't be moved into it", str(path))
    finally:
        trial.rmdir()
