"""The executor: slots and threads that run the jobs of one data directory.

One thread (`Executor.run`) looks for work: queued jobs for free slots, cancel
requests, signals, output that gets too long. Each running job has a thread of
its own from a pool (`jobrunner.executor.running`). Hints wake the first; without
them it looks every `TICK` seconds.
"""

import logging
import signal
import time
from collections.abc import Callable

from jobrunner.clock import Now
from jobrunner.config import Output
from jobrunner.domain.job import CancelRequest, Job
from jobrunner.domain.masking import MaskRules
from jobrunner.drain import Drain
from jobrunner.ends import EndsFile
from jobrunner.executor.aftermath import Aftermath
from jobrunner.executor.cgroup import ControlGroups
from jobrunner.executor.confine import Confinement
from jobrunner.executor.ledger import RETRY_PAUSE, Ledger
from jobrunner.executor.run import Run
from jobrunner.executor.running import MakeRun, Runs, is_deserted
from jobrunner.executor.slots import make_room
from jobrunner.executor.surroundings import Surroundings
from jobrunner.executor.tree import Orphans
from jobrunner.executor.trouble import Trouble
from jobrunner.hints import Hint, Hints, Inbox
from jobrunner.locks import FileLock
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
        now: the clock.
        make_run: makes what watches a job; may raise `OSError` when that is not possible now.
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
        make_run: MakeRun = Run,
    ) -> None:
        self._identity = identity
        self._drain = drain
        self.is_drained = False
        self._orphans = orphans
        self._hints = hints
        self._now = now
        self._stop_grace = stop_grace
        self._stopping = False
        self._inbox: Inbox | None = None
        self._look_at_all_at = 0.0
        self._ledger = Ledger(identity, database, now, lambda: self._stopping)
        around = Surroundings(
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
        self._runs = Runs(max_running, around, Aftermath(around, hints, masks), hints, lambda: self._stopping, make_run)

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
        self._runs.slots.size = make_room(self._runs.slots.size)
        logger.info("executor %s runs up to %d jobs at a time", self._identity, self._runs.slots.size)
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
            self._runs.start_postponed()
            self._abandon_deserted()
        if everything or Hint.CONTROL.value in hints:
            self._control()
        if Hint.QUEUED.value in hints or (everything and self._ledger.has_queued()):
            self._claim()

    def _limit_outputs(self) -> None:
        for run in self._runs.all():
            run.limit_output()

    def _control(self) -> None:
        requests, signals = self._ledger.list_wishes()
        self._runs.canceled = requests.keys()
        for number, request in requests.items():
            if run := self._runs.get(number):
                run.cancel(request)
        if signals:
            self._send(signals)

    def _abandon_deserted(self) -> None:
        jobs = [run.job for run in self._runs.all()]
        deserted = [job.number for job in jobs if job.number not in self._runs.canceled and is_deserted(job)]
        if deserted:
            self._ledger.abandon(deserted)

    def _claim(self) -> None:
        free = self._runs.slots.take_free()
        if not free:
            return
        claimed: list[Job] = []
        try:
            claimed = self._ledger.claim(free)
        finally:
            self._runs.slots.give_unused(free - len(claimed))
        if len(claimed) < free:
            self._runs.slots.queue_is_empty()
        for job in claimed:
            self._runs.start(job, Run.execute)

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
            self._runs.slots.take_one_more()
            self._runs.start(job, Run.adopt)

    def _end(self) -> None:
        """Give running jobs up, or end them; return when all threads have."""
        if self._stop_grace is not None:
            self._cancel_all(self._stop_grace)
        else:
            for run in self._runs.all():
                run.give_up()
        self._runs.close()
        while not self._runs.join(TICK):
            self._limit_outputs()
        self._runs.requeue_postponed()
        logger.info("executor %s has stopped", self._identity)

    def _cancel_all(self, grace: float) -> None:
        now = self._now()
        requests = {
            run: CancelRequest("service", now, signal.SIGTERM, min(run.job.spec.grace, grace))
            for run in self._runs.all()
        }
        self._ledger.cancel({run.job.number: request for run, request in requests.items()})
        for run, request in requests.items():
            run.cancel(request)
