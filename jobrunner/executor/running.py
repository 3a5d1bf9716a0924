"""The jobs that run: each on a thread of its own, in a slot, and the next one in the same slot after it."""

import logging
import time
from collections.abc import Callable, Set
from functools import partial

from jobrunner import log
from jobrunner.domain.errors import StorageError
from jobrunner.domain.job import ErrorCode, Job, JobEnd, JobError
from jobrunner.executor.aftermath import Aftermath
from jobrunner.executor.ledger import RETRY_PAUSE
from jobrunner.executor.run import NeverStarted, Run
from jobrunner.executor.slots import Slots, Threads
from jobrunner.executor.surroundings import Surroundings
from jobrunner.hints import Hint, Hints
from jobrunner.proc import is_alive

logger = logging.getLogger("jobrunner.executor")

How = Callable[[Run], JobEnd | None]
"""`Run.execute`, or `Run.adopt`."""

MakeRun = Callable[[Job, Surroundings], Run]


class Runs:
    """What runs, by the numbers of the jobs, and what could not be started yet.

    Args:
        most: jobs at a time.
        around: what every run shares.
        aftermath: what is done when a run is over.
        hints: wake the executor when there may be jobs for a slot that is free.
        is_stopping: tells whether nothing new is to be begun.
        make_run: makes what watches a job.

    Attributes:
        slots: those that are taken, and those that are free.
        canceled: numbers of the jobs that are to end, as last seen.
    """

    def __init__(
        self,
        most: int,
        around: Surroundings,
        aftermath: Aftermath,
        hints: Hints,
        is_stopping: Callable[[], bool],
        make_run: MakeRun,
    ) -> None:
        self.slots = Slots(most)
        self.canceled: Set[int] = frozenset()
        self._around = around
        self._aftermath = aftermath
        self._hints = hints
        self._is_stopping = is_stopping
        self._new_run = make_run
        self._threads = Threads(self._give_slot)
        self._runs: dict[int, Run] = {}
        self._postponed: list[tuple[Job, How]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def get(self, number: int) -> Run | None:
        """Return the run of a job, if it has one."""
        return self._runs.get(number)

    def all(self) -> list[Run]:
        """Return all of them, as they are at this moment."""
        return list(self._runs.values())

    def start(self, job: Job, how: How) -> None:
        """Run a job that has a slot; later, if that is not possible now."""
        try:
            run = self._make_run(job)
            try:
                self._threads.start(partial(self._work, run, how))
            except BaseException:
                del self._runs[job.number]
                run.leave()
                raise
        except (OSError, RuntimeError) as error:  # no descriptor, or no thread, is to be had
            logger.warning("can't start job %d, trying again: %s", job.number, error)
            self._postponed.append((job, how))

    def start_postponed(self) -> None:
        """Start what is ours, and has its slot, but could not be started."""
        postponed, self._postponed = self._postponed, []
        for job, how in postponed:
            self.start(job, how)

    def _make_run(self, job: Job) -> Run:
        run = self._new_run(job, self._around)
        self._runs[job.number] = run
        return run

    def _work(self, run: Run, how: How) -> None:
        """Run jobs one after the other in a slot, until the queue is empty. The thread's main function."""
        following = self._run_one(run, how)
        while following is not None:
            try:
                run = self._make_run(following)
            except OSError as error:
                logger.warning("can't start job %d, trying again: %s", following.number, error)
                self.slots.take_one_more()  # this thread gives its own back
                self._postponed.append((following, Run.execute))
                return
            following = self._run_one(run, Run.execute)

    def _give_slot(self) -> None:
        if self.slots.give():
            self._hints.wake_executor(Hint.QUEUED)

    def _run_one(self, run: Run, how: How) -> Job | None:
        """Run a job to its end; return the next one for this slot, claimed in the same transaction."""
        log.JOB.set(run.job.number)
        try:
            if how is Run.execute and (self._is_stopping() or run.job.number in self.canceled):
                raise NeverStarted  # and never will be, or not by us: that came after its claim
            end = self._execute(run, how)
            following = self._aftermath.finish(run, end, partial(self._may_claim, run.job)) if end is not None else None
        except NeverStarted:
            # Before it is queued: another thread may claim it at once.
            del self._runs[run.job.number]
            run.leave()
            self._aftermath.requeue(run.job)
            return None
        finally:
            log.JOB.set(None)
        del self._runs[run.job.number]
        return following

    def _may_claim(self, ended: Job) -> bool:
        # The next job's time would run while this one's files are removed: it is claimed after that.
        keeps_all = self._around.spool.keeps_scratch and not ended.spec.drops_scratch
        return not self._is_stopping() and keeps_all and self.slots.may_go_on()

    def _execute(self, run: Run, how: How) -> JobEnd | None:
        try:
            if how is Run.execute and is_deserted(run.job):
                self._around.ledger.abandon([run.job.number])
                raise NeverStarted
            end = how(run)
        except NeverStarted:
            raise
        except StorageError as error:
            # Only what comes before the start needs the database.
            logger.warning("can't read what came with the job, or write that nobody wants it, trying again: %s", error)
            time.sleep(RETRY_PAUSE)
            raise NeverStarted from error
        except Exception as error:
            # A mistake of ours must not leave a job running for ever.
            logger.exception("the run of the job has failed")
            return run.fail(JobError(ErrorCode.WORKER_LOST, f"internal error: {error!r}"))
        if end is None:
            run.leave()
        return end

    def close(self) -> None:
        """Have the threads end when what runs is over."""
        self._threads.close()

    def join(self, seconds: float) -> bool:
        """Wait for all threads to end, at most so long; return whether they have."""
        return self._threads.join(seconds)

    def requeue_postponed(self) -> None:
        """Put back what was never started."""
        for job, how in self._postponed:
            if how is Run.execute:
                log.JOB.set(job.number)
                self._aftermath.requeue(job)
        log.JOB.set(None)


def is_deserted(job: Job) -> bool:
    """Tell whether a job is to run only as long as its client listens, and who had its connection has died."""
    return job.spec.holder is not None and not is_alive(job.spec.holder)
