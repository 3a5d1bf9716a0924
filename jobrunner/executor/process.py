"""Processes of jobs: our own children, and those that another executor started.

The only module that starts processes for jobs. A signal is a request: only
the exit status that the kernel reports decides how a process ended.
"""

import errno
import fcntl
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, JobError
from jobrunner.domain.spec import COOKIE, STEP_COOKIE
from jobrunner.executor.confine import Confinement
from jobrunner.proc import boot_id, list_pids, read_environ, read_stat
from jobrunner.programs import is_itself
from jobrunner.spool import JobStreams, ProcessRecord

_RESET_BY_POPEN = {signal.SIGPIPE, signal.SIGXFSZ}

REAP_PATIENCE = 10.0
"""Seconds to wait for another's zombie to be reaped, where only then its status can be seen."""


def heed_all_signals() -> None:
    """Have jobs ignore no signal because whoever started the service does; only for a main thread.

    A shell's ``&`` ignores SIGINT and SIGQUIT, nohup(1) SIGHUP. What is ignored
    stays so over execve(2), and a shell can't even trap it; what has a handler,
    though it does nothing, is back to its default there.
    """
    for number in signal.valid_signals() - _RESET_BY_POPEN:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


class SpawnError(Exception):
    """A process could not be made."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.detail)
        self.error = error


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


class ChildProcess:
    """A process that this executor has started."""

    is_child = True

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        # Nobody reaps our child before `release`, so the pid is still its own.
        self.pidfd = os.pidfd_open(popen.pid)

    def exit_status(self) -> ExitStatus | None:
        """See `Process`. The zombie stays, so that whoever comes after a crash still finds the status."""
        info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return ExitStatus.from_siginfo(info.si_code, info.si_status) if info else None

    def signal_group(self, number: int) -> bool:
        """See `Process`. Until it is reaped the pid, and so the group's id, can't be given to another."""
        return _signal_group(self.pid, number)

    def close(self) -> None:
        """See `Process`."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def release(self) -> None:
        """See `Process`."""
        self.close()
        self._popen.wait()

    def leave(self) -> None:
        """See `Process`."""
        self.close()
        # Else subprocess would reap it, and with it the status, at the start of some other process.
        self._popen.returncode = -1


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
        return not _is_readable(self.pidfd) and _signal_group(self.pid, number)

    def release(self) -> None:
        """See `Process`."""
        os.close(self.pidfd)

    leave = close = release


_NOT_CONFINED = Confinement()


def spawn(
    argv: Sequence[str],
    *,
    executable: str | None = None,
    cwd: str,
    env: Mapping[str, str],
    streams: JobStreams,
    before: Callable[[], object] | None = None,
    confinement: Confinement = _NOT_CONFINED,
    pass_fds: Sequence[int] = (),
) -> ChildProcess:
    """Start a process as the leader of a new session.

    Args:
        argv: a program without a slash is looked for in the ``PATH`` of ``env``.
        executable: the file that is executed instead: one that `find_program` has found and somebody has judged.
        cwd: where it starts.
        env: its whole environment.
        streams: its standard streams; still the caller's to close.
        before: called in the new process before it executes anything; it must take no lock. Costs a fork(2) where
            otherwise a vfork(2) does.
        confinement: as whom it runs, and within which limits. If there are any, that costs the same.
        pass_fds: descriptors that it has besides.

    Raises:
        SpawnError: with the system's words.
    """
    check_unchanged(executable)
    confined = confinement.popen_arguments(cwd, before)
    for attempt in range(_BUSY_ATTEMPTS):
        try:
            popen = subprocess.Popen(
                argv,
                executable=executable,
                cwd=cwd,
                env=env,
                stdin=streams.stdin,
                stdout=streams.stdout,
                stderr=streams.stderr,
                start_new_session=True,
                pass_fds=pass_fds,
                **confined,
            )
        except OSError as error:
            # A script that was just written may still be open for writing in
            # a child that another thread is starting at this moment.
            if error.errno == errno.ETXTBSY and attempt + 1 < _BUSY_ATTEMPTS:
                time.sleep(0.01)
                continue
            raise SpawnError(_explain(error, executable or argv[0], cwd)) from error
        except subprocess.SubprocessError as error:
            raise SpawnError(_explain_refusal(error, cwd, confinement)) from error
        except ValueError as error:
            raise SpawnError(JobError(ErrorCode.SPAWN_FAILED, str(error))) from error
        try:
            return ChildProcess(popen)
        except OSError as error:
            # Without a descriptor nobody would notice its end.
            _signal_group(popen.pid, signal.SIGKILL)
            popen.wait()
            raise SpawnError(explain_os_error(error)) from error
    raise AssertionError("unreachable")


_BUSY_ATTEMPTS = 50

_CODES = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.ENOTDIR: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.PERMISSION_DENIED,
    errno.EPERM: ErrorCode.PERMISSION_DENIED,
    errno.ENOEXEC: ErrorCode.EXEC_FORMAT,
    errno.E2BIG: ErrorCode.ARGUMENTS_TOO_LONG,
    errno.ENOSPC: ErrorCode.NO_SPACE,
}


def explain_os_error(error: OSError) -> JobError:
    """Put what the system says into a job's words."""
    code = _CODES.get(error.errno or 0, ErrorCode.SPAWN_FAILED)
    where = f": {os.fsdecode(error.filename)}" if error.filename is not None else ""
    return JobError(code, f"{error.strerror or error}{where}")


def _explain_refusal(error: subprocess.SubprocessError, cwd: str, confinement: Confinement) -> JobError:
    """Tell what the new process has failed with before it executed anything; subprocess does not say."""
    if confinement.user is None:
        return JobError(ErrorCode.SPAWN_FAILED, str(error))
    # All but this was tried when the service has started.
    return JobError(ErrorCode.BAD_CWD, f"{confinement.user.name}, as whom jobs run, may not go there: {cwd}")


def _explain(error: OSError, program: str, cwd: str) -> JobError:
    # subprocess names the directory when the child did not get as far as exec.
    if error.filename == cwd and cwd != program:
        return JobError(ErrorCode.BAD_CWD, f"{error.strerror}: {cwd}")
    explained = explain_os_error(error)
    if error.errno == errno.ENOENT and "/" in program and os.path.exists(os.path.join(cwd, program)):
        return explain_missing_interpreter(error)
    return explained


def check_unchanged(executable: str | None) -> None:
    """Look whether the path of a program that was judged still leads to what it led to; None: none was.

    Raises:
        SpawnError: it leads somewhere else now, or to nothing.
    """
    if executable is None or is_itself(executable):
        return
    if not os.path.lexists(executable):
        raise SpawnError(JobError(ErrorCode.NOT_FOUND, f"{os.strerror(errno.ENOENT)}: {executable}"))
    words = f"{executable} is no longer the program that it was when the job was submitted"
    raise SpawnError(JobError(ErrorCode.PERMISSION_DENIED, words))


def explain_missing_interpreter(error: OSError) -> JobError:
    """Tell what the system does not: not the program is missing, but what it names in its first line."""
    explained = explain_os_error(error)
    return JobError(explained.code, f"{explained.detail} (the file is there; the interpreter it names is not)")


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


def _signal_group(pgid: int, number: int) -> bool:
    try:
        os.killpg(pgid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # what is left has become another user's
    return True


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
