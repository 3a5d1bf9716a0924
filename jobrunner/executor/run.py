"""One job from its claim to its end: straight-line code on a thread of its own."""

import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import CancelRequest, ErrorCode, Job, JobEnd, JobError, StepSpan
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.executor.adopting import age, identify
from jobrunner.executor.limits import OutputLimit
from jobrunner.executor.members import Members
from jobrunner.executor.process import Process, StatusUnknown
from jobrunner.executor.sandbox import adopt_process, true_status
from jobrunner.executor.spawning import SpawnError
from jobrunner.executor.starting import Starter
from jobrunner.executor.surroundings import Surroundings
from jobrunner.executor.watch import GivenUp, Watch
from jobrunner.executor.wishes import Wishes
from jobrunner.proc import boot_id
from jobrunner.spool import MayHaveRun, ProcessRecord

logger = logging.getLogger("jobrunner.executor")

_LOST = JobError(ErrorCode.WORKER_LOST, "the process ended while no executor watched it, and its exit status is gone")

_REBOOTED = JobError(ErrorCode.HOST_REBOOTED, "the machine was started anew")


class Run:
    """One job, watched by one thread; the others may only call `cancel`, `send`, `limit_output` and `give_up`."""

    def __init__(self, job: Job, around: Surroundings) -> None:
        assert job.started_at is not None
        self.job = job
        self._around = around
        self._wishes = Wishes(job.cancel)
        self._members = Members(job.id, around)
        self._output = OutputLimit(job.number, around.output, around.ledger)
        self._starter = Starter(job, around, self._output)
        self._watch = Watch(job, around, self._wishes, self._members, self._output)
        self._spans = job.spans or (StepSpan(job.started_at),)

    # ── from other threads ──

    def cancel(self, request: CancelRequest) -> None:
        """Have the job ended. The same request twice changes nothing; a newer one may hurry it."""
        self._wishes.cancel(request)

    def send(self, number: int) -> None:
        """Have a signal sent to the job's process group."""
        self._wishes.send(number)

    def limit_output(self) -> None:
        """Have the job's output limited, if it is too much. Costs next to nothing when it is not."""
        if self._output.is_exceeded():
            self._wishes.notify()

    def give_up(self) -> None:
        """Stop watching; the job runs on, and whoever comes next adopts it."""
        self._wishes.give_up()

    # ── on the job's own thread ──

    def execute(self) -> JobEnd | None:
        """Start the job and watch it to its end.

        Returns:
            How it ended, while its process is still a zombie: call `release`
            once that is written down. None when the run was given up.
        """
        return self._conclude(self._start_first)

    def adopt(self) -> JobEnd | None:
        """Watch a job that another executor has started. As `execute`, from there on.

        Raises:
            NeverStarted: no process was ever made for it.
        """
        if self._step == 0 and not self._around.spool.was_started(self.job.id):
            raise NeverStarted
        self._members.is_adopted = True
        return self._conclude(self._take_over)

    def release(self) -> None:
        """Reap the process and give the descriptors back."""
        self._members.release()
        self._close()

    def leave(self) -> None:
        """Give the descriptors back, but leave the process to whoever comes next."""
        self._members.leave()
        self._close()

    def _close(self) -> None:
        self._output.close()
        self._wishes.close()

    def fail(self, error: JobError) -> JobEnd:
        """End everything in the process group at once: the run itself has failed."""
        self._members.signal_group(signal.SIGKILL)
        return self._end(JobState.LOST, error=error)

    @property
    def _step(self) -> int:
        """The index of the step that runs, or is to."""
        return len(self._spans) - 1

    def _conclude(self, begin: Callable[[], ExitStatus | None]) -> JobEnd | None:
        try:
            try:
                return self._watch_all(begin())
            except SpawnError as error:
                return self._end_early(JobState.FAILED, error.error)
            except StatusUnknown:
                return self._end_early(JobState.LOST, _LOST)
            except _ToldToEnd:
                assert self._watch.ending.state is not None
                return self._end_early(self._watch.ending.state, self._watch.ending.error)
        except (MayHaveRun, _Rebooted):
            # With `MayHaveRun` the machine has stopped too: the disk had this directory, but not yet the claim.
            return self._end(JobState.LOST, error=_REBOOTED)
        except GivenUp:
            return None

    def _watch_all(self, status: ExitStatus | None) -> JobEnd:
        """Watch one step after the other; ``status`` is that of the first of them, if it has ended already."""
        while True:
            status = status or self._watch.until_exit()
            finished_at = self._finished_at()
            is_last = self._step + 1 == len(self.job.spec.steps)
            if is_last or not status.ok or self._watch.is_told():
                return self._ended(status, finished_at)
            *before, last = self._spans
            self._start_next((*before, replace(last, finished_at=finished_at), StepSpan(finished_at)))
            status = None

    # ── the begin of a step ──

    def _start_first(self) -> None:
        self._begin(self._starter.start_first())

    def _start_next(self, spans: tuple[StepSpan, ...]) -> None:
        """Begin a later step. That the one before has ended is in the row before anything is done for this one."""
        if not self._around.ledger.record_step(self.job.number, spans):
            raise GivenUp  # whoever owns the job finds the step before as it is
        self._spans = spans
        if not self._watch.may_go_on():
            raise _ToldToEnd
        logger.info("begins step %d of %d", self._step + 1, len(self.job.spec.steps))
        self._begin(self._starter.start_next(self._step))

    def _begin(self, child: Process) -> None:
        self._members.replace(child)
        self._starter.record(identify(child, self._step))
        self._watch.begin_step(self._step)

    def _take_over(self) -> ExitStatus | None:
        """Take hold of the step's process, or make it; returns how it has ended if it has.

        Raises:
            StatusUnknown: it may have run, and nobody can tell how it ended.
        """
        mark = self._around.spool.load_mark(self.job.id)
        if mark is not None and mark.boot_id != boot_id():
            raise _Rebooted
        if self._step and mark is not None and mark.step == self._step - 1:
            self._adopt_output()
            # It begins now: nobody has come as far as the mark.
            self._start_next((*self._spans[:-1], StepSpan(self._finished_at())))
            return None
        record = self._starter.find(self._step)
        if record is None:
            return self._true_status(None)
        self._members.process = adopt_process(record, self._around.ends.find, self._around.spool, self.job.id)
        self._adopt_output()
        if self._members.process is None:
            return self._unwatched_end(record)
        logger.info("adopted process %d", record.pid)
        seconds = age(record)
        assert self.job.started_at is not None
        before = max((self._spans[-1].started_at - self.job.started_at).total_seconds(), 0)
        self._watch.set_deadline(before + seconds)
        self._watch.begin_step(self._step, seconds)
        return None

    def _unwatched_end(self, record: ProcessRecord) -> ExitStatus:
        """Tell how it ended though it was reaped while no executor watched: the supervisor may have written it down."""
        written = self._around.ends.find(record.pid, record.start_ticks)
        return self._true_status(ExitStatus.from_wait_status(written) if written is not None else None)

    def _true_status(self, status: ExitStatus | None) -> ExitStatus:
        """Return how the step has ended: what was written in its sandbox, if it has one, else ``status``."""
        found = true_status(self._around.spool.read_outcome(self.job.id, self._step), status)
        if found is None:
            raise StatusUnknown
        return found

    def _adopt_output(self) -> None:
        streams = (Stream.STDOUT,) if self.job.spec.merge_stderr else tuple(Stream)
        opened = {stream: self._around.spool.open_output(self.job.id, stream) for stream in streams}
        for stream in (stream for stream, fd in opened.items() if fd is None):
            logger.warning("%s is not limited: it is no longer a file of this job alone", stream)
        self._output.watch({stream: fd for stream, fd in opened.items() if fd is not None}, self.job.holes)
        if self._watch.ending.state is JobState.OUTPUT_LIMIT:
            self._output.allow_more()

    # ── the end ──

    def _ended(self, status: ExitStatus, finished_at: datetime) -> JobEnd:
        # Before it is reaped: until then its pid, so the id of the group, is its own.
        self._watch.clear()
        if self._output.excess is not None:
            self._watch.ending.begin(JobState.OUTPUT_LIMIT, self._output.excess)
        state = self._watch.ending.state or (JobState.SUCCEEDED if status.ok else JobState.FAILED)
        return self._end(state, status=status, error=self._watch.ending.error, finished_at=finished_at)

    def _end_early(self, state: JobState, error: JobError | None) -> JobEnd:
        """End the job by a step that has no process, or none whose exit status is known."""
        finished_at = self._finished_at()
        if self._members.is_adopted or self._members.process is not None:
            self._watch.clear()
        return self._end(state, error=error, finished_at=finished_at)

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
        spool, job_id, spec = self._around.spool, self.job.id, self.job.spec
        if spec.result is not None:
            try:
                spool.keep_result(job_id, spec.result)
            except OSError as refusal:
                logger.warning("can't keep the job's result: %s", refusal)
        return JobEnd(
            state,
            finished_at or self._finished_at(),
            status=status,
            error=error,
            signals=tuple(self._watch.ending.signals),
            stdout_bytes=_measure(lambda: spool.size(job_id, Stream.STDOUT)),
            stderr_bytes=_measure(lambda: spool.size(job_id, Stream.STDERR)),
            disk_bytes=_measure(lambda: spool.disk_bytes(job_id, without_scratch=spec.drops_scratch)),
        )

    def _finished_at(self) -> datetime:
        """Return the time, but never one before the start of the step, whatever the wall clock did."""
        return max(self._around.now(), self._spans[-1].started_at)


def _measure(size: Callable[[], int]) -> int:
    """Return a size; 0 when the disk does not tell, which must not keep a job from ending."""
    try:
        return size()
    except OSError as error:
        logger.warning("can't tell the size of the job's files: %s", error)
        return 0


class NeverStarted(Exception):
    """A job was claimed, but its process was never made."""


class _ToldToEnd(Exception):
    """The job was told to end while no step of it ran."""


class _Rebooted(Exception):
    """The job was begun before the machine was started anew."""
