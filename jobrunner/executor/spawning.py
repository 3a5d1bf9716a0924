"""Processes that this executor starts. The only module that starts processes for jobs."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, JobError
from jobrunner.executor.confine import Confinement
from jobrunner.executor.process import signal_group
from jobrunner.programs import is_itself
from jobrunner.spool import JobStreams

_RESET_BY_POPEN = {signal.SIGPIPE, signal.SIGXFSZ}


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
        return signal_group(self.pid, number)

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
            signal_group(popen.pid, signal.SIGKILL)
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
