"""Whether a submission is taken: space, drain, the length of the queue."""

from collections.abc import Callable

from jobrunner.domain.errors import Draining, QueueFull
from jobrunner.drain import Drain
from jobrunner.store import jobs as store
from jobrunner.store.engine import Connection


class Admission:
    """Refuses submissions that the service has no room for.

    Args:
        check_space: raises `StorageFull` when the disk is nearly full.
        drain: the service may take nothing more.
        max_queued: jobs that may wait at a time.
    """

    def __init__(self, check_space: Callable[[], None], drain: Drain, *, max_queued: int) -> None:
        self._check_space = check_space
        self._drain = drain
        self._max_queued = max_queued

    def check(self) -> None:
        """Refuse early, before anything is written.

        Raises:
            Draining, StorageFull: nothing is taken at the moment.
        """
        self._check_space()
        if self._drain.is_on:
            raise Draining

    def check_in(self, connection: Connection) -> None:
        """Refuse in the very transaction that is to store a job.

        An executor that looks for the last job of a drain holds the writers'
        lock as well: it sees either the job, or this sees the drain.

        Raises:
            Draining, QueueFull: nothing is taken at the moment.
        """
        if self._drain.is_on:
            raise Draining
        if store.has_queued(connection, at_least=self._max_queued):
            raise QueueFull(self._max_queued)
