"""What a process of a job can be asked and told, whoever has started it: see `spawning` and `adopting`.

A signal is a request: only the exit status that the kernel reports decides how
a process ended.
"""

import os
from typing import Protocol

from jobrunner.domain.exitstatus import ExitStatus


class StatusUnknown(Exception):
    """A process has ended, and nobody can tell how."""


class Process(Protocol):
    """A process that leads the session of a job."""

    pid: int
    """Also the id of its process group and session."""

    pidfd: int
    """Readable once the process has ended."""

    is_child: bool
    """It is ours: until `release` nobody else can get its pid."""

    def exit_status(self) -> ExitStatus | None:
        """Return how it ended, without reaping it; None while it runs.

        Raises:
            StatusUnknown: it has ended, but its status can't be learnt any more.
        """

    def signal_group(self, number: int) -> bool:
        """Send a signal to everything in its process group. False when nobody was there."""

    def close(self) -> None:
        """Close the descriptor of one that has ended, and is to be reaped later."""

    def release(self) -> None:
        """Reap it, if it is ours, and close the descriptor."""

    def leave(self) -> None:
        """Close the descriptor, and let it run on without us; whoever takes over finds it by its record."""


def signal_group(pgid: int, number: int) -> bool:
    """Send a signal to a process group that is known to be the job's. False when nobody was there."""
    try:
        os.killpg(pgid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # what is left has become another user's
    return True
