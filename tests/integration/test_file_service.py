"""The files of jobs, by the job: what the service adds to the tree."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobrunner.domain.errors import FileNotInJob, JobNotFound
from jobrunner.house import House
from jobrunner.service.files import SETTLED_SECONDS, FileService
from tests.factories import CALLER, make_job
from tests.service import eventually


@pytest.fixture
def scratch(house: House) -> Path:
    """The scratch directory of job 1."""
    job = make_job(house)
    house.spool.prepare(job.id, [])
    return Path(house.spool.scratch(job.id))


def version(house: House, path: bytes, *, seconds: float) -> str | None:
    """Return the version of a file so many seconds after it was changed."""
    (status,) = [entry.stat() for entry in os.scandir(house.spool.scratch(house.jobs.get("1", CALLER).id))]
    changed_at = datetime.fromtimestamp(status.st_ctime, UTC)
    files = FileService(house.database, house.spool, house.access, lambda: changed_at + timedelta(seconds=seconds))
    with (found := files.open("1", CALLER, path)).file:
        return found.version


def test_a_job_s_files_are_found_by_uuid_and_number(house: House, scratch: Path) -> None:
    (scratch / "file").write_bytes(b"content")
    job = house.jobs.get("1", CALLER)

    for reference in (job.id, "1"):
        found_job, listing = house.files.list(reference, CALLER)
        assert (found_job.id, [entry.path for entry in listing.entries]) == (job.id, [b"file"])
        with (found := house.files.open(reference, CALLER, b"file")).file as file:
            assert (file.read(), found.name, found.bytes) == (b"content", b"file", 7)


def test_a_file_is_named_without_its_directories(house: House, scratch: Path) -> None:
    (scratch / "a" / "b").mkdir(parents=True)
    (scratch / "a" / "b" / "c").touch()

    with (found := house.files.open("1", CALLER, b"a/b/c")).file:
        assert found.name == b"c"


def test_what_is_not_there_is_told_in_the_words_of_the_domain(house: House, scratch: Path) -> None:
    with pytest.raises(FileNotInJob):
        house.files.open("1", CALLER, b"none")
    for use in (lambda: house.files.list("2", CALLER), lambda: house.files.open("2", CALLER, b"none")):
        with pytest.raises(JobNotFound):
            use()


def test_a_file_that_was_changed_a_moment_ago_has_no_version(house: House, scratch: Path) -> None:
    """It may change again within the same tick of the file system's clock, and nothing would tell."""
    (scratch / "file").touch()

    assert version(house, b"file", seconds=SETTLED_SECONDS - 0.1) is None
    assert version(house, b"file", seconds=-10) is None, "the clock was set back"
    assert version(house, b"file", seconds=SETTLED_SECONDS + 0.1) is not None


def test_a_version_changes_with_the_content_though_the_job_hides_it(house: House, scratch: Path) -> None:
    (scratch / "file").write_text("one")
    before = (scratch / "file").stat()
    first = version(house, b"file", seconds=10)

    def rewrite() -> bool:
        (scratch / "file").write_text("two")
        os.utime(scratch / "file", ns=(before.st_atime_ns, before.st_mtime_ns))
        return (scratch / "file").stat().st_ctime_ns != before.st_ctime_ns

    assert eventually(rewrite), "the file system's clock stands still"
    assert version(house, b"file", seconds=10) != first
