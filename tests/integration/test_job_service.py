"""The use cases of jobs that are there, while nobody runs them; where it matters, an executor does."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from jobrunner.domain.access import ADMINISTRATOR, Caller
from jobrunner.domain.errors import (
    InvalidRequest,
    JobNotEnded,
    JobNotFound,
    JobNotRunning,
    TooBusy,
)
from jobrunner.domain.job import JobFilter
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.store import execution
from tests.factories import CALLER, argv, make_house, make_job, running_executor
from tests.integration.stored import at, count, end_of
from tests.service import eventually

ANN, LATE = (Caller(name, ADMINISTRATOR) for name in ("ann", "late"))


def claim(house: House) -> None:
    """Be the executor that takes what is queued."""
    with house.database.write() as connection:
        assert execution.claim_jobs(connection, "me", 100, at(0))


def finish(house: House, number: int) -> None:
    with house.database.write() as connection:
        assert execution.finish_job(connection, number, "me", end_of())


def every_number(house: House) -> list[int]:
    return [job.number for job in house.jobs.list(JobFilter(), CALLER, limit=1000).jobs]


# ── cancel ──


def test_a_queued_job_is_canceled_at_once(house: House) -> None:
    job = make_job(house)

    canceled = house.jobs.cancel(job.id, ANN, CancelAsked())

    assert canceled.state is JobState.CANCELED
    assert canceled.started_at is None
    assert canceled.cancel is not None
    assert (canceled.cancel.by, canceled.cancel.signal) == ("ann", 15)


def test_canceling_what_has_ended_changes_nothing(house: House) -> None:
    job = make_job(house)
    canceled = house.jobs.cancel(job.id, CALLER, CancelAsked())

    assert house.jobs.cancel(job.id, LATE, CancelAsked(signal="SIGKILL", grace=0)) == canceled


def test_canceling_a_running_job_asks_its_executor(house: House) -> None:
    job = make_job(house)
    claim(house)

    asked = house.jobs.cancel(job.id, CALLER, CancelAsked(signal="INT", grace=1.5))

    assert asked.state is JobState.RUNNING
    assert asked.cancel is not None
    assert (asked.cancel.signal, asked.cancel.grace) == (2, 1.5)


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        (CancelAsked(signal="SIGNOTHING"), "#/signal"),
        (CancelAsked(grace=-1), "#/grace"),
        (CancelAsked(grace=1e9), "#/grace"),
    ],
)
def test_a_cancel_that_makes_no_sense_is_refused(house: House, asked: CancelAsked, pointer: str) -> None:
    job = make_job(house)

    with pytest.raises(InvalidRequest) as refusal:
        house.jobs.cancel(job.id, CALLER, asked)

    assert [problem.pointer for problem in refusal.value.problems] == [pointer]
    assert house.jobs.get(job.id, CALLER).state is JobState.QUEUED


def test_what_is_not_there_cannot_be_touched(house: House) -> None:
    for touch in (
        lambda: house.jobs.get("1", CALLER),
        lambda: house.jobs.cancel("1", CALLER, CancelAsked()),
        lambda: house.jobs.signal("1", CALLER, "TERM"),
        lambda: house.submissions.rerun("1", CALLER),
        lambda: house.jobs.delete("1", CALLER, force=True, patience=1),
    ):
        with pytest.raises(JobNotFound):
            touch()


# ── signals ──


def test_only_a_running_job_takes_a_signal(house: House) -> None:
    job = make_job(house)
    with pytest.raises(JobNotRunning, match="queued"):
        house.jobs.signal(job.id, CALLER, "USR1")
    house.jobs.cancel(job.id, CALLER, CancelAsked())
    with pytest.raises(JobNotRunning, match="canceled"):
        house.jobs.signal(job.id, CALLER, "USR1")
    assert count(house.database, "job_signal") == 0

    running = make_job(house)
    claim(house)
    house.jobs.signal(running.id, CALLER, "USR1")

    with house.database.read() as connection:
        (wanted,) = execution.list_signals(connection)
    assert (wanted.number, wanted.signal, wanted.is_running) == (running.number, 10, True)


# ── delete ──


def test_a_job_that_has_not_ended_is_not_deleted(house: House) -> None:
    queued = make_job(house)
    with pytest.raises(JobNotEnded):
        house.jobs.delete(queued.id, CALLER, force=False, patience=1)
    claim(house)
    with pytest.raises(JobNotEnded):
        house.jobs.delete(queued.id, CALLER, force=False, patience=1)

    assert every_number(house) == [1]


def test_a_queued_job_is_deleted_by_force(house: House) -> None:
    job = make_job(house)

    house.jobs.delete(job.id, CALLER, force=True, patience=1)

    assert every_number(house) == []


def test_a_running_job_that_nobody_ends_outlives_its_deletion(house: House) -> None:
    job = make_job(house)
    claim(house)

    with pytest.raises(JobNotEnded):
        house.jobs.delete(job.id, CALLER, force=True, patience=0.2)

    found = house.jobs.get(job.id, CALLER)
    assert found.cancel is not None
    assert (found.cancel.signal, found.cancel.grace) == (9, 0)


def test_a_deleted_job_takes_its_files_along(house: House) -> None:
    job = make_job(house)
    house.spool.prepare(job.id, [])
    claim(house)
    finish(house, job.number)

    house.jobs.delete(str(job.number), CALLER, force=False, patience=0)

    assert not Path(house.spool.path(job.id)).exists()
    with pytest.raises(JobNotFound):
        house.jobs.get(job.id, CALLER)


def test_of_two_deletions_one_succeeds(house: House) -> None:
    job = make_job(house)
    house.jobs.cancel(job.id, CALLER, CancelAsked())
    together = threading.Barrier(4)

    def delete() -> bool:
        together.wait()
        try:
            house.jobs.delete(job.id, CALLER, force=False, patience=0)
        except JobNotFound:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(done.result() for done in [pool.submit(delete) for _ in range(4)]) == 1


# ── wait ──


def test_waiting_for_what_has_ended_returns_at_once(house: House) -> None:
    job = house.jobs.cancel(make_job(house).id, CALLER, CancelAsked())

    assert house.jobs.wait(job, CALLER, 30) == job


def test_a_wait_that_is_too_short_returns_the_job_as_it_is(house: House) -> None:
    job = make_job(house)

    assert house.jobs.wait(job, CALLER, 0.2).state is JobState.QUEUED
    assert house.jobs.wait(job, CALLER, 0) == job


def test_a_cancel_wakes_who_waits(house: House) -> None:
    job = make_job(house)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(house.jobs.wait, job, CALLER, 30)
        assert eventually(lambda: house.waiters.count == 1)
        house.jobs.cancel(job.id, CALLER, CancelAsked())

        assert waiting.result(timeout=5).state is JobState.CANCELED


def test_who_waits_for_a_job_that_is_deleted_is_told_so(house: House) -> None:
    job = make_job(house)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(house.jobs.wait, job, CALLER, 30)
        assert eventually(lambda: house.waiters.count == 1)
        house.jobs.delete(job.id, CALLER, force=True, patience=5)

        with suppress(JobNotFound):  # that, or what it saw in between
            assert waiting.result(timeout=5).state is JobState.CANCELED


def test_a_deletion_that_may_not_wait_kills_nothing(data_dir: Path) -> None:
    house = make_house(data_dir, server={"max_waiters": 0})
    job = make_job(house)
    claim(house)

    try:
        with pytest.raises(TooBusy):
            house.jobs.delete(job.id, CALLER, force=True, patience=10)
        assert house.jobs.get(job.id, CALLER).cancel is None
    finally:
        house.database.close()
        house.hints.close()


# ── what a job may do to its directory ──


def test_a_job_that_leaves_a_deep_tree_keeps_its_exit_status(house: House) -> None:
    nest = "import os\nfor _ in range(30): os.mkdir('d' * 200), os.chdir('d' * 200)\nos._exit(3)"
    with running_executor(house):
        ended = house.submissions.submit(argv(sys.executable, "-c", nest), CALLER, wait=30).job

    assert ended.state is JobState.FAILED, ended.error
    assert ended.status is not None
    assert ended.status.code == 3


def test_a_job_s_size_counts_what_it_wrote(house: House) -> None:
    job = make_job(house)
    house.spool.prepare(job.id, [])
    claim(house)
    running = house.jobs.get(job.id, CALLER)
    with house.spool.open_streams(job.id, stdin=False, merge_stderr=False):
        Path(house.spool.path(job.id), "stdout").write_bytes(b"hello")

    assert house.output.size(running, Stream.STDOUT) == 5
    assert house.output.tail(running, Stream.STDOUT, 3) == (2, b"llo")
    assert house.output.tail(running, Stream.STDERR, 10) == (0, b"")
