"""What a process has to do with the one that started it."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end us in order (SIGTERM) when our parent dies: prctl(2), PR_SET_PDEATHSIG.

    It survives an exec and is not inherited: jobs are not concerned.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the parent has died before this process had begun")
