"""What a process of the service has to do with the supervisor that started it."""

import ctypes
import os
import signal
from contextlib import suppress

READY_FD = "_JOBRUNNER_READY_FD"
"""The environment variable that names the descriptor for `tell_parent`."""

PARENT = "_JOBRUNNER_PARENT"
"""The environment variable with the supervisor's pid, for `die_with_parent`."""

READY = b"r"
"""The process does its work."""

STANDBY = b"s"
"""An executor waits for the lock that another one holds."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int) -> None:
    """Have the kernel end us in order (SIGTERM) when our parent dies: prctl(2), PR_SET_PDEATHSIG.

    It survives an exec and is not inherited: jobs are not concerned.

    Args:
        parent: its pid, from itself: it may have died before we could look.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the parent has died before this process had begun")


def become_subreaper() -> None:
    """Be the parent of all orphans below us: prctl(2), PR_SET_CHILD_SUBREAPER. It survives an exec."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tell_parent(word: bytes) -> None:
    """Tell the supervisor how far we are; nobody, when there is none or it does not listen any more."""
    fd = os.environ.get(READY_FD)
    if fd is not None:
        with suppress(OSError):
            os.write(int(fd), word)


def ask_to_stop() -> None:
    """Have the supervisor end the service, with exit code 1; at once, but in order."""
    os.kill(int(os.environ[PARENT]), signal.SIGUSR2)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
