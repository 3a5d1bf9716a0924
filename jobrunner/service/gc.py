"""Retention: forgets ended jobs beyond the configured limits, while the service runs."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from jobrunner.clock import Now
from jobrunner.config import Gc
from jobrunner.spool import Spool
from jobrunner.store import retention as store
from jobrunner.store.engine import Database

ORPHAN_AGE = 3600.0
"""Seconds that a directory without a row is spared: its row may just be on its way."""

_PAGE = 1000
_BATCH = 50
"""Jobs a transaction forgets: small, so that submissions get their turn in between."""

_TOP = 1 << 62


@dataclass(frozen=True, slots=True)
class Purge:
    """A job that is, or would be, forgotten.

    Attributes:
        reason: the limit it is beyond: ``keep``, ``max_age`` or ``max_bytes``.
        disk_bytes: what its files hold.
    """

    number: int
    id: str
    reason: str
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A directory that could not be removed, or looked into.

    Attributes:
        where: the job's id, or the path.
        detail: the system's words.
    """

    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a run of gc has done, or would do.

    Attributes:
        purged: the jobs, newest first.
        orphans: directories of no job that are gone.
        kept: ended jobs that stay.
        failures: of directories that could not be removed; the next run finds them again.
        cleared: ended jobs whose scratch directories are gone, where those are not kept.
    """

    purged: tuple[Purge, ...]
    orphans: tuple[str, ...]
    kept: int
    failures: tuple[Failure, ...] = ()
    cleared: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """Disk blocks of the purged jobs whose files are gone, in bytes."""
        left = {failure.where for failure in self.failures}
        return sum(purge.disk_bytes for purge in self.purged if purge.id not in left)


@dataclass(frozen=True, slots=True)
class _Scratch:
    """A scratch directory that is to go.

    Attributes:
        disk_bytes: what the job's other files hold.
    """

    number: int
    id: str
    disk_bytes: int


class GcService:
    """Purges ended jobs. Only one at a time should run in a data directory; its caller holds the lock."""

    def __init__(self, database: Database, spool: Spool, now: Now) -> None:
        self._database = database
        self._spool = spool
        self._now = now

    def run(self, limits: Gc, *, dry_run: bool = False) -> Report:
        """Purge what is beyond the limits, directories of no job, and what ended jobs do not keep.

        Jobs that have not ended are never touched, nor those whose callback
        is still owed: it tells of their output. A directory that can't be
        removed stops nothing: the report names it.

        Args:
            limits: what may stay.
            dry_run: only tell.

        Raises:
            StorageError: it got as far as it got; running it again goes on.
        """
        failures: list[Failure] = []
        scratches = self._find_scratches()
        if not dry_run:
            failures += self._clear(scratches)
        left = {failure.where for failure in failures}
        cleared = tuple(scratch.id for scratch in scratches if scratch.id not in left)
        kept, purges = self._judge(limits, {scratch.number: scratch.disk_bytes for scratch in scratches})
        if not dry_run:
            for start in range(0, len(purges), _BATCH):
                failures += self._purge(purges[start : start + _BATCH])
        tried = {failure.where for failure in failures}
        found = [job_id for job_id in self._find_orphans(failures) if job_id not in tried]
        if not dry_run:
            failures += _remove(self._spool.remove, found)
        left = {failure.where for failure in failures}
        orphans = tuple(job_id for job_id in found if job_id not in left)
        return Report(tuple(purges), orphans, kept, tuple(failures), cleared)

    def _find_scratches(self) -> list[_Scratch]:
        """Find scratch directories that ended jobs do not keep: an executor was told to, or died, or could not."""
        return [
            _Scratch(job.number, job.id, self._spool.disk_bytes(job.id, without_scratch=True))
            for job in self._ended_jobs()
            if (job.drops_scratch or not self._spool.keeps_scratch) and self._spool.has_scratch(job.id)
        ]

    def _clear(self, scratches: list[_Scratch]) -> list[Failure]:
        """Remove scratch directories; return those that could not be removed."""
        failures: list[Failure] = []
        for start in range(0, len(scratches), _BATCH):
            batch = scratches[start : start + _BATCH]
            # Before they are gone: a crash in between leaves directories, which the next run finds.
            sizes = {scratch.number: scratch.disk_bytes for scratch in batch}
            self._database.insist(partial(store.set_disk_bytes, sizes=sizes))
            failures += _remove(self._spool.drop_scratch, [scratch.id for scratch in batch])
        return failures

    def _judge(self, limits: Gc, sizes: Mapping[int, int]) -> tuple[int, list[Purge]]:
        """Walk through the ended jobs, newest first, and find those beyond a limit.

        Args:
            limits: what may stay.
            sizes: what jobs hold where their rows don't tell yet, by number.
        """
        oldest = self._now() - timedelta(seconds=min(limits.max_age, 1e9))
        kept, kept_bytes, is_full = 0, 0, False
        purges: list[Purge] = []
        for number, job_id, finished_at, at_end, is_owed, _ in self._ended_jobs():
            disk_bytes = sizes.get(number, at_end)
            if is_owed:
                reason = None
            elif kept >= limits.keep:
                reason = "keep"
            elif finished_at < oldest:
                reason = "max_age"
            elif is_full or kept_bytes + disk_bytes > limits.max_bytes:
                # All that is older goes too, though it might fit: the newest stay, without holes.
                reason, is_full = "max_bytes", True
            else:
                reason = None
            if reason is None:
                kept += 1
                kept_bytes += disk_bytes
            else:
                purges.append(Purge(number, job_id, reason, disk_bytes))
        return kept, purges

    def _ended_jobs(self) -> Iterator[store.Ended]:
        before = _TOP
        while True:
            with self._database.read() as connection:
                page = store.list_ended(connection, before=before, limit=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            before = page[-1].number

    def _purge(self, purges: list[Purge]) -> list[Failure]:
        gone = self._database.insist(
            lambda connection: [purge for purge in purges if store.purge_job(connection, purge.number)]
        )
        # After the rows: a crash in between leaves orphans, which the next run finds.
        return _remove(self._spool.remove, [purge.id for purge in gone])

    def _find_orphans(self, failures: list[Failure]) -> Iterator[str]:
        """Find directories without a row; add those that can't be looked into to the failures."""

        def fail(error: OSError) -> None:
            failures.append(Failure(str(error.filename), error.strerror or str(error)))

        old = time.time() - ORPHAN_AGE
        batch: list[str] = []
        for job_id, changed_at in self._spool.list_directories(on_error=fail):
            if changed_at < old:
                batch.append(job_id)
            if len(batch) == _PAGE:
                yield from self._without_row(batch)
                batch = []
        yield from self._without_row(batch)

    def _without_row(self, ids: list[str]) -> list[str]:
        with self._database.read() as connection:
            existing = store.existing_ids(connection, ids)
        return [job_id for job_id in ids if job_id not in existing]


def _remove(how: Callable[[str], None], ids: list[str]) -> list[Failure]:
    """Remove something of each of these jobs; return what could not be removed."""
    failures = []
    for job_id in ids:
        try:
            how(job_id)
        except OSError as error:
            failures.append(Failure(job_id, error.strerror or str(error)))
    return failures
