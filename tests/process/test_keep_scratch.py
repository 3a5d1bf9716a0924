"""``[storage] keep_scratch = no``: an ended job has no scratch directory any more, and nothing waits for that."""

import errno
from pathlib import Path

import pytest

from jobrunner.config import Gc
from jobrunner.domain.job import Job
from jobrunner.domain.states import JobState
from jobrunner.house import House
from jobrunner.scratch import Listing
from jobrunner.spool import Spool
from tests.factories import CALLER, argv, make_job, running_executor, shell
from tests.integration.stored import rows
from tests.process.conftest import NewHouse
from tests.process.running import ExecutorProcess, count, scratch, started, stdout, wait
from tests.service import eventually

NOTHING = Gc(keep=1 << 40, max_age=1e9, max_bytes=1 << 60)
"""Limits that nothing is beyond."""


@pytest.fixture
def house(new_house: NewHouse) -> House:
    """A house whose ended jobs keep no scratch directories."""
    return new_house(storage={"keep_scratch": False})


def disk_bytes(house: House, job: Job) -> int:
    (row,) = rows(house.database, "SELECT disk_bytes FROM job WHERE number = :number", number=job.number)
    size: int = row.disk_bytes
    return size


def test_an_ended_job_has_its_output_but_no_files(house: House) -> None:
    job = make_job(house, shell("mkdir -p a/b; echo content | tee a/b/file", files={"given": b"given"}))

    with running_executor(house):
        wait(house, job)

    assert stdout(house, job) == "content\n"
    assert not scratch(house, job).exists()
    assert house.files.list(job.id, CALLER)[1] == Listing()


def test_by_default_an_ended_job_keeps_its_files(new_house: NewHouse) -> None:
    house = new_house()
    job = make_job(house, shell("touch file"))

    with running_executor(house):
        wait(house, job)

    assert (scratch(house, job) / "file").exists()


def test_a_running_job_has_its_files(house: House) -> None:
    job = make_job(house, shell("echo content > file; while [ ! -e go ]; do sleep 0.05; done"))

    with running_executor(house):
        assert started(house, job, "file") == "content"
        (scratch(house, job) / "go").touch()
        wait(house, job)


def test_what_is_removed_does_not_count(house: House) -> None:
    """Else gc would purge jobs for space that they don't hold."""
    job = make_job(house, shell("head -c 1000000 /dev/zero > big; head -c 100000 /dev/zero"))

    with running_executor(house):
        wait(house, job)

    assert 100_000 <= disk_bytes(house, job) < 300_000
    assert disk_bytes(house, job) == house.spool.disk_bytes(job.id)


def test_a_job_that_could_not_be_started_has_no_files_either(house: House) -> None:
    job = make_job(house, argv("/no/such/program", files={"given": b"given"}))

    with running_executor(house):
        assert wait(house, job).state is JobState.FAILED

    assert not scratch(house, job).exists()


def test_a_job_that_another_executor_has_started_has_no_files_either(house: House) -> None:
    job = make_job(house, shell("echo > ready; while [ ! -e go ]; do sleep 0.05; done"))
    with running_executor(house):
        started(house, job)

    with running_executor(house):
        (scratch(house, job) / "go").touch()
        wait(house, job)

    assert not scratch(house, job).exists()


class WatchedSpool(Spool):
    """Notes how many jobs run when a scratch directory is about to be removed."""

    def __init__(self, house: House) -> None:
        super().__init__(house.data_dir, keep_scratch=False)
        self.running: list[int] = []
        self._house = house

    def clear_away(self, job_id: str) -> None:
        self.running.append(count(self._house, JobState.RUNNING))
        super().clear_away(job_id)


def test_the_next_job_is_claimed_when_the_files_are_gone(new_house: NewHouse) -> None:
    """Its time runs from the claim on: it must not be spent waiting for that."""
    house = new_house(storage={"keep_scratch": False}, executor={"max_running": 1})
    spool = vars(house)["spool"] = WatchedSpool(house)
    jobs = [make_job(house, shell("touch file")) for _ in range(5)]

    with running_executor(house):
        for job in jobs:
            wait(house, job)

    assert spool.running == [0] * 5
    assert not [job for job in jobs if scratch(house, job).exists()]


def test_what_a_job_puts_in_the_place_of_its_directory_is_removed_alone(house: House, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "sub").mkdir(parents=True)
    (precious / "sub").chmod(0o500)
    (precious / "sub" / "file").touch()
    jobs = [
        make_job(house, shell(f"rmdir ../scratch; {replace}"))
        for replace in (f"ln -s {precious} ../scratch", "touch ../scratch", "mkfifo ../scratch", ":")
    ]

    with running_executor(house):
        for job in jobs:
            assert wait(house, job).state is JobState.SUCCEEDED

    assert [job for job in jobs if house.spool.has_scratch(job.id)] == []
    assert (precious / "sub" / "file").exists()
    assert precious.joinpath("sub").stat().st_mode & 0o777 == 0o500


class StickySpool(Spool):
    """No scratch directory of which can be removed."""

    def clear_away(self, job_id: str) -> None:
        raise OSError(errno.EIO, "is stuck", self.scratch(job_id))


def test_files_that_can_not_be_removed_hold_no_job_up(house: House, caplog: pytest.LogCaptureFixture) -> None:
    vars(house)["spool"] = StickySpool(house.data_dir, keep_scratch=False)
    jobs = [make_job(house, shell("touch file")) for _ in range(3)]

    with running_executor(house):
        assert [wait(house, job).state for job in jobs] == [JobState.SUCCEEDED] * 3

    assert caplog.text.count("is stuck") == 3
    assert all((scratch(house, job) / "file").exists() for job in jobs)


def test_what_an_executor_leaves_when_it_is_killed_gc_removes(house: House) -> None:
    """It removes a tree that takes a while, and is killed in the middle of that."""
    job = make_job(house, argv("python3", "-c", "for n in range(30_000): open(f'{n}', 'w').close()"))

    with ExecutorProcess(house, "export JOBRUNNER_STORAGE_KEEP_SCRATCH=no") as executor:
        assert eventually(lambda: house.jobs.get(job.id, CALLER).state.is_ended, within=30, every=0.001)
        executor.crash()

    report = house.gc.run(NOTHING)

    assert report.failures == ()
    assert not scratch(house, job).exists()
    assert disk_bytes(house, job) == house.spool.disk_bytes(job.id)
