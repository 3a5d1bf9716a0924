"""The executor: slots and threads that run the jobs of one data directory.

One thread (`Executor.run`) looks for work: queued jobs for free slots, cancel
requests, signals, output that gets too long. Each running job has a thread of
its own from a pool. Hints wake the first; without them it looks every `TICK`
seconds. Both are here, because they share what runs and what is to be started.
"""

import logging
import signal
import time
from collections.abc import Callable, Set
from functools import partial

from jobrunner import log
from jobrunner.clock import Now
from jobrunner.config import Output
from jobrunner.domain.errors import StorageError
from jobrunner.domain.job import CancelRequest, ErrorCode, Job, JobEnd, JobError
from jobrunner.domain.masking import MaskRules
from jobrunner.drain import Drain
from jobrunner.ends import EndsFile
from jobrunner.executor.aftermath import Aftermath
from jobrunner.executor.cgroup import ControlGroups
from jobrunner.executor.confine import Confinement
from jobrunner.executor.ledger import RETRY_PAUSE, Ledger
from jobrunner.executor.run import NeverStarted, Run
from jobrunner.executor.slots import Slots, Threads, make_room
from jobrunner.executor.surroundings import Surroundings
from jobrunner.executor.tree import Orphans
from jobrunner.executor.trouble import Trouble
from jobrunner.hints import Hint, Hints, Inbox
from jobrunner.locks import FileLock
from jobrunner.proc import is_alive
from jobrunner.spool import Spool
from jobrunner.store.engine import Database
from jobrunner.store.execution import WantedSignal

logger = logging.getLogger("jobrunner.executor")

TICK = 0.25
"""Seconds after which a lost hint is made up for."""

_LOCK_PAUSE = 0.1
"""Seconds between two tries to get the lock: the gap between an executor and the next one."""


def _do_nothing() -> None:
    pass


class Executor:
    """Runs the jobs of one data directory.

    Args:
        identity: names this executor in the rows it owns; never used twice.
        max_running: jobs at a time.
        stop_grace: None: `stop` leaves running jobs to the next executor; else it ends them, and this is the most
            seconds that they may take after SIGTERM.
        environment: the base environment of jobs.
        kill_leftovers: whether to end what an ended job has left behind.
        output: how much is kept of what jobs write.
        orphans: what jobs may have left behind, where the whole process is ours; None: it is not.
        ends: what the supervisor has written down of orphans.
        groups: control groups for jobs; None: there are none.
        confinement: as whom jobs run, within which limits, and in what.
        drain: the service takes no new jobs.
        masks: what is secret of what jobs are given.
    """

    def __init__(
        self,
        identity: str,
        database: Database,
        spool: Spool,
        hints: Hints,
        *,
        max_running: int,
        stop_grace: float | None,
        environment: dict[str, str],
        kill_leftovers: bool,
        output: Output,
        orphans: Orphans | None,
        ends: EndsFile,
        groups: ControlGroups | None,
        confinement: Confinement,
        drain: Drain,
        masks: MaskRules,
        now: Now,
    ) -> None:
        self._identity = identity
        self._drain = drain
        self.is_drained = False
        self._orphans = orphans
        self._hints = hints
        self._now = now
        self._stop_grace = stop_grace
        self._slots = Slots(max_running)
        self._threads = Threads(self._give_slot)
        self._runs: dict[int, Run] = {}
        self._canceled: Set[int] = frozenset()  # as last seen
        self._postponed: list[tuple[Job, Callable[[Run], JobEnd | None]]] = []
        self._stopping = False
        self._inbox: Inbox | None = None
        self._look_at_all_at = 0.0
        self._ledger = Ledger(identity, database, now, lambda: self._stopping)
        self._around = Surroundings(
            spool=spool,
            ledger=self._ledger,
            environment=environment,
            kill_leftovers=kill_leftovers,
            output=output,
            orphans=orphans,
            ends=ends,
            groups=groups,
            confinement=confinement,
            now=now,
        )
        self._aftermath = Aftermath(self._around, hints, masks)

    def run(
        self,
        lock: FileLock,
        *,
        on_standby: Callable[[], None] = _do_nothing,
        on_ready: Callable[[], None] = _do_nothing,
        until_drained: bool = False,
    ) -> None:
        """Wait for the lock of the data directory, then run jobs until `stop`, or until all are done in a drain.

        Args:
            lock: of the data directory.
            on_standby: called when another executor holds the lock.
            on_ready: called when the jobs of executors before this one are watched again.
            until_drained: whether to return once the last job of a drain has ended, with `is_drained` set.
        """
        if not lock.acquire(wait=False):
            on_standby()
            while not lock.acquire(wait=False):
                if self._stopping:
                    return
                time.sleep(_LOCK_PAUSE)
        try:
            self._run(on_ready, until_drained=until_drained)
        finally:
            lock.release()

    def _run(self, on_ready: Callable[[], None], *, until_drained: bool) -> None:
        self._slots.size = make_room(self._slots.size)
        logger.info("executor %s runs up to %d jobs at a time", self._identity, self._slots.size)
        trouble = Trouble()
        adopted = False
        hints: set[bytes] = set()
        while not self._stopping:
            with trouble.watched():
                if self._inbox is None:
                    self._inbox = self._hints.open_executor_inbox()
                if not adopted:
                    self._adopt_all()
                    adopted = True
                    on_ready()
                self._look(hints)
                if until_drained and self._drain.is_on and not self._runs and not self._ledger.has_active():
                    self.is_drained = True
                    break
            hints = self._wait(RETRY_PAUSE if trouble.is_on else TICK)
        self._end()
        if self._inbox is not None:
            self._inbox.close()

    def _wait(self, seconds: float) -> set[bytes]:
        if self._inbox is not None:
            return self._inbox.wait(seconds)
        time.sleep(seconds)  # without hints all goes on, a little later
        return set()

    def stop(self, *, leave_jobs: bool = False) -> None:
        """Have `run` return: at once, or with ``on_stop = kill`` when the jobs have ended.

        May be called by a signal handler.

        Args:
            leave_jobs: to the executor that takes over, whatever ``on_stop`` says.
        """
        # Nothing here may take a lock that the interrupted thread could hold.
        if leave_jobs:
            self._stop_grace = None
        self._stopping = True
        inbox = self._inbox
        if inbox is not None:
            inbox.interrupt()

    def _look(self, hints: set[bytes]) -> None:
        """Do what the hints are about; without any, and every now and then, look for everything."""
        everything = not hints or time.monotonic() >= self._look_at_all_at
        if everything:
            self._look_at_all_at = time.monotonic() + TICK
            self._limit_outputs()  # first: what follows needs a storage that does not refuse
            self._ledger.keep_reserve()
            if self._orphans is not None:
                self._orphans.reap()
            self._start_postponed()
            self._abandon_deserted()
        if everything or Hint.CONTROL.value in hints:
            self._control()
        if Hint.QUEUED.value in hints or (everything and self._ledger.has_queued()):
            self._claim()

    def _limit_outputs(self) -> None:
        for run in list(self._runs.values()):
            run.limit_output()

    def _control(self) -> None:
        requests, signals = self._ledger.list_wishes()
        self._canceled = requests.keys()
        for number, request in requests.items():
            if run := self._runs.get(number):
                run.cancel(request)
        if signals:
            self._send(signals)

    def _abandon_deserted(self) -> None:
        jobs = [run.job for run in list(self._runs.values())]
        deserted = [job.number for job in jobs if job.number not in self._canceled and _is_deserted(job)]
        if deserted:
            self._ledger.abandon(deserted)

    def _claim(self) -> None:
        free = self._slots.take_free()
        if not free:
            return
        claimed: list[Job] = []
        try:
            claimed = self._ledger.claim(free)
        finally:
            self._slots.give_unused(free - len(claimed))
        if len(claimed) < free:
            self._slots.queue_is_empty()
        for job in claimed:
            self._start(job, Run.execute)

    def _send(self, signals: list[WantedSignal]) -> None:
        # A job that was claimed this moment may not be among the runs yet: its signals wait.
        due = [(wanted, self._runs.get(wanted.number)) for wanted in signals]
        done = [wanted.row for wanted, run in due if run is not None or not wanted.is_running]
        if done:
            # First forgotten, then sent: never twice, and a signal that is
            # lost in a crash of the executor is one that nobody was promised.
            self._ledger.forget_signals(done)
        for wanted, run in due:
            if run is not None:
                run.send(wanted.signal)

    def _adopt_all(self) -> None:
        """Take over what an executor before us has left running."""
        for job in self._ledger.take_over():
            self._slots.take_one_more()
            self._start(job, Run.adopt)

    def _start(self, job: Job, how: Callable[[Run], JobEnd | None]) -> None:
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

    def _start_postponed(self) -> None:
        """Start what is ours, and has its slot, but could not be started."""
        postponed, self._postponed = self._postponed, []
        for job, how in postponed:
            self._start(job, how)

    def _make_run(self, job: Job) -> Run:
        run = Run(job, self._around)
        self._runs[job.number] = run
        return run

    def _work(self, run: Run, how: Callable[[Run], JobEnd | None]) -> None:
        """Run jobs one after the other in a slot, until the queue is empty. The thread's main function."""
        following = self._run_one(run, how)
        while following is not None:
            try:
                run = self._make_run(following)
            except OSError as error:
                logger.warning("can't start job %d, trying again: %s", following.number, error)
                self._slots.take_one_more()  # this thread gives its own back
                self._postponed.append((following, Run.execute))
                return
            following = self._run_one(run, Run.execute)

    def _give_slot(self) -> None:
        if self._slots.give():
            self._hints.wake_executor(Hint.QUEUED)

    def _run_one(self, run: Run, how: Callable[[Run], JobEnd | None]) -> Job | None:
        """Run a job to its end; return the next one for this slot, claimed in the same transaction."""
        log.JOB.set(run.job.number)
        try:
            if how is Run.execute and (self._stopping or run.job.number in self._canceled):
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
        return not self._stopping and keeps_all and self._slots.may_go_on()

    def _execute(self, run: Run, how: Callable[[Run], JobEnd | None]) -> JobEnd | None:
        try:
            if how is Run.execute and _is_deserted(run.job):
                self._ledger.abandon([run.job.number])
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

    def _end(self) -> None:
        """Give running jobs up, or end them; return when all threads have."""
        if self._stop_grace is not None:
            self._cancel_all(self._stop_grace)
        else:
            for run in list(self._runs.values()):
                run.give_up()
        self._threads.close()
        while not self._threads.join(TICK):
            self._limit_outputs()
        for job, how in self._postponed:
            if how is Run.execute:
                log.JOB.set(job.number)
                self._aftermath.requeue(job)
        log.JOB.set(None)
        logger.info("executor %s has stopped", self._identity)

    def _cancel_all(self, grace: float) -> None:
        now = self._now()
        requests = {
            run: CancelRequest("service", now, signal.SIGTERM, min(run.job.spec.grace, grace))
            for run in list(self._runs.values())
        }
        self._ledger.cancel({run.job.number: request for run, request in requests.items()})
        for run, request in requests.items():
            run.cancel(request)


def _is_deserted(job: Job) -> bool:
    """Tell whether a job is to run only as long as its client listens, and who had its connection has died."""
    return job.spec.holder is not None and not is_alive(job.spec.holder)
