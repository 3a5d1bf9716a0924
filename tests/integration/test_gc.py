"""Retention: what is beyond the limits goes, the newest stay, and what has not ended is never touched."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobrunner.config import Gc
from jobrunner.domain.ids import make_job_id
from jobrunner.domain.spec import Input, InputKind
from jobrunner.domain.states import JobState
from jobrunner.service.gc import Failure, GcService, Report
from jobrunner.spool import Spool
from jobrunner.store import jobs as store
from jobrunner.store.engine import Database
from tests.integration.stored import add_ended, add_job, add_many, add_running, at, count, rows

NOTHING = Gc(keep=1 << 40, max_age=1e9, max_bytes=1 << 60)
"""Limits that nothing is beyond."""

NOW = at(1000)


@pytest.fixture
def spool(data_dir: Path) -> Spool:
    """The directories of jobs."""
    return Spool(data_dir)


@pytest.fixture
def gc(database: Database, spool: Spool) -> GcService:
    """Retention, at the second 1000 of the tests' clock."""
    return GcService(database, spool, lambda: NOW)


def limits(**values: Any) -> Gc:
    return Gc(**{"keep": NOTHING.keep, "max_age": NOTHING.max_age, "max_bytes": NOTHING.max_bytes, **values})


def make_directory(spool: Spool, job_id: str | None = None, *, age: float = 0.0) -> Path:
    """Make the directory of a job, with a file in it, changed this many seconds ago."""
    job_id = job_id or make_job_id(int(time.time() * 1000))
    spool.prepare(job_id, [Input(InputKind.FILE, "file", b"x" * 10)])
    path = Path(spool.path(job_id))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def left(database: Database) -> list[int]:
    return [row.number for row in rows(database, "SELECT number FROM job ORDER BY number")]


def reasons(report: Report) -> dict[int, str]:
    return {purge.number: purge.reason for purge in report.purged}


# ── limits ──


def test_within_the_limits_everything_stays(gc: GcService, database: Database) -> None:
    for _ in range(3):
        add_ended(database, disk_bytes=100)

    assert gc.run(NOTHING) == Report((), (), 3)
    assert left(database) == [1, 2, 3]


def test_the_newest_jobs_are_kept(gc: GcService, database: Database) -> None:
    for _ in range(5):
        add_ended(database)

    report = gc.run(limits(keep=2))

    assert left(database) == [4, 5]
    assert reasons(report) == {3: "keep", 2: "keep", 1: "keep"}
    assert report.kept == 2


def test_what_has_ended_too_long_ago_goes(gc: GcService, database: Database) -> None:
    for seconds in (0, 899, 900, 901, 1000):
        add_ended(database, finished_at=at(seconds))

    report = gc.run(limits(max_age=100.0))

    assert left(database) == [3, 4, 5]
    assert reasons(report) == {2: "max_age", 1: "max_age"}


def test_what_ended_late_stays_though_it_was_submitted_early(gc: GcService, database: Database) -> None:
    add_ended(database, finished_at=at(999))
    add_ended(database, finished_at=at(10))

    gc.run(limits(max_age=100.0))

    assert left(database) == [1]


def test_the_newest_are_kept_up_to_a_size(gc: GcService, database: Database) -> None:
    for size in (10, 20, 30, 40):
        add_ended(database, disk_bytes=size)

    report = gc.run(limits(max_bytes=75))

    assert left(database) == [3, 4]
    assert reasons(report) == {2: "max_bytes", 1: "max_bytes"}
    assert report.freed_bytes == 30


def test_what_is_older_than_a_job_that_does_not_fit_goes_with_it(gc: GcService, database: Database) -> None:
    """However small it is: the newest are kept, without holes."""
    for size in (0, 5, 100, 20, 30):
        add_ended(database, disk_bytes=size)

    report = gc.run(limits(max_bytes=60))

    assert left(database) == [4, 5]
    assert reasons(report) == {3: "max_bytes", 2: "max_bytes", 1: "max_bytes"}


def test_a_limit_of_nothing_keeps_nothing(gc: GcService, database: Database) -> None:
    for _ in range(3):
        add_ended(database, disk_bytes=1)

    assert len(gc.run(limits(keep=0)).purged) == 3
    assert left(database) == []


def test_every_limit_counts(gc: GcService, database: Database) -> None:
    for seconds, size in [(990, 1), (990, 1000), (990, 1), (10, 1000), (990, 1)]:
        add_ended(database, finished_at=at(seconds), disk_bytes=size)

    report = gc.run(Gc(keep=2, max_age=100.0, max_bytes=100))

    assert left(database) == [3, 5]
    assert reasons(report) == {4: "max_age", 2: "keep", 1: "keep"}
    assert reasons(gc.run(Gc(keep=2, max_age=100.0, max_bytes=1))) == {3: "max_bytes"}


def test_a_job_that_has_not_ended_is_never_touched(gc: GcService, database: Database, spool: Spool) -> None:
    running, queued = add_running(database), add_job(database)
    directory = make_directory(spool, running.id, age=1e6)

    report = gc.run(Gc(keep=0, max_age=0.0, max_bytes=0))

    assert report == Report((), (), 0)
    assert left(database) == [running.number, queued.number]
    assert (directory / "scratch" / "file").exists()


def test_rows_and_directories_go_together(gc: GcService, database: Database, spool: Spool) -> None:
    gone, stays = add_ended(database), add_ended(database)
    directories = [make_directory(spool, job.id) for job in (gone, stays)]

    gc.run(limits(keep=1))

    assert [directory.exists() for directory in directories] == [False, True]
    assert left(database) == [stays.number]


def test_thousands_of_jobs_are_purged_in_order_of_their_age(gc: GcService, database: Database) -> None:
    add_many(database, ({"state": (JobState.FAILED, JobState.QUEUED)[n % 10 == 0]} for n in range(3000)))

    report = gc.run(limits(keep=100))

    numbers = [purge.number for purge in report.purged]
    assert numbers == sorted(numbers, reverse=True)
    assert (len(numbers), report.kept) == (2600, 100)
    assert count(database, "job") == 400


def test_submissions_get_their_turn_while_gc_works(gc: GcService, database: Database) -> None:
    add_many(database, ({} for _ in range(3000)))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gc.run, limits(keep=0))
        added = 0
        while not running.done():
            add_job(database)
            added += 1
        running.result()

    assert added > 5
    assert left(database) == list(range(3001, 3001 + added))


def test_a_job_that_went_meanwhile_is_no_error(gc: GcService, database: Database) -> None:
    add_many(database, ({} for _ in range(500)))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gc.run, limits(keep=0))
        for number in range(1, 501, 7):
            with database.write() as connection:
                store.delete_ended_job(connection, number)
        running.result()

    assert left(database) == []


# ── dry run ──


def test_a_dry_run_tells_the_same_and_changes_nothing(gc: GcService, database: Database, spool: Spool) -> None:
    jobs = [add_ended(database, disk_bytes=4096) for _ in range(3)]
    directories = [make_directory(spool, job.id) for job in jobs]
    orphan = make_directory(spool, age=7200)

    told = gc.run(limits(keep=1), dry_run=True)

    assert left(database) == [1, 2, 3]
    assert all(directory.exists() for directory in [*directories, orphan])
    assert told.orphans == (orphan.name,)
    assert gc.run(limits(keep=1)) == told
    assert told.freed_bytes == 8192


# ── what can't be removed ──


class StickySpool(Spool):
    """Some directories of which can't be removed."""

    def __init__(self, data_dir: Path, *, keep_scratch: bool = True) -> None:
        super().__init__(data_dir, keep_scratch=keep_scratch)
        self.stuck: set[str] = set()

    def remove(self, job_id: str) -> None:
        self._check(job_id)
        super().remove(job_id)

    def drop_scratch(self, job_id: str) -> None:
        self._check(job_id)
        super().drop_scratch(job_id)

    def _check(self, job_id: str) -> None:
        if job_id in self.stuck:
            raise OSError(errno.EIO, "is stuck", self.path(job_id))


def test_a_directory_that_can_not_be_removed_stops_nothing(database: Database, data_dir: Path) -> None:
    spool = StickySpool(data_dir)
    jobs = [add_ended(database, disk_bytes=10) for _ in range(3)]
    directories = [make_directory(spool, job.id, age=7200) for job in jobs]
    orphans = [make_directory(spool, age=7200) for _ in range(3)]
    spool.stuck = {jobs[1].id, orphans[1].name}

    report = GcService(database, spool, lambda: NOW).run(limits(keep=0))

    assert left(database) == []
    assert [directory.exists() for directory in [*directories, *orphans]] == [False, True, False] * 2
    assert set(report.failures) == {Failure(jobs[1].id, "is stuck"), Failure(orphans[1].name, "is stuck")}
    assert set(report.orphans) == {orphans[0].name, orphans[2].name}
    assert (len(report.purged), report.freed_bytes) == (3, 20)

    spool.stuck = set()
    again = GcService(database, spool, lambda: NOW).run(NOTHING)

    assert (set(again.orphans), again.failures) == ({jobs[1].id, orphans[1].name}, ())


def test_a_directory_that_can_not_be_looked_into_stops_nothing(gc: GcService, spool: Spool, data_dir: Path) -> None:
    loop = data_dir / "jobs" / "00"
    loop.parent.mkdir(exist_ok=True)
    loop.symlink_to("00")
    orphan = make_directory(spool, "0192f0c4-5d3e-7c31-9d0e-0000000000ff", age=7200)

    report = gc.run(NOTHING)

    assert report.orphans == (orphan.name,)
    assert [failure.where for failure in report.failures] == [str(loop)]


# ── scratch directories that are not kept ──


@pytest.fixture
def clearing(database: Database, data_dir: Path) -> GcService:
    """Retention where ended jobs keep no scratch directories."""
    return GcService(database, Spool(data_dir, keep_scratch=False), lambda: NOW)


def scratch(directory: Path) -> Path:
    return directory / "scratch"


def disk_bytes(database: Database) -> list[int]:
    return [row.disk_bytes for row in rows(database, "SELECT disk_bytes FROM job ORDER BY number")]


def test_a_job_that_drops_its_scratch_directory_loses_it_wherever_these_are_kept(
    gc: GcService, database: Database, spool: Spool
) -> None:
    """Its executor was killed between its end and that."""
    keeps, drops = add_ended(database), add_ended(database, drops_scratch=True)
    kept, dropped = (make_directory(spool, job.id) for job in (keeps, drops))

    report = gc.run(NOTHING)

    assert (report.cleared, report.kept, report.failures) == ((drops.id,), 2, ())
    assert (scratch(kept).exists(), scratch(dropped).exists(), dropped.exists()) == (True, False, True)
    assert disk_bytes(database) == [0, spool.disk_bytes(drops.id)]
    assert gc.run(NOTHING).cleared == ()


def test_ended_jobs_lose_their_scratch_directories_where_those_are_not_kept(
    clearing: GcService, gc: GcService, database: Database, spool: Spool
) -> None:
    """An executor was told to keep them, or died, or could not remove them."""
    ended = [add_ended(database, disk_bytes=10**6) for _ in range(3)]
    running = add_running(database)
    directories = [make_directory(spool, job.id) for job in [*ended, running]]
    (directories[0] / "stdout").write_bytes(b"x" * 10_000)

    assert gc.run(NOTHING).cleared == ()
    assert all(scratch(directory).exists() for directory in directories)
    report = clearing.run(NOTHING)

    assert set(report.cleared) == {job.id for job in ended}
    assert (report.purged, report.kept, report.failures) == ((), 3, ())
    assert [scratch(directory).exists() for directory in directories] == [False] * 3 + [True]
    assert all(directory.exists() for directory in directories)
    assert disk_bytes(database) == [*(spool.disk_bytes(job.id) for job in ended), 0]
    assert disk_bytes(database)[0] >= 10_000
    assert clearing.run(NOTHING).cleared == ()


def test_no_job_is_purged_for_space_that_its_scratch_directory_held(
    clearing: GcService, database: Database, spool: Spool
) -> None:
    for _ in range(3):
        make_directory(spool, add_ended(database, disk_bytes=10**6).id)

    told = clearing.run(limits(max_bytes=500_000), dry_run=True)
    assert disk_bytes(database) == [10**6] * 3
    done = clearing.run(limits(max_bytes=500_000))

    assert told == done
    assert (done.purged, done.kept, len(done.cleared)) == ((), 3, 3)


def test_more_scratch_directories_than_fit_into_a_transaction_are_removed(
    clearing: GcService, database: Database, spool: Spool
) -> None:
    directories = [make_directory(spool, add_ended(database).id) for _ in range(120)]

    assert len(clearing.run(NOTHING).cleared) == 120
    assert not any(scratch(directory).exists() for directory in directories)


def test_a_scratch_directory_that_can_not_be_removed_stops_nothing(database: Database, data_dir: Path) -> None:
    spool = StickySpool(data_dir, keep_scratch=False)
    jobs = [add_ended(database) for _ in range(3)]
    directories = [make_directory(spool, job.id) for job in jobs]
    spool.stuck = {jobs[1].id}
    gc = GcService(database, spool, lambda: NOW)

    report = gc.run(NOTHING)

    assert report.failures == (Failure(jobs[1].id, "is stuck"),)
    assert set(report.cleared) == {jobs[0].id, jobs[2].id}
    assert [scratch(directory).exists() for directory in directories] == [False, True, False]
    spool.stuck = set()
    assert gc.run(NOTHING).cleared == (jobs[1].id,)


# ── orphans ──


def test_a_directory_without_a_row_goes_after_an_hour(gc: GcService, spool: Spool) -> None:
    old, young = make_directory(spool, age=3660), make_directory(spool, age=3540)

    report = gc.run(NOTHING)

    assert report.orphans == (old.name,)
    assert not old.exists()
    assert young.exists()


def test_an_old_directory_with_a_row_is_no_orphan(gc: GcService, database: Database, spool: Spool) -> None:
    directories = [make_directory(spool, job.id, age=1e6) for job in (add_ended(database), add_running(database))]

    assert gc.run(NOTHING).orphans == ()
    assert all(directory.exists() for directory in directories)


def test_more_orphans_than_fit_into_a_query_are_found(gc: GcService, data_dir: Path) -> None:
    for number in range(1100):
        path = (
            data_dir / "jobs" / f"{number % 100:02}" / f"0192f0c4-5d3e-7c31-9d0e-{number // 100:010}{number % 100:02}"
        )
        path.mkdir(parents=True)
        os.utime(path, (0, 0))

    assert len(gc.run(NOTHING).orphans) == 1100
    assert gc.run(NOTHING).orphans == ()


def test_a_run_that_died_between_row_and_directory_is_finished_by_the_next(
    gc: GcService, database: Database, spool: Spool
) -> None:
    job = add_ended(database)
    directory = make_directory(spool, job.id, age=7200)
    with database.write() as connection:
        store.delete_ended_job(connection, job.number)

    assert gc.run(NOTHING).orphans == (job.id,)
    assert not directory.exists()


@pytest.mark.parametrize("kind", ["file", "link", "misplaced directory"])
def test_what_does_not_belong_into_the_spool_stops_nothing(
    gc: GcService, spool: Spool, data_dir: Path, kind: str
) -> None:
    orphan = make_directory(spool, age=7200)
    stranger = data_dir / "jobs" / "00" / "stranger00"
    stranger.parent.mkdir(exist_ok=True)
    match kind:
        case "file":
            stranger.touch()
        case "link":
            stranger.symlink_to("/")
        case _:
            stranger = stranger.with_name("stranger")
            stranger.mkdir()
    os.utime(stranger, (0, 0), follow_symlinks=False)

    gc.run(NOTHING)
    again = gc.run(NOTHING)

    assert not orphan.exists()
    assert again.orphans == (), "what is told to be gone is gone, or is not told"
