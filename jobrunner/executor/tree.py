"""Everything that a job has started, wherever it went.

A process leaves its group and its session with setsid(2), and its parent by
outliving it. What it keeps is its environment, and in it the job's cookie.
"""

import os
import signal
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

from jobrunner.domain.spec import COOKIE
from jobrunner.parent import become_subreaper
from jobrunner.proc import list_children, list_pids, read_environ, read_stat


class Member(NamedTuple):
    """A living process of a job."""

    pid: int
    pgid: int
    start_ticks: int


def list_members(
    job_id: str, *, besides: int | None, leaders: Collection[int], group: Collection[int] = ()
) -> list[Member]:
    """Find what a job has started.

    Args:
        job_id: the cookie.
        besides: pid of the process that runs its step: that one is known.
        leaders: pids of its steps' processes that were not reaped yet, so that these numbers, which are the ids of
            groups and sessions, can't be others'. Of all others only the cookie counts.
        group: pids in the job's control group, if it has one.
    """
    cookie = f"{COOKIE}={job_id}".encode()
    found = []
    for pid in list_pids():
        stat = read_stat(pid) if pid != besides else None
        if stat is None or stat.is_zombie:
            continue
        if pid in group or stat.pgid in leaders or stat.session in leaders or cookie in read_environ(pid):
            found.append(Member(pid, stat.pgid, stat.start_ticks))
    return found


def send(members: Iterable[Member], number: int) -> bool:
    """Signal processes, each only if it is still the one that was found. False when nobody was there."""
    found = False
    for member in members:
        with suppress(OSError):  # it has ended, or has become another user's
            pidfd = os.pidfd_open(member.pid)
            try:
                # First the descriptor, then the check: from here on the pid can't change hands unseen.
                stat = read_stat(member.pid)
                if stat is not None and stat.start_ticks == member.start_ticks:
                    signal.pidfd_send_signal(pidfd, number)
                    found = True
            finally:
                os.close(pidfd)
    return found


class Orphans:
    """The orphans of our jobs: as their reaper, this process becomes their parent.

    So a look at our own children tells whether a job has left anything behind,
    without a search through all processes of the machine. The kernel gives
    orphans to the first thread, which starts no jobs itself.
    """

    def __init__(self) -> None:
        become_subreaper()

    def may_exist(self) -> bool:
        """Tell whether there is any; true when this kernel does not list children."""
        children = list_children(os.getpid())
        return children is None or bool(children)

    def reap(self) -> None:
        """Reap those that have ended. Only from the first thread's point of view: none of them is a job's leader."""
        for pid in list_children(os.getpid()) or ():
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
