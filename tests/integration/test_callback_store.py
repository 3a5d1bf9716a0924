"""The outbox: owed from the end of a job on, taken by one at a time, never forgotten."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest

from jobrunner.config import Gc
from jobrunner.domain.callback import ATTEMPTS_MAX, Attempt, Callback, CallbackState
from jobrunner.domain.job import Job
from jobrunner.domain.states import ENDED, JobState
from jobrunner.service.gc import GcService
from jobrunner.spool import Spool
from jobrunner.store import callbacks as store
from jobrunner.store import execution, jobs, retention
from jobrunner.store.callbacks import Claim, Next
from jobrunner.store.engine import Connection, Database
from tests.integration.stored import add_job, add_running, at, cancel_request, count, end_of, find, rows
from tests.integration.test_query_plans import recorded

URL = "http://receiver.example:8000/done"
RECEIVER = "receiver.example:8000"


def add_owed(database: Database, url: str = URL, *, finished_at: datetime | None = None) -> Job:
    """Store a job that has ended and owes a callback."""
    job = add_running(database, callback_url=url)
    with database.write() as connection:
        assert execution.finish_job(connection, job.number, "me", end_of(finished_at=finished_at or at(20)))
    return find(database, job.number)


def claim(
    database: Database,
    receiver: str = RECEIVER,
    owner: str = "me",
    *,
    now: float = 100,
    until: float = 130,
    limit: int = 10,
) -> list[Claim]:
    with database.write() as connection:
        return store.claim_callbacks(connection, receiver, owner, now=at(now), until=at(until), limit=limit)


def record(
    database: Database, taken: Claim, owner: str = "me", *, status: int = 500, following: Next | None = None
) -> Next | None:
    attempt = Attempt(at(101), status, f"answered {status}")
    with database.write() as connection:
        return store.record_attempt(
            connection, taken, owner, attempt, lambda _: following or Next(CallbackState.PENDING, at(200))
        )


def find_callback(database: Database, job: Job) -> Callback:
    with database.read() as connection:
        found = store.find_callback(connection, job.number)
    assert found is not None
    return found


def owed(database: Database) -> list[int]:
    return [row.number for row in rows(database, "SELECT number FROM callback WHERE state = 'pending' ORDER BY number")]


# ── owed from the end on ──

Ending = Callable[[Connection, Job], bool]


def finish(state: JobState) -> Ending:
    return lambda connection, job: execution.finish_job(connection, job.number, "me", end_of(state))


def give_back_canceled(connection: Connection, job: Job) -> bool:
    """End what was canceled after it was claimed and before it was started."""
    jobs.cancel_running(connection, job.number, cancel_request())
    return execution.requeue_job(connection, job.number, "me") is JobState.CANCELED


ENDINGS: dict[str, tuple[JobState, Ending]] = {
    "claimed to canceled": (JobState.RUNNING, give_back_canceled),
    **{f"running to {state}": (JobState.RUNNING, finish(state)) for state in sorted(ENDED)},
    "queued to canceled": (
        JobState.QUEUED,
        lambda connection, job: jobs.cancel_queued(connection, job.number, cancel_request()),
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_with_its_end_a_job_owes_its_callback(database: Database, name: str) -> None:
    state, end = ENDINGS[name]
    add = add_running if state is JobState.RUNNING else add_job
    telling, silent = add(database, callback_url=URL), add(database)

    with database.write() as connection:
        assert end(connection, telling)
        assert end(connection, silent)

    assert owed(database) == [telling.number]
    assert count(database, "callback") == 1
    ended = find(database, telling.number)
    assert ended.state.is_ended
    assert find_callback(database, ended) == Callback(
        ended.id, URL, CallbackState.PENDING, next_at=ended.finished_at, attempts=()
    )


@pytest.mark.parametrize("name", ENDINGS)
def test_who_loses_the_race_for_the_end_owes_nothing(database: Database, name: str) -> None:
    state, end = ENDINGS[name]
    job = (add_running if state is JobState.RUNNING else add_job)(database, callback_url=URL)

    with database.write() as connection:
        assert [end(connection, job), end(connection, job)] == [True, False]

    assert count(database, "callback") == 1


def test_end_and_callback_are_one_transaction(database: Database) -> None:
    job = add_running(database, callback_url=URL)

    def fail(connection: Connection) -> None:
        execution.finish_job(connection, job.number, "me", end_of())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.write_together(fail)

    assert find(database, job.number).state is JobState.RUNNING
    assert count(database, "callback") == 0


def test_the_end_of_a_job_without_callback_is_one_statement(database: Database) -> None:
    job = add_running(database)

    with recorded() as statements, database.write() as connection:
        execution.finish_job(connection, job.number, "me", end_of())

    assert len(statements) == 1


def test_a_url_that_would_not_be_taken_any_more_does_not_keep_a_job_from_ending(database: Database) -> None:
    job = add_owed(database, "http://user@old.example/")

    assert find(database, job.number).state.is_ended
    assert owed(database) == [job.number]


def test_it_is_seen_if_something_ends_jobs_past_the_outbox(database: Database) -> None:
    """By the guard of all tests here, in `conftest`."""
    add_running(database)
    statement = "UPDATE job SET state = 'failed', finished_at = '2026' WHERE number = 1"

    with pytest.raises(AssertionError, match="end_job"), database.write() as connection:
        connection.exec_driver_sql(statement)


# ── one at a time ──


def test_what_is_due_is_taken_once(database: Database) -> None:
    due = [add_owed(database).number for _ in range(5)]

    first, second, third = (claim(database, limit=3) for _ in range(3))

    assert sorted(taken.number for taken in first + second) == due
    assert (len(first), len(second), third) == (3, 2, [])


def test_many_who_send_take_each_callback_once(database: Database) -> None:
    due = [add_owed(database).number for _ in range(60)]
    barrier = threading.Barrier(6)

    def work(owner: int) -> list[int]:
        taken: list[int] = []
        barrier.wait()
        while found := claim(database, owner=f"owner {owner}", limit=3):
            taken.extend(one.number for one in found)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [number for numbers in pool.map(work, range(6)) for number in numbers]

    assert sorted(taken) == due


def test_the_oldest_are_taken_first_and_nothing_before_its_time(database: Database) -> None:
    late, soon, early = (add_owed(database, finished_at=at(seconds)).number for seconds in (300, 50, 40))

    assert [taken.number for taken in claim(database, now=100, until=900, limit=1)] == [early]
    assert [taken.number for taken in claim(database, now=100, until=900)] == [soon]
    assert [taken.number for taken in claim(database, now=300, until=900)] == [late]


def test_a_lease_that_has_run_out_is_another_s_to_take(database: Database) -> None:
    job = add_owed(database)
    (mine,) = claim(database, owner="dead", until=130)

    assert claim(database, now=129) == []
    (taken,) = claim(database, owner="next", now=130, until=160)

    assert record(database, mine, "dead") is None
    assert record(database, taken, "next", following=Next(CallbackState.DELIVERED, at(140))) is not None
    assert find_callback(database, job).state is CallbackState.DELIVERED
    assert len(find_callback(database, job).attempts) == 1


def test_a_claim_that_was_lost_to_oneself_counts_no_more_either(database: Database) -> None:
    job = add_owed(database)
    (old,) = claim(database, until=130)
    (new,) = claim(database, now=130, until=160)

    assert record(database, old) is None
    assert record(database, new) is not None
    assert len(find_callback(database, job).attempts) == 1


def test_a_claim_is_nobody_else_s(database: Database) -> None:
    job = add_owed(database)
    (taken,) = claim(database)

    assert record(database, taken, "another") is None
    with database.write() as connection:
        store.put_back(connection, taken, "another", at(110))
    assert claim(database, now=110) == []
    assert find_callback(database, job).attempts == ()


def test_a_claim_can_be_given_back(database: Database) -> None:
    job = add_owed(database)
    (taken,) = claim(database)
    assert find_callback(database, job).next_at is None

    with database.write() as connection:
        store.put_back(connection, taken, "me", at(110))

    assert find_callback(database, job).next_at == at(110)
    assert claim(database, now=109) == []
    assert len(claim(database, now=110)) == 1


def test_attempts_are_remembered_but_not_without_end(database: Database) -> None:
    job = add_owed(database)
    for number in range(ATTEMPTS_MAX + 5):
        (taken,) = claim(database, now=1000 + number, until=5000)
        record(database, taken, status=400 + number, following=Next(CallbackState.PENDING, at(1001 + number)))

    attempts = find_callback(database, job).attempts

    assert [attempt.status for attempt in attempts] == list(range(405, 405 + ATTEMPTS_MAX))
    assert attempts[0] == Attempt(at(101), 405, "answered 405")
    assert rows(database, "SELECT tries FROM callback")[0].tries == ATTEMPTS_MAX + 5


def test_receivers_are_listed_with_what_is_due_first(database: Database) -> None:
    urls = {"http://b/": 40, "http://b/x": 30, "http://a/": 50, "https://a/": 60, "http://c/": 20}
    for url, finished_at in urls.items():
        add_owed(database, url, finished_at=at(finished_at))
    (taken,) = claim(database, "c:80")
    record(database, taken, following=Next(CallbackState.FAILED, at(0)))

    with database.read() as connection:
        assert store.list_waiting(connection) == [("a:443", at(60)), ("a:80", at(50)), ("b:80", at(30))]


# ── once more ──


@pytest.mark.parametrize("state", [state for state in CallbackState if state is not CallbackState.PENDING])
def test_a_callback_that_is_over_can_be_sent_again(database: Database, state: CallbackState) -> None:
    job = add_owed(database)
    (taken,) = claim(database)
    record(database, taken, following=Next(state, at(100)))

    with database.write() as connection:
        assert store.send_again(connection, job.number, at(500))

    assert find_callback(database, job).next_at == at(500)
    (taken,) = claim(database, now=500, until=530)
    tried: list[int] = []
    with database.write() as connection:
        store.record_attempt(
            connection, taken, "me", Attempt(at(501), 204, None),
            lambda count: tried.append(count) or Next(CallbackState.DELIVERED, at(501)),  # type: ignore[func-returns-value]
        )  # fmt: skip
    assert tried == [1]
    assert [attempt.status for attempt in find_callback(database, job).attempts] == [500, 204]


def test_what_is_being_sent_is_not_sent_twice_for_that(database: Database) -> None:
    job = add_owed(database)
    (taken,) = claim(database, until=130)

    with database.write() as connection:
        assert store.send_again(connection, job.number, at(110))

    assert claim(database, now=120) == []
    assert record(database, taken) is not None


def test_where_nothing_is_owed_nothing_can_be_sent_again(database: Database) -> None:
    job = add_running(database, callback_url=URL)

    with database.write() as connection:
        assert not store.send_again(connection, job.number, at(500))


# ── gc and deletion ──

EVERYTHING = Gc(keep=0, max_age=0.0, max_bytes=0)


def test_gc_keeps_what_still_owes_a_callback(database: Database, spool: Spool) -> None:
    gc = GcService(database, spool, lambda: at(10_000))
    waiting, taken, told, silent = (
        add_owed(database),
        add_owed(database),
        add_owed(database),
        add_owed(database, "http://b/"),
    )
    for number, following in ((told.number, CallbackState.DELIVERED), (taken.number, None)):
        with database.write() as connection:
            connection.exec_driver_sql(f"UPDATE callback SET due_at = '2026' WHERE number = {number}")
        (claimed,) = claim(database, limit=1)
        assert claimed.number == number
        if following is not None:
            record(database, claimed, following=Next(following, at(100)))

    dry = gc.run(EVERYTHING, dry_run=True)
    report = gc.run(EVERYTHING)

    assert [purge.number for purge in report.purged] == [purge.number for purge in dry.purged] == [told.number]
    assert report.kept == 3
    assert owed(database) == [waiting.number, taken.number, silent.number]


def test_a_callback_that_is_owed_again_meanwhile_saves_its_job(database: Database) -> None:
    """Between the look of gc and its transaction."""
    job = add_owed(database)
    (taken,) = claim(database)
    record(database, taken, following=Next(CallbackState.FAILED, at(100)))
    with database.read() as connection:
        assert [ended.is_owed for ended in retention.list_ended(connection, before=1 << 62, limit=10)] == [False]

    with database.write() as connection:
        store.send_again(connection, job.number, at(500))
        assert not retention.purge_job(connection, job.number)


def test_a_deleted_job_takes_its_callback_along(database: Database) -> None:
    job = add_owed(database)
    (taken,) = claim(database)

    with database.write() as connection:
        assert jobs.delete_ended_job(connection, job.number)

    assert count(database, "callback") == 0
    assert record(database, taken) is None


@pytest.fixture
def spool(data_dir: Any) -> Spool:
    """The directories of jobs."""
    return Spool(data_dir)
