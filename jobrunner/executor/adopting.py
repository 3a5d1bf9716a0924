"""Processes that another executor has started: how they are written down, found again, and watched.

They are not our children: nobody tells us their exit status, and their pids may
become others'.
"""

import errno
import fcntl
import os
import select
import struct
import time
from collections.abc import Callable

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.spec import COOKIE, STEP_COOKIE
from jobrunner.executor.process import Process, StatusUnknown, signal_group
from jobrunner.proc import boot_id, list_pids, read_environ, read_stat
from jobrunner.spool import ProcessRecord

REAP_PATIENCE = 10.0
"""Seconds to wait for another's zombie to be reaped, where only then its status can be seen."""


FindEnd = Callable[[int, int], int | None]
"""Looks up the wait status of an orphan that the supervisor has reaped, by pid and start ticks."""


class AdoptedProcess:
    """A process that an executor before us has started: not our child, so not ours to reap."""

    is_child = False

    def __init__(self, record: ProcessRecord, pidfd: int, find_end: FindEnd) -> None:
        self.pid = record.pid
        self.pidfd = pidfd
        self._start_ticks = record.start_ticks
        self._find_end = find_end
        self._ended_at: float | None = None

    def exit_status(self) -> ExitStatus | None:
        """See `Process`. Its zombie shows the status, or the kernel (Linux ≥ 6.15), or whoever has reaped it."""
        if not _is_readable(self.pidfd):
            return None
        stat = read_stat(self.pid)
        if stat is None or stat.start_ticks != self._start_ticks:
            status = _pidfd_exit_status(self.pidfd)
            if status is None and (written := self._find_end(self.pid, self._start_ticks)) is not None:
                status = ExitStatus.from_wait_status(written)
            if status is None:
                raise StatusUnknown
            return status
        if _may_see_exit_code(self.pid):
            return ExitStatus.from_wait_status(stat.exit_code)
        # Another user's zombie shows 0 whatever its status is: its parent must
        # reap it first. The descriptor is readable, so a poll does not wait.
        self._ended_at = self._ended_at or time.monotonic()
        if time.monotonic() - self._ended_at > REAP_PATIENCE:
            raise StatusUnknown
        time.sleep(0.01)
        return None

    def signal_group(self, number: int) -> bool:
        """See `Process`. Once it has ended the id of its group may be another's."""
        return not _is_readable(self.pidfd) and signal_group(self.pid, number)

    def release(self) -> None:
        """See `Process`."""
        os.close(self.pidfd)

    leave = close = release


def identify(process: Process, step: int = 0) -> ProcessRecord:
    """Describe a child that runs a step so that it can be found again after a crash of the executor."""
    stat = read_stat(process.pid)
    assert stat is not None, "a child that was not reaped has a line in /proc"
    return ProcessRecord(process.pid, stat.start_ticks, boot_id(), step)


def adopt(record: ProcessRecord, find_end: FindEnd) -> AdoptedProcess | None:
    """Take hold of a job's process by its record; None when it is gone. Waits for a descriptor if none is to be had."""
    while True:
        try:
            pidfd = os.pidfd_open(record.pid)
            break
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
                return None  # nobody has the pid now, or a thread has
            time.sleep(_LOOK_PAUSE)
    # First the descriptor, then the check: from here on the pid can't change hands unseen.
    stat = read_stat(record.pid)
    if record.boot_id != boot_id() or stat is None or stat.start_ticks != record.start_ticks:
        os.close(pidfd)
        return None
    return AdoptedProcess(record, pidfd, find_end)


def age(record: ProcessRecord) -> float:
    """Return the seconds since a process of this boot has started, whatever was done to the wall clock."""
    # It started somewhere in that tick: rather a little too young than ended early.
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - (record.start_ticks + 1) / os.sysconf("SC_CLK_TCK"), 0)


def find_by_cookie(job_id: str, step: int = 0) -> ProcessRecord | None:
    """Look for a process of this step of a job that leads a session, of which no record was written."""
    cookies = {f"{COOKIE}={job_id}".encode()}
    if step:
        # No other step has run when this is asked about the first one; and one of before an upgrade has no index.
        cookies.add(f"{STEP_COOKIE}={step}".encode())
    for attempt in range(_LOOKS):
        if attempt:
            time.sleep(_LOOK_PAUSE)
        leaders = [
            ProcessRecord(pid, stat.start_ticks, boot_id(), step)
            for pid in list_pids()
            if cookies <= read_environ(pid) and (stat := read_stat(pid)) is not None and stat.session == pid
        ]
        if leaders:
            # The job may have started others with setsid(2) since.
            return min(leaders, key=lambda record: (record.start_ticks, record.pid))
    return None


# In the middle of execve(2) a process has no environment yet, and before it that of the executor; on a machine
# with much to do that may last.
_LOOKS = 30
_LOOK_PAUSE = 0.1


def _may_see_exit_code(pid: int) -> bool:
    """Tell whether ``/proc/PID/stat`` shows us the real exit code: to root, and to the same user (proc(5))."""
    me = os.geteuid()
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            uids = next(line for line in file if line.startswith(b"Uid:")).split()[1:4]
    except (OSError, StopIteration):
        return False
    return me == 0 or all(int(uid) == me for uid in uids)


def _is_readable(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd)
    return bool(poll.poll(0))


# include/uapi/linux/pidfd.h: PIDFD_GET_INFO is _IOWR(0xFF, 11, struct pidfd_info).
_PIDFD_INFO_SIZE = 64
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO_SIZE << 16 | 0xFF << 8 | 11


def _pidfd_exit_status(pidfd: int) -> ExitStatus | None:
    """Ask the kernel how a process ended that need not be our child; None: not yet, or a kernel that can't tell."""
    buffer = bytearray(_PIDFD_INFO_SIZE)
    struct.pack_into("=Q", buffer, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    if not struct.unpack_from("=Q", buffer)[0] & _PIDFD_INFO_EXIT:
        return None
    return ExitStatus.from_wait_status(struct.unpack_from("=i", buffer, _PIDFD_INFO_SIZE - 4)[0])
