"""What makes new jobs: submissions and repetitions, while nobody runs them; where it matters, an executor does."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from jobrunner.domain.access import ADMINISTRATOR, Caller
from jobrunner.domain.errors import InvalidRequest, ShellNotAllowed, StorageFull, TooBusy
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.store import jobs as store
from tests.factories import CALLER, argv, make_house, make_job, running_executor, shell
from tests.integration.stored import count

ANN, BOB = (Caller(name, ADMINISTRATOR) for name in ("ann", "bob"))


def test_a_submitted_job_is_queued_under_the_name_of_its_caller(house: House) -> None:
    job = house.submissions.submit(argv("true"), ANN).job

    assert (job.state, job.owner, job.api, job.number) == (JobState.QUEUED, "ann", "v1", 1)
    assert UUID(job.id).version == 7
    assert job.created_at.utcoffset() is not None
    assert house.jobs.get(job.id, CALLER) == job


def test_a_refused_submission_leaves_nothing(house: House) -> None:
    with pytest.raises(InvalidRequest):
        house.submissions.submit(argv("true", files={"a/b": b""}), CALLER)

    assert count(house.database, "job") == count(house.database, "job_input") == 0


def test_numbers_are_given_in_the_order_of_the_commits(house: House) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: make_job(house), range(40)))

    assert sorted(job.number for job in jobs) == list(range(1, 41))
    assert len({job.id for job in jobs}) == 40


def test_nothing_is_accepted_when_the_disk_is_nearly_full(data_dir: Path) -> None:
    house = make_house(data_dir, storage={"min_free_bytes": 1 << 60})

    with pytest.raises(StorageFull, match="min_free_bytes"):
        make_job(house)
    assert count(house.database, "job") == 0
    house.database.close()
    house.hints.close()


def test_a_job_survives_the_service(data_dir: Path) -> None:
    house = make_house(data_dir)
    job = make_job(house)
    house.database.close()
    house.hints.close()

    again = make_house(data_dir)
    assert again.jobs.get(job.id, CALLER) == job
    again.database.close()
    again.hints.close()


def test_a_submission_that_may_not_wait_stores_nothing(data_dir: Path) -> None:
    house = make_house(data_dir, server={"max_waiters": 0})

    with pytest.raises(TooBusy):
        house.submissions.submit(argv("true"), CALLER, wait=10)

    assert count(house.database, "job") == 0
    house.database.close()
    house.hints.close()


def test_a_submission_can_wait_for_its_end(house: House) -> None:
    with running_executor(house):
        ended = house.submissions.submit(shell("echo hello; exit 3"), CALLER, wait=30).job

    assert ended.state is JobState.FAILED
    assert house.output.tail(ended, Stream.STDOUT, 100) == (0, b"hello\n")


# ── rerun ──


def test_a_rerun_is_a_new_job_of_the_same_specification_and_inputs(house: House) -> None:
    job = house.submissions.submit(
        shell("cat", stdin=b"\xff", files={"a": b"b"}, labels={"k": "v"}, name="n", env={"A": "b"}),
        ANN,
    ).job
    house.jobs.cancel(job.id, CALLER, CancelAsked())

    again = house.submissions.rerun(job.id, BOB).job

    assert (again.number, again.owner, again.state) == (2, "bob", JobState.QUEUED)
    assert again.spec == job.spec
    assert again.id != job.id
    with house.database.read() as connection:
        assert set(store.load_inputs(connection, 2)) == set(store.load_inputs(connection, 1)) != set()


def test_a_rerun_of_a_deleted_job_s_rerun_still_has_the_inputs(house: House) -> None:
    job = make_job(house, argv("cat", stdin=b"in"))
    again = house.submissions.rerun(job.id, CALLER).job
    house.jobs.cancel(job.id, CALLER, CancelAsked())
    house.jobs.delete(job.id, CALLER, force=False, patience=0)

    third = house.submissions.rerun(again.id, CALLER).job

    with house.database.read() as connection:
        assert [given.content for given in store.load_inputs(connection, third.number)] == [b"in"]


def test_a_rerun_needs_what_a_submission_of_that_job_would_need(data_dir: Path) -> None:
    """Policy may have changed since."""
    house = make_house(data_dir)
    job = make_job(house, shell("true"))
    house.database.close()
    house.hints.close()

    strict = make_house(data_dir, policy={"allow_shell": False})
    try:
        with pytest.raises(ShellNotAllowed):
            strict.submissions.rerun(job.id, CALLER)
    finally:
        strict.database.close()
        strict.hints.close()


def test_a_rerun_is_held_to_the_limits_of_today(data_dir: Path) -> None:
    house = make_house(data_dir)
    job = make_job(house, argv("true", timeout=7200.0))
    house.database.close()
    house.hints.close()

    strict = make_house(data_dir, executor={"max_timeout": 3600.0})
    try:
        with pytest.raises(InvalidRequest, match="timeout"):
            strict.submissions.rerun(job.id, CALLER)
    finally:
        strict.database.close()
        strict.hints.close()
