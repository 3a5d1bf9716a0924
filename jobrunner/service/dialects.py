"""What a dialect needs beyond the use cases of single jobs: its jobs as a whole."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress

from jobrunner.domain.access import Caller, Scope
from jobrunner.domain.errors import JobNotFound
from jobrunner.domain.job import DialectNumber, Job
from jobrunner.domain.states import JobState, Priority
from jobrunner.service.access import Access
from jobrunner.service.audit import Audit
from jobrunner.service.jobs import CancelAsked, JobService
from jobrunner.spool import Spool
from jobrunner.store import dialects as store
from jobrunner.store.engine import Connection, Database

_PAGE = 100
"""Jobs that are read, or forgotten, at a time."""


class DialectService:
    """The jobs of one dialect. One object serves all threads of a process.

    Args:
        api: the dialect.
        jobs: the use cases of its single jobs.
        database, spool: as those have them.
        access: decides.
        audit: is told what is forgotten.
    """

    def __init__(
        self, api: str, jobs: JobService, database: Database, spool: Spool, access: Access, audit: Audit
    ) -> None:
        self._api = api
        self._jobs = jobs
        self._database = database
        self._spool = spool
        self._access = access
        self._audit = audit

    def number(self, number: int) -> DialectNumber:
        """Return the reference of a job, for `JobService`, by what the dialect calls it."""
        return DialectNumber(self._api, number)

    def list(self, caller: Caller, states: Collection[JobState] = ()) -> Iterator[Job]:
        """Return the jobs of the dialect that the caller may see, oldest first; ``states`` empty: in all states.

        They are read as they are taken, some at a time: each is as it was then.

        Raises:
            Forbidden: the caller's token is not for looking.
        """
        owner = self._access.owner_for(caller, None)
        return self._pages(owner, states)

    def _pages(self, owner: str | None, states: Collection[JobState]) -> Iterator[Job]:
        after = -1
        while True:
            with self._database.read() as connection:
                page = store.list_of_dialect(
                    connection, self._api, states=states, owner=owner, after=after, limit=_PAGE
                )
            yield from page
            if len(page) < _PAGE:
                return
            assert page[-1].dialect_number is not None
            after = page[-1].dialect_number

    def count(self, caller: Caller) -> tuple[Mapping[tuple[JobState, Priority], int], int]:
        """Return how many jobs there are for the caller to see, by state and priority; and how many of all ever ended.

        Raises:
            Forbidden: the caller's token is not for looking.
        """
        owner = self._access.owner_for(caller, None)
        with self._database.read() as connection:
            counts = store.count_of_dialect(connection, self._api, owner)
            all_counts = counts if owner is None else store.count_of_dialect(connection, self._api)
            active = sum(count for (state, _), count in all_counts.items() if not state.is_ended)
            return counts, store.next_number(connection, self._api) - active

    def is_among_newest(self, job: Job, most: int) -> bool:
        """Tell whether at most so many jobs of the dialect, itself included, came since."""
        assert job.dialect_number is not None
        with self._database.read() as connection:
            return job.dialect_number >= store.next_number(connection, self._api) - most

    def delete_all(self, caller: Caller, states: Collection[JobState] = (), *, patience: float) -> None:
        """Kill and forget the jobs of the dialect that the caller may see; those that come meanwhile stay.

        Args:
            caller: who is asking.
            states: only those that are in one of these now; empty: all.
            patience: seconds to wait for the end of each.

        Raises:
            Forbidden: the caller's token is not for this.
            JobNotEnded: one has not ended after its ``patience``.
            TooBusy: too many wait already.
        """
        self._access.require(caller, Scope.CANCEL)
        wanted = list(self._pages(None if caller.grant.sees_all else caller.name, states))
        active = [job for job in wanted if not job.state.is_ended]
        for job in active:  # all are told before one is waited for
            with suppress(JobNotFound):  # somebody else was faster
                self._jobs.cancel(job.id, caller, CancelAsked(signal="SIGKILL", grace=0))
        for job in active:
            with suppress(JobNotFound):
                self._jobs.delete(job.id, caller, force=True, patience=patience)
        ended = [job for job in wanted if job.state.is_ended]
        for start in range(0, len(ended), _PAGE):
            self._forget(ended[start : start + _PAGE], caller)

    def _forget(self, jobs: Sequence[Job], caller: Caller) -> None:
        def write(connection: Connection) -> set[str]:
            return store.delete_ended_jobs(connection, [job.number for job in jobs])

        forgotten = self._database.insist(write, durable=True)
        for job in jobs:
            if job.id in forgotten:
                self._audit.job("delete", caller, job, force=True)
                self._spool.remove(job.id)
