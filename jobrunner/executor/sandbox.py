"""Jobs that run in a sandbox: what is different in starting them, and in learning how they have ended.

The process that we watch is bubblewrap's. Its session, and so its group, are
those of the job inside, and so is the cookie: what is done to jobs finds them
from here as if there were no sandbox. Signals are blocked in all that stands
between: those for the group reach the job's own processes.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from jobrunner.domain.arguments import RESERVED_ENV_PREFIX
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, JobError
from jobrunner.executor import inside
from jobrunner.executor.adopting import FindEnd, adopt
from jobrunner.executor.confine import Confinement
from jobrunner.executor.process import Process, StatusUnknown
from jobrunner.executor.spawning import (
    SpawnError,
    check_unchanged,
    explain_missing_interpreter,
    explain_os_error,
    spawn,
)
from jobrunner.executor.tree import Member
from jobrunner.proc import leads_namespace
from jobrunner.spool import JobStreams, ProcessRecord, Spool


class Sandboxed:
    """A process whose own status is only that of its sandbox; that of the job's is written in the job's directory."""

    def __init__(self, process: Process, read: Callable[[], bytes | None]) -> None:
        self._process = process
        self._read = read
        self.pid = process.pid
        self.pidfd = process.pidfd
        self.is_child = process.is_child
        self.close = process.close
        self.release = process.release
        self.leave = process.leave

    def exit_status(self) -> ExitStatus | None:
        """See `Process`.

        Raises:
            StatusUnknown: it has ended, but its status can't be learnt any more.
            SpawnError: nothing was ever executed in the sandbox.
        """
        try:
            status = self._process.exit_status()
        except StatusUnknown:
            if (written := true_status(self._read(), None)) is None:
                raise
            return written
        return true_status(self._read(), status) if status is not None else None

    def signal_group(self, number: int) -> bool:
        """See `Process`. Waits for the sandbox, some hundredths of a second: before that a signal would reach nobody.

        SIGKILL ends whatever is there by then.
        """
        deadline = time.monotonic() + _BEGIN_PATIENCE
        while number != signal.SIGKILL and not self._read() and time.monotonic() < deadline:
            if self._has_ended():
                break
            time.sleep(_BEGIN_PAUSE)
        return self._process.signal_group(number)

    def _has_ended(self) -> bool:
        try:
            return self._process.exit_status() is not None
        except StatusUnknown:
            return True


_BEGIN_PATIENCE, _BEGIN_PAUSE = 10.0, 0.005
"""Seconds that a sandbox may take to be made, before signals are sent all the same; and between two looks."""


def true_status(written: bytes | None, status: ExitStatus | None) -> ExitStatus | None:
    """Return how a job has ended.

    Args:
        written: by `inside`; None: the job has no sandbox.
        status: of the process that we watch; None: unknown.

    Raises:
        SpawnError: nothing was ever executed in the sandbox.
    """
    if written is None:
        return status
    kind, number, name = _parse(written.removeprefix(inside.BEGUN))
    if kind == b"status":
        return ExitStatus.from_wait_status(number)
    if kind in {b"cwd", b"program", b"interpreter"}:
        raise SpawnError(_explain(kind, OSError(number, os.strerror(number), os.fsdecode(name))))
    if not written and status is not None and status.signal is None:
        raise SpawnError(JobError(ErrorCode.SPAWN_FAILED, "its sandbox could not be made; its stderr says why"))
    if status is not None and status.code is not None and status.code > 128:
        return ExitStatus(signal=status.code - 128)  # what was to write it down was ended by the job, or with it
    return status


def _parse(text: bytes) -> tuple[bytes, int, bytes]:
    """Take a line apart; nothing of it when a job has written it."""
    kind, _, rest = text.partition(b" ")
    number, _, name = rest.partition(b" ")
    return (kind, int(number), name) if number.isdigit() and int(number) <= 0xFFFF else (b"", 0, b"")


def _explain(kind: bytes, error: OSError) -> JobError:
    if kind == b"cwd":
        return JobError(ErrorCode.BAD_CWD, f"{error.strerror}: {error.filename}")
    return explain_missing_interpreter(error) if kind == b"interpreter" else explain_os_error(error)


def start_process(
    confinement: Confinement,
    spool: Spool,
    job_id: str,
    step: int,
    argv: Sequence[str],
    *,
    executable: str | None,
    cwd: str,
    env: Mapping[str, str],
    streams: JobStreams,
    before: Callable[[], object] | None,
    shared: Sequence[str],
) -> Process:
    """Start the process of a step, in a sandbox if there are any. See `spawning.spawn`.

    ``shared`` are directories besides its own that it can write to in a sandbox.

    Raises:
        SpawnError: with the system's words; what is wrong inside a sandbox shows only in the process's status.
        OSError: a descriptor or a file can't be had.
    """
    bubblewrap = confinement.bubblewrap
    if bubblewrap is None:
        return spawn(
            argv, executable=executable, cwd=cwd, env=env, streams=streams, before=before, confinement=confinement
        )
    check_unchanged(executable)
    # What names the job; nothing else, lest something is loaded outside that the job names in LD_PRELOAD.
    outer = {name: value for name, value in env.items() if name.startswith(RESERVED_ENV_PREFIX)}
    outcome = task = -1
    try:
        outcome = spool.open_outcome(job_id, step)
        task = os.memfd_create("task", os.MFD_CLOEXEC)
        _write_all(task, _pack(executable, argv, cwd, env))
        before_spawn = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            process = spawn(
                bubblewrap.command_line(
                    spool.scratch(job_id), spool.source(job_id, step), outcome, task, shared=shared
                ),
                cwd="/",
                env=outer,
                streams=streams,
                before=before,
                confinement=confinement,
                pass_fds=(outcome, task),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before_spawn)
    finally:
        for fd in (outcome, task):
            with suppress(OSError):
                os.close(fd)
    return Sandboxed(process, lambda: spool.read_outcome(job_id, step))


def adopt_process(record: ProcessRecord, find_end: FindEnd, spool: Spool, job_id: str) -> Process | None:
    """Take hold of a job's process. See `adopting.adopt`."""
    process, step = adopt(record, find_end), record.step
    if process is None or spool.read_outcome(job_id, step) is None:
        return process
    return Sandboxed(process, lambda: spool.read_outcome(job_id, step))


def without_reaper(members: list[Member]) -> list[Member]:
    """Leave out process 1 of a sandbox: it ends by itself when nothing else is left."""
    return [member for member in members if not leads_namespace(member.pid)]


def _pack(executable: str | None, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> bytes:
    variables = [f"{name}={value}" for name, value in env.items()]
    return b"".join(
        os.fsencode(word) + b"\0" for word in (cwd, executable or "", str(len(variables)), *variables, *argv)
    )


def _write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
