"""Whether a submission is taken: repeats, space, drain, exclusive names, the length of the queue."""

from collections.abc import Callable

from jobrunner.domain.access import Caller
from jobrunner.domain.errors import Draining, InvalidRequest, NameInUse, QueueFull
from jobrunner.domain.job import IdempotencyKey
from jobrunner.domain.spec import JobSpec
from jobrunner.drain import Drain
from jobrunner.store import jobs as store
from jobrunner.store.engine import Connection
from jobrunner.store.keys import Known, add_key, find_key


class Admission:
    """Refuses submissions that the service has no room for, and knows those that were made before.

    Args:
        check_space: raises `StorageFull` when the disk is nearly full.
        drain: the service may take nothing more.
        max_queued: jobs that may wait at a time.
    """

    def __init__(self, check_space: Callable[[], None], drain: Drain, *, max_queued: int) -> None:
        self._check_space = check_space
        self._drain = drain
        self._max_queued = max_queued

    def check(self, connection: Connection, spec: JobSpec, caller: Caller, api: str | None = None) -> None:
        """Decide in the very transaction that is to store the job.

        An executor that looks for the last job of a drain holds the writers'
        lock as well: it sees either the job, or this sees the drain.

        Args:
            connection: that of the transaction.
            spec: of the job.
            caller: who asks.
            api: among whose jobs a name is exclusive; None: all.

        Raises:
            StorageFull, Draining, QueueFull: nothing is taken at the moment.
            NameInUse: the job is exclusive, and another one has its name.
        """
        self._check_space()
        if self._drain.is_on:
            raise Draining
        if spec.exclusive and spec.name is not None:
            other = store.find_active_name(connection, spec.name, api)
            if other is not None:
                raise NameInUse(spec.name, other.id if caller.sees(other.owner) else None)
        if store.has_queued(connection, at_least=self._max_queued):
            raise QueueFull(self._max_queued)

    def find_repeated(self, connection: Connection, owner: str, key: IdempotencyKey) -> int | None:
        """Return the number of the job that a submission with this key has made before.

        Raises:
            InvalidRequest: that one asked for something else.
        """
        known = find_key(connection, owner, key.text)
        if known is None:
            return None
        if known.fingerprint != key.fingerprint:
            raise InvalidRequest.at(
                "Idempotency-Key", "was used for another request; take a new key for what is not a repeat"
            )
        return known.number

    def remember(self, connection: Connection, owner: str, key: IdempotencyKey, number: int) -> None:
        """Keep the key for as long as the job is there."""
        add_key(connection, owner, key.text, Known(key.fingerprint, number))
