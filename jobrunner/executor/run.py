"""One job from its claim to its end: straight-line code on a thread of its own."""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from jobrunner.clock import Now
from jobrunner.domain.exitstatus import ExitStatus, signal_name
from jobrunner.domain.job import CancelRequest, ErrorCode, Job, JobEnd, JobError, SentSignal
from jobrunner.domain.spec import Input, InputKind
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.ends import EndsFile
from jobrunner.executor import process as processes
from jobrunner.executor.process import ChildProcess, Process, SpawnError, StatusUnknown
from jobrunner.executor.tree import COOKIE, Member, Orphans, list_members, send
from jobrunner.proc import boot_id
from jobrunner.spool import MayHaveRun, ProcessRecord, Spool

logger = logging.getLogger("jobrunner.executor")

_KILL_PATIENCE = 5.0
"""Seconds that a process may take to be gone after SIGKILL: it may hang in the kernel."""

_LOST = JobError(ErrorCode.WORKER_LOST, "the process ended while no executor watched it, and its exit status is gone")

_REBOOTED = JobError(ErrorCode.HOST_REBOOTED, "the machine was started anew")


class _Reason(Enum):
    """Why a process was told to end."""

    CANCEL = JobState.CANCELED
    TIMEOUT = JobState.TIMED_OUT


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every run of an executor shares.

    Attributes:
        environment: the base environment of jobs.
        kill_leftovers: whether to end what an ended job has left behind.
        orphans: what jobs may have left behind; None: to be searched for each time.
        ends: what the supervisor has written down of orphans.
        load_inputs: what came with the submission of a job, by its number.
        record_signals: writes down which signals a job has been sent.
    """

    spool: Spool
    environment: Mapping[str, str]
    kill_leftovers: bool
    orphans: Orphans | None
    ends: EndsFile
    now: Now
    load_inputs: Callable[[int], list[Input]]
    record_signals: "RecordSignals"


class RecordSignals(Protocol):
    """Writes down which signals a job has been sent so far."""

    def __call__(self, number: int, signals: tuple[SentSignal, ...]) -> None:
        """Write; it is no harm when that fails."""


class Run:
    """One job, watched by one thread; the others may only call `cancel`, `send` and `give_up`."""

    def __init__(self, job: Job, around: Surroundings) -> None:
        assert job.started_at is not None
        self.job = job
        self._around = around
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._process: Process | None = None
        self._reason: _Reason | None = None
        self._kill_at: float | None = None  # monotonic
        self._sent = list(job.signals)
        self._accepted: CancelRequest | None = None
        self._wanted: CancelRequest | None = None
        self._to_send: list[int] = []
        self._given_up = False
        self._closed = False
        self._closing = threading.Lock()
        # The row has an absolute time; inside a process only the monotonic
        # clock counts, so that a jump of the wall clock ends no job.
        used = max((around.now() - job.started_at).total_seconds(), 0)
        self._deadline = time.monotonic() + job.spec.timeout - used

    # ── from other threads ──

    def cancel(self, request: CancelRequest) -> None:
        """Have the job ended. The same request twice changes nothing; a newer one may hurry it."""
        self._wanted = request
        self._notify()

    def send(self, number: int) -> None:
        """Have a signal sent to the job's process group."""
        self._to_send.append(number)
        self._notify()

    def give_up(self) -> None:
        """Stop watching; the job runs on, and whoever comes next adopts it."""
        self._given_up = True
        self._notify()

    def _notify(self) -> None:
        # Who looked this run up may come after its end, when the descriptor's
        # number is another's already.
        with self._closing:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def _close(self) -> None:
        with self._closing:
            self._closed = True
            os.close(self._wake)

    # ── on the job's own thread ──

    def execute(self) -> JobEnd | None:
        """Start the job and watch it to its end.

        Returns:
            How it ended, while its process is still a zombie: call `release`
            once that is written down. None when the run was given up.
        """
        try:
            self._start()
        except SpawnError as error:
            return self._end(JobState.FAILED, error=error.error)
        except MayHaveRun:
            # The machine has stopped: the disk had this directory, but not yet the claim.
            return self._end(JobState.LOST, error=_REBOOTED)
        except OSError as error:
            return self._end(JobState.FAILED, error=processes.explain_os_error(error))
        return self._watch()

    def adopt(self) -> JobEnd | None:
        """Watch a job that another executor has started. As `execute`, from there on.

        Raises:
            NeverStarted: no process was ever made for it.
        """
        spool = self._around.spool
        if not spool.was_started(self.job.id):
            raise NeverStarted
        record = spool.load_process(self.job.id) or self._find_orphan() or processes.find_by_cookie(self.job.id)
        if record is not None and record.boot_id != boot_id():
            return self._end(JobState.LOST, error=_REBOOTED)
        if record is None:
            return self._end(JobState.LOST, error=_LOST)
        self._process = processes.adopt(record, self._around.ends.find)
        self._resume()
        if self._process is None:
            return self._ended_unwatched(record)
        logger.info("adopted process %d", record.pid)
        self._deadline = time.monotonic() + self.job.spec.timeout - processes.age(record)
        return self._watch()

    def _find_orphan(self) -> ProcessRecord | None:
        orphan = self._around.ends.find_orphan(self.job.id)
        return ProcessRecord(orphan.pid, orphan.start_ticks, boot_id()) if orphan is not None else None

    def _ended_unwatched(self, record: ProcessRecord) -> JobEnd | None:
        """Tell how it ended though it was reaped while no executor watched: the supervisor may have written it down."""
        status = self._around.ends.find(record.pid, record.start_ticks)
        if not self._clear(record.pid, is_ours=False):
            return None
        if status is None:
            return self._end(JobState.LOST, error=_LOST)
        return self._end_of(ExitStatus.from_wait_status(status), self._finished_at())

    def release(self) -> None:
        """Reap the process and give the descriptors back."""
        if self._process is not None:
            self._process.release()
        self._close()

    def leave(self) -> None:
        """Give the descriptors back, but leave the process to whoever comes next."""
        if self._process is not None:
            self._process.leave()
        self._close()

    def fail(self, error: JobError) -> JobEnd:
        """End everything in the process group at once: the run itself has failed."""
        if self._process is not None:
            self._process.signal_group(signal.SIGKILL)
        return self._end(JobState.LOST, error=error)

    def _start(self) -> None:
        job, spool = self.job, self._around.spool
        spec = job.spec
        spool.prepare(job.id, self._around.load_inputs(job.number) if spec.inputs else ())
        scratch = spool.scratch(job.id)
        environment = {**self._around.environment, **spec.env, COOKIE: job.id, "JOBRUNNER_JOB_NUMBER": str(job.number)}
        has_stdin = bool(spec.input_info(InputKind.STDIN))
        with spool.open_streams(job.id, stdin=has_stdin, merge_stderr=spec.merge_stderr) as streams:
            child = processes.spawn(
                spec.command_line(spool.source(job.id)),
                cwd=os.path.join(scratch, spec.cwd) if spec.cwd else scratch,
                env=environment,
                streams=streams,
            )
        self._process = child
        self._record(child)

    def _record(self, child: ChildProcess) -> None:
        try:
            self._around.spool.record_process(self.job.id, processes.identify(child))
        except OSError as error:
            # A full disk must not end a job that runs; after a crash its cookie tells who it is.
            logger.warning("can't write down the process: %s", error)

    def _resume(self) -> None:
        """Go on where the executor before us was, by what it has written down."""
        if not self._sent:
            return
        first, request = self._sent[0], self.job.cancel
        # A cancel that was asked for later does not change why it was told to end.
        self._reason = _Reason.CANCEL if request is not None and request.at <= first.at else _Reason.TIMEOUT
        self._wanted = request
        if self._was_sent(signal.SIGKILL):
            self._kill_at = time.monotonic()  # it may not have got it
            return
        grace = self._grace(request if self._reason is _Reason.CANCEL else None)
        used = max((self._around.now() - first.at).total_seconds(), 0)
        self._kill_at = time.monotonic() + grace - used

    def _watch(self) -> JobEnd | None:
        assert self._process is not None
        poll = select.poll()
        poll.register(self._process.pidfd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._given_up:
            try:
                status = self._process.exit_status()
            except StatusUnknown:
                if not self._clear(self._process.pid, is_ours=False):
                    return None
                return self._end(JobState.LOST, error=_LOST)
            if status is not None:
                return self._ended(status)
            self._act()
            if any(fd == self._wake for fd, _ in poll.poll(self._pause() * 1000)):
                os.eventfd_read(self._wake)
        self._send_asked()  # who comes next does not know of them any more
        return None

    def _pause(self) -> float:
        """Return the seconds until something is due."""
        due = [at for at in (self._kill_at, self._deadline if self._reason is None else None) if at is not None]
        # A little late rather than early; and never longer than poll(2) takes.
        return min(max(min(due) - time.monotonic(), 0) + 0.001, 86400.0) if due else 86400.0

    def _act(self) -> None:
        """Do what is due: signals asked for, a cancel, the deadline, the end of the grace period."""
        self._send_asked()
        wanted = self._wanted
        if wanted is not None and wanted != self._accepted:
            self._accept(wanted)
        elif self._reason is None and time.monotonic() >= self._deadline:
            self._reason = _Reason.TIMEOUT
            logger.info("timed out after %g s", self.job.spec.timeout)
            self._signal(signal.SIGTERM)
            self._kill_at = time.monotonic() + self.job.spec.grace
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at = None
            self._signal(signal.SIGKILL)

    def _send_asked(self) -> None:
        while self._to_send:
            self._signal(self._to_send.pop(0), note=False)

    def _accept(self, request: CancelRequest) -> None:
        self._accepted = request
        if self._reason is None:
            self._reason = _Reason.CANCEL
            logger.info("canceled by %s", request.by)
        if not self._was_sent(request.signal):
            self._signal(request.signal)
        if self._was_sent(signal.SIGKILL):
            return
        kill_at = time.monotonic() + self._grace(request)
        self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)

    def _was_sent(self, number: int) -> bool:
        return any(sent.signal == number for sent in self._sent)

    def _grace(self, request: CancelRequest | None) -> float:
        return request.grace if request is not None and request.grace is not None else self.job.spec.grace

    def _signal(self, number: int, *, note: bool = True) -> None:
        """Signal the process group; when the job is to end (``note``) all that has left the group too."""
        process = self._process
        assert process is not None
        if note:
            # Before: an executor that finds the job dead must know of what, though this one was killed meanwhile.
            self._note(number)
        found = process.signal_group(number)
        if note:
            others = list_members(process.pid, self.job.id, is_ours=process.is_child)
            found = send([member for member in others if not found or member.pgid != process.pid], number) or found
        if found:
            logger.info("sent %s", signal_name(number))

    def _note(self, number: int) -> None:
        if self._was_sent(number):
            return  # by the executor before us, or perhaps not
        self._sent.append(SentSignal(number, self._around.now()))
        self._around.record_signals(self.job.number, tuple(self._sent))

    def _ended(self, status: ExitStatus) -> JobEnd | None:
        finished_at = self._finished_at()
        assert self._process is not None
        # Before it is reaped: until then its pid, so the id of the group, is its own.
        if not self._clear(self._process.pid, is_ours=self._process.is_child):
            return None
        return self._end_of(status, finished_at)

    def _end_of(self, status: ExitStatus, finished_at: datetime) -> JobEnd:
        if self._reason is not None:
            state: JobState = self._reason.value
        else:
            state = JobState.SUCCEEDED if status.ok else JobState.FAILED
        return self._end(state, status=status, finished_at=finished_at)

    def _clear(self, leader: int, *, is_ours: bool) -> bool:
        """End what the job has left behind: SIGTERM, the grace period, SIGKILL.

        Returns:
            False when the run was given up meanwhile.
        """
        orphans = self._around.orphans
        if not self._around.kill_leftovers or (is_ours and orphans is not None and not orphans.may_exist()):
            return True
        members = list_members(leader, self.job.id, is_ours=is_ours)
        if members:
            self._begin_to_clear(members)
        killed_at: float | None = None
        pause = 0.01
        while members and (killed_at is None or time.monotonic() < killed_at + _KILL_PATIENCE):
            if self._given_up:
                return False
            if time.monotonic() >= self._clear_at():
                killed_at = killed_at or time.monotonic()
                self._kill_left(members)
            self._doze(pause)
            pause = min(pause * 1.5, 0.25)
            members = list_members(leader, self.job.id, is_ours=is_ours)
        if members:
            logger.warning("processes that survive SIGKILL: %s", ", ".join(str(member.pid) for member in members))
        return True

    def _begin_to_clear(self, members: list[Member]) -> None:
        if self._was_sent(signal.SIGKILL):
            self._kill_at = time.monotonic()
        elif self._reason is None:  # else they were told with the others
            logger.info("has left %d processes behind; ending them", len(members))
            send(members, signal.SIGTERM)
            self._kill_at = time.monotonic() + self.job.spec.grace

    def _clear_at(self) -> float:
        """Return when to kill what is left; a cancel meanwhile may hurry it."""
        assert self._kill_at is not None
        if self._wanted is not None and self._wanted != self._accepted:
            self._accepted = self._wanted
            self._kill_at = min(self._kill_at, time.monotonic() + self._grace(self._wanted))
        return self._kill_at

    def _kill_left(self, members: list[Member]) -> None:
        if self._reason is not None and not self._was_sent(signal.SIGKILL):
            self._note(signal.SIGKILL)
        send(members, signal.SIGKILL)

    def _doze(self, seconds: float) -> None:
        """Sleep, but wake up when another thread wants something."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if poll.poll(seconds * 1000):
            os.eventfd_read(self._wake)

    def _end(
        self,
        state: JobState,
        *,
        status: ExitStatus | None = None,
        error: JobError | None = None,
        finished_at: datetime | None = None,
    ) -> JobEnd:
        spool, job_id = self._around.spool, self.job.id
        return JobEnd(
            state,
            finished_at or self._finished_at(),
            status=status,
            error=error,
            signals=tuple(self._sent),
            stdout_bytes=_measure(lambda: spool.size(job_id, Stream.STDOUT)),
            stderr_bytes=_measure(lambda: spool.size(job_id, Stream.STDERR)),
            disk_bytes=_measure(lambda: spool.disk_bytes(job_id)),
        )

    def _finished_at(self) -> datetime:
        """Return the time, but never one before the start, whatever the wall clock did."""
        assert self.job.started_at is not None
        return max(self._around.now(), self.job.started_at)


def _measure(size: Callable[[], int]) -> int:
    """Return a size; 0 when the disk does not tell, which must not keep a job from ending."""
    try:
        return size()
    except OSError as error:
        logger.warning("can't tell the size of the job's files: %s", error)
        return 0


class NeverStarted(Exception):
    """A job was claimed, but its process was never made."""
