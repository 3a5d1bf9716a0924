"""What a job has left behind is ended with it: SIGTERM, the grace period, SIGKILL."""

import logging
import signal
import time
from collections.abc import Callable, Iterable

from jobrunner.executor.ending import Ending
from jobrunner.executor.tree import Member

logger = logging.getLogger("jobrunner.executor")

_KILL_PATIENCE = 5.0
"""Seconds that a process may take to be gone after SIGKILL: it may hang in the kernel."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
"""Seconds between two looks at what is left."""


Send = Callable[[Iterable[Member], int], bool]
"""Sends all of them a signal."""


def end_leftovers(look: Callable[[], list[Member]], send: Send, ending: Ending, doze: Callable[[float], bool]) -> bool:
    """End what a job has left behind, and return when it is gone, or can't be killed.

    Args:
        look: finds what is left.
        send: see `Send`.
        ending: of the job: those that it has left were told with it, if it was told to end.
        doze: lets so many seconds pass; returns False when nobody is to wait any longer.

    Returns:
        False when ``doze`` did.
    """
    members = look()
    if members:
        _begin(members, send, ending)
    killed_at: float | None = None
    pause = _FIRST_PAUSE
    while members and (killed_at is None or time.monotonic() < killed_at + _KILL_PATIENCE):
        if ending.is_kill_due():
            killed_at = killed_at or time.monotonic()
            if ending.state is not None and not ending.was_sent(signal.SIGKILL):
                ending.note(signal.SIGKILL)
            send(members, signal.SIGKILL)
        if not doze(pause):
            return False
        pause = min(pause * 1.5, _LONGEST_PAUSE)
        members = look()
    if members:
        logger.warning("processes that survive SIGKILL: %s", ", ".join(str(member.pid) for member in members))
    return True


def _begin(members: list[Member], send: Send, ending: Ending) -> None:
    if ending.was_sent(signal.SIGKILL):
        ending.kill_at = time.monotonic()
    elif ending.state is None:  # else they were told with the others
        logger.info("has left %d processes behind; ending them", len(members))
        send(members, signal.SIGTERM)
        ending.kill_within(ending.grace())
