"""The rows of an executor: all that it reads and writes in the database."""

import logging
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from jobrunner.clock import Now
from jobrunner.domain.errors import StorageError
from jobrunner.domain.job import CancelRequest, Job, JobEnd, JobError, SentSignal, StepSpan
from jobrunner.domain.spec import Input
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Hole, Stream
from jobrunner.store import execution
from jobrunner.store import jobs as store
from jobrunner.store.engine import Connection, Database

logger = logging.getLogger("jobrunner.executor")

T = TypeVar("T")

RETRY_PAUSE = 1.0
"""Seconds between two tries to write to a storage that refuses."""


class Ledger:
    """What an executor reads and writes, under its own name.

    What became of a job is written however long the storage refuses, unless
    the executor is stopped meanwhile. Everything else raises `StorageError`.

    Args:
        identity: names the executor in the rows it owns.
        is_stopping: whether the executor was told to stop.
    """

    def __init__(self, identity: str, database: Database, now: Now, is_stopping: Callable[[], bool]) -> None:
        self._identity = identity
        self._database = database
        self._now = now
        self._is_stopping = is_stopping

    def keep_reserve(self) -> None:
        """Take the space that the writes which must not fail need on a full disk, if there is any."""
        self._database.reserve.keep()

    # ── what there is to do ──

    def has_active(self) -> bool:
        """Tell for certain whether a job waits or runs: a submission in its transaction holds the writers' lock too."""
        with self._database.write() as connection:
            return store.has_active(connection)

    def has_queued(self) -> bool:
        """Tell whether a job waits. Without the writers' lock: this is asked four times a second all day."""
        with self._database.read() as connection:
            return store.has_queued(connection)

    def claim(self, limit: int) -> list[Job]:
        """Take up to so many jobs from the queue."""
        return self._database.write_together(
            lambda connection: execution.claim_jobs(connection, self._identity, limit, self._now())
        )

    def take_over(self) -> list[Job]:
        """Take over what executors before this one have left running."""
        with self._database.write() as connection:
            return execution.take_over_jobs(connection, self._identity)

    def list_wishes(self) -> tuple[dict[int, CancelRequest], list[execution.WantedSignal]]:
        """Return which jobs should end, by number, and the signals that are to be sent."""
        with self._database.read() as connection:
            return execution.list_cancel_requests(connection), execution.list_signals(connection)

    def forget_signals(self, rows: Sequence[int]) -> None:
        """Remove signals that are about to be sent, or have lost their job."""
        with self._database.write() as connection:
            execution.remove_signals(connection, rows)

    def load_inputs(self, number: int) -> list[Input]:
        """Return what came with the submission of a job."""
        with self._database.read() as connection:
            return store.load_inputs(connection, number)

    # ── what became of a job ──

    def finish(self, number: int, end: JobEnd, may_claim: Callable[[], bool]) -> tuple[bool, Job | None] | None:
        """Write down how a job has ended, and claim the next one in the same transaction.

        Args:
            number: of the job.
            end: how it has ended.
            may_claim: asked inside the transaction: whether the slot goes on to another job.

        Returns:
            Whether it was still ours to end, and the next job; None when the executor was stopped before.
        """

        def write(connection: Connection) -> tuple[bool, Job | None]:
            ended = execution.finish_job(connection, number, self._identity, end)
            claimed = execution.claim_jobs(connection, self._identity, 1, self._now()) if may_claim() else []
            return ended, claimed[0] if claimed else None

        return self._persist(write)

    def record_step(self, number: int, spans: Sequence[StepSpan]) -> bool:
        """Write down that a step has ended well and the next one begins. False: not ours, or the executor was stopped.

        Args:
            number: of the job.
            spans: of its steps so far, the one that begins included.
        """
        return bool(self._persist(lambda connection: execution.record_step(connection, number, self._identity, spans)))

    def requeue(self, number: int) -> JobState | None:
        """Put a job back for which no process was made; if it was canceled meanwhile, it has ended with that.

        Returns:
            The state it has now; None when it is not ours, or the executor was stopped.
        """
        return self._persist(lambda connection: execution.requeue_job(connection, number, self._identity))

    def cancel(self, requests: Mapping[int, CancelRequest]) -> None:
        """Write down that we want these jobs to end."""
        self._persist(lambda connection: [store.cancel_running(connection, *request) for request in requests.items()])

    def abandon(self, numbers: Collection[int]) -> None:
        """Write down that these jobs are to be killed, because nobody listens to them any more."""
        request = CancelRequest("service", self._now(), signal.SIGKILL, grace=0)
        self._database.insist(
            lambda connection: [store.cancel_running(connection, number, request) for number in numbers]
        )

    def record_signals(
        self, number: int, signals: Sequence[SentSignal], ending: JobState, error: JobError | None
    ) -> None:
        """Write down how a job is told to end, unless the storage refuses. See `store.execution.record_signals`."""
        try:
            with self._database.write() as connection:
                execution.record_signals(connection, number, self._identity, signals, ending=ending, error=error)
        except StorageError as refusal:
            # The row will have them when the job has ended.
            logger.warning("can't write down the signals of the job: %s", refusal)

    def record_holes(self, number: int, holes: Mapping[Stream, Hole], *, may_write_on: bool) -> bool:
        """Write down what is about to be dropped of a job's streams. False when the job is no longer ours.

        Args:
            number: of the job.
            holes: all that it has.
            may_write_on: whether it may fill the disk again.

        Raises:
            StorageError: it is not written.
        """
        # It makes space, so it may use what is kept for that on a full disk. But a job that keeps
        # the disk full may take that space again and again: the last of it is for the job's end.
        leave = 1 if may_write_on else 0
        return self._database.insist(
            lambda connection: execution.record_holes(connection, number, self._identity, holes), leave=leave
        )

    def _persist(self, write: Callable[[Connection], T]) -> T | None:
        """Write, and try again until the storage takes it; None when the executor was stopped before."""
        while True:
            try:
                return self._database.insist(write)
            except StorageError as error:
                logger.warning("can't write what became of the job, trying again: %s", error)
                if self._is_stopping():
                    return None
                time.sleep(RETRY_PAUSE)
