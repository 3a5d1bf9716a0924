"""One job from its claim to its end: straight-line code on a thread of its own."""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime

from jobrunner.clock import Now
from jobrunner.config import Output
from jobrunner.domain.exitstatus import ExitStatus, signal_name
from jobrunner.domain.job import CancelRequest, ErrorCode, Job, JobEnd, JobError
from jobrunner.domain.spec import InputKind
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.ends import EndsFile
from jobrunner.executor import process as processes
from jobrunner.executor.cgroup import ControlGroups
from jobrunner.executor.ending import Ending
from jobrunner.executor.ledger import Ledger
from jobrunner.executor.leftovers import end_leftovers
from jobrunner.executor.limits import OutputLimit
from jobrunner.executor.process import Process, SpawnError, StatusUnknown
from jobrunner.executor.tree import COOKIE, Member, Orphans, list_members, send
from jobrunner.proc import boot_id
from jobrunner.spool import MayHaveRun, ProcessRecord, Spool

logger = logging.getLogger("jobrunner.executor")

_LOST = JobError(ErrorCode.WORKER_LOST, "the process ended while no executor watched it, and its exit status is gone")

_REBOOTED = JobError(ErrorCode.HOST_REBOOTED, "the machine was started anew")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every run of an executor shares.

    Attributes:
        environment: the base environment of jobs.
        kill_leftovers: whether to end what an ended job has left behind.
        output: how much is kept of what jobs write.
        orphans: what jobs may have left behind; None: to be searched for each time.
        ends: what the supervisor has written down of orphans.
        groups: control groups for jobs; None: there are none.
    """

    spool: Spool
    ledger: Ledger
    environment: Mapping[str, str]
    kill_leftovers: bool
    output: Output
    orphans: Orphans | None
    ends: EndsFile
    groups: ControlGroups | None
    now: Now


class Run:
    """One job, watched by one thread; the others may only call `cancel`, `send`, `limit_output` and `give_up`."""

    def __init__(self, job: Job, around: Surroundings) -> None:
        assert job.started_at is not None
        self.job = job
        self._around = around
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._process: Process | None = None
        self._ending = Ending(job, around.ledger, around.now)
        self._output = OutputLimit(job.number, around.output, around.ledger)
        self._accepted: CancelRequest | None = None
        self._wanted = job.cancel
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

    def limit_output(self) -> None:
        """Have the job's output limited, if it is too much. Costs next to nothing when it is not."""
        if self._output.is_exceeded():
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
        self._output.close()
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
        record = spool.load_process(self.job.id) or self._find()
        if record is not None and record.boot_id != boot_id():
            return self._end(JobState.LOST, error=_REBOOTED)
        if record is None:
            return self._lose(0)
        self._process = processes.adopt(record, self._around.ends.find)
        self._adopt_output()
        if self._process is None:
            return self._ended_unwatched(record)
        logger.info("adopted process %d", record.pid)
        self._deadline = time.monotonic() + self.job.spec.timeout - processes.age(record)
        return self._watch()

    def _adopt_output(self) -> None:
        streams = (Stream.STDOUT,) if self.job.spec.merge_stderr else tuple(Stream)
        opened = {stream: self._around.spool.open_output(self.job.id, stream) for stream in streams}
        for stream in (stream for stream, fd in opened.items() if fd is None):
            logger.warning("%s is not limited: it is no longer a file of this job alone", stream)
        self._output.watch({stream: fd for stream, fd in opened.items() if fd is not None}, self.job.holes)
        if self._ending.state is JobState.OUTPUT_LIMIT:
            self._output.allow_more()

    def _find(self) -> ProcessRecord | None:
        """Find the process though its executor died before it could write it down."""
        if (orphan := self._around.ends.find_orphan(self.job.id)) is not None:
            record: ProcessRecord | None = ProcessRecord(orphan.pid, orphan.start_ticks, boot_id())
        else:
            record = processes.find_by_cookie(self.job.id)
        if record is not None:
            # Once it has ended it can't be found like this any more.
            self._record(record)
        return record

    def _lose(self, leader: int) -> JobEnd | None:
        """Tell that nobody can tell how it ended."""
        return self._end(JobState.LOST, error=_LOST) if self._clear(leader, is_ours=False) else None

    def _ended_unwatched(self, record: ProcessRecord) -> JobEnd | None:
        """Tell how it ended though it was reaped while no executor watched: the supervisor may have written it down."""
        status = self._around.ends.find(record.pid, record.start_ticks)
        if status is None:
            return self._lose(record.pid)
        if not self._clear(record.pid, is_ours=False):
            return None
        return self._end_of(ExitStatus.from_wait_status(status), self._finished_at())

    def release(self) -> None:
        """Reap the process and give the descriptors back."""
        if self._process is not None:
            self._process.release()
        if self._around.groups is not None:
            self._around.groups.remove(self.job.id)
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
        spec, step = job.spec, job.spec.steps[0]
        spool.prepare(job.id, self._around.ledger.load_inputs(job.number) if spec.inputs else ())
        scratch, cwd = spool.scratch(job.id), spec.cwd_of(step)
        environment = {**self._around.environment, **spec.env, COOKIE: job.id, "JOBRUNNER_JOB_NUMBER": str(job.number)}
        has_stdin = bool(spec.input_info(InputKind.STDIN))
        groups = self._around.groups
        with (
            spool.open_streams(job.id, stdin=has_stdin, merge_stderr=spec.merge_stderr) as streams,
            groups.entrance(job.id) if groups is not None else nullcontext() as enter,
        ):
            child = processes.spawn(
                step.command_line(spool.source(job.id)),
                cwd=os.path.join(scratch, cwd) if cwd else scratch,
                env=environment,
                streams=streams,
                before=enter,
            )
            self._output.watch(streams.take_outputs(), {})
        self._process = child
        self._record(processes.identify(child))

    def _record(self, record: ProcessRecord) -> None:
        try:
            self._around.spool.record_process(self.job.id, record)
        except OSError as error:
            # A full disk must not end a job that runs; after a crash its cookie tells who it is.
            logger.warning("can't write down the process: %s", error)

    def _watch(self) -> JobEnd | None:
        assert self._process is not None
        poll = select.poll()
        poll.register(self._process.pidfd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._given_up:
            try:
                status = self._process.exit_status()
            except StatusUnknown:
                return self._lose(self._process.pid)
            if status is not None:
                return self._ended(status)
            self._act()
            if any(fd == self._wake for fd, _ in poll.poll(self._pause() * 1000)):
                os.eventfd_read(self._wake)
        self._send_asked()  # who comes next does not know of them any more
        return None

    def _pause(self) -> float:
        """Return the seconds until something is due."""
        deadline = self._deadline if self._ending.state is None else None
        due = [at for at in (self._ending.kill_at, deadline) if at is not None]
        # A little late rather than early; and never longer than poll(2) takes.
        return min(max(min(due) - time.monotonic(), 0) + 0.001, 86400.0) if due else 86400.0

    def _act(self) -> None:
        """Do what is due: signals asked for, a cancel, the deadline, too much output, the end of the grace period."""
        self._send_asked()
        if (request := self._new_request()) is not None:
            if self._ending.begin(JobState.CANCELED):
                logger.info("canceled by %s", request.by)
            self._tell(request.signal, self._ending.grace(request))
        if time.monotonic() >= self._deadline and self._ending.begin(JobState.TIMED_OUT):
            logger.info("timed out after %g s", self.job.spec.timeout)
            self._tell(signal.SIGTERM, self._ending.grace())
        if self._output.enforce():
            if self._ending.begin(JobState.OUTPUT_LIMIT, self._output.excess):
                logger.info("has written too much")
                self._tell(signal.SIGTERM, self._ending.grace())
            else:
                self._ending.kill_within(0)  # it was told, and writes on
        if self._ending.is_kill_due():
            self._ending.kill_at = None
            self._signal(signal.SIGKILL)

    def _send_asked(self) -> None:
        while self._to_send:
            self._signal(self._to_send.pop(0), note=False)

    def _new_request(self) -> CancelRequest | None:
        """Return what somebody wants that was not looked at yet."""
        if self._wanted == self._accepted:
            return None
        self._accepted = self._wanted
        return self._accepted

    def _tell(self, number: int, grace: float) -> None:
        """Tell the job to end, with a signal that it was not sent yet, and when it will be killed."""
        if not self._ending.was_sent(number):
            self._signal(number)
        self._ending.kill_within(grace)

    def _signal(self, number: int, *, note: bool = True) -> None:
        """Signal the process group; when the job is to end (``note``) all that has left the group too."""
        process = self._process
        assert process is not None
        if note:
            # Before: an executor that finds the job dead must know of what, though this one was killed meanwhile.
            self._ending.note(number)
        found = process.signal_group(number)
        if note:
            others = self._list_members(process.pid, is_ours=process.is_child)
            others = [member for member in others if not found or member.pgid != process.pid]
            found = self._send(others, number) or found
        if found:
            logger.info("sent %s", signal_name(number))

    def _list_members(self, leader: int, *, is_ours: bool) -> list[Member]:
        groups = self._around.groups
        group = frozenset(groups.list_pids(self.job.id)) if groups is not None else ()
        return list_members(leader, self.job.id, is_ours=is_ours, group=group)

    def _send(self, members: Iterable[Member], number: int) -> bool:
        if number == signal.SIGKILL and self._around.groups is not None:
            self._around.groups.kill(self.job.id)  # however fast it makes new ones
        return send(members, number)

    def _ended(self, status: ExitStatus) -> JobEnd | None:
        finished_at = self._finished_at()
        assert self._process is not None
        # Before it is reaped: until then its pid, so the id of the group, is its own.
        if not self._clear(self._process.pid, is_ours=self._process.is_child):
            return None
        return self._end_of(status, finished_at)

    def _end_of(self, status: ExitStatus, finished_at: datetime) -> JobEnd:
        if self._output.excess is not None:
            self._ending.begin(JobState.OUTPUT_LIMIT, self._output.excess)
        state = self._ending.state or (JobState.SUCCEEDED if status.ok else JobState.FAILED)
        return self._end(state, status=status, error=self._ending.error, finished_at=finished_at)

    def _clear(self, leader: int, *, is_ours: bool) -> bool:
        """End what the job has left behind; now it writes no more. False when the run was given up meanwhile."""
        orphans = self._around.orphans
        may_exist = not is_ours or orphans is None or orphans.may_exist()
        if self._around.kill_leftovers and may_exist:

            def look() -> list[Member]:
                return self._list_members(leader, is_ours=is_ours)

            if not end_leftovers(look, self._send, self._ending, self._doze):
                return False
        self._output.enforce(may_write_on=False)
        return True

    def _doze(self, seconds: float) -> bool:
        """Sleep while what is left behind ends; a cancel hurries it, as does too much output.

        Returns:
            False when the run was given up.
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if poll.poll(seconds * 1000):
            os.eventfd_read(self._wake)
        if (request := self._new_request()) is not None:
            self._ending.kill_within(self._ending.grace(request))
        if self._output.enforce():
            self._ending.kill_within(0)
        return not self._given_up

    def _end(
        self,
        state: JobState,
        *,
        status: ExitStatus | None = None,
        error: JobError | None = None,
        finished_at: datetime | None = None,
    ) -> JobEnd:
        # XFS gives back what it holds ready behind the end of a file when that is closed.
        self._output.close()
        spool, job_id = self._around.spool, self.job.id
        return JobEnd(
            state,
            finished_at or self._finished_at(),
            status=status,
            error=error,
            signals=tuple(self._ending.signals),
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
