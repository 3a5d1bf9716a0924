"""The rows of jobs: each change of state is one compare-and-set, and the loser changes nothing."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, JobError, SentSignal
from jobrunner.domain.spec import Input, InputKind
from jobrunner.domain.states import ENDED, JobState, Priority
from jobrunner.domain.streams import Hole, Stream
from jobrunner.store import execution, retention
from jobrunner.store import jobs as store
from jobrunner.store.engine import Database
from tests.integration.stored import (
    add_ended,
    add_job,
    add_many,
    add_running,
    at,
    cancel_request,
    count,
    end_of,
    find,
    rows,
)
from tests.integration.workers import run_crew

INPUTS = (
    Input(InputKind.STDIN, "", b"in\0put"),
    Input(InputKind.FILE, "a.txt", b""),
    Input(InputKind.FILE, "ü", b"\xff" * 100_000),
)


def claim(database: Database, limit: int, executor: str = "me") -> list[int]:
    with database.write() as connection:
        return [job.number for job in execution.claim_jobs(connection, executor, limit, at(10))]


# ── what is stored ──


def test_a_job_is_found_as_it_was_stored(database: Database) -> None:
    job = add_job(
        database,
        "echo", "Grüße", "",
        owner="ci",
        created_at=at(0.123456),
        env={"A": "b=c"},
        cwd="a",
        merge_stderr=True,
        name="nightly",
        priority=Priority.LOW,
        labels={"team": "a", "ü": ""},
        inputs=INPUTS,
    )  # fmt: skip

    assert find(database, job.id) == find(database, job.number) == job
    assert job.state is JobState.QUEUED
    assert job.created_at == at(0.123456)


@pytest.mark.parametrize("reference", ["0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11", 4711, 0, -1, 10**18 - 1])
def test_what_is_not_there_is_not_found(database: Database, reference: str | int) -> None:
    add_job(database)

    with database.read() as connection:
        assert store.find_job(connection, reference) is None
        if isinstance(reference, int):
            assert store.find_state(connection, reference) is None


def test_what_came_with_a_job_is_kept_byte_for_byte(database: Database) -> None:
    job = add_job(database, inputs=INPUTS)

    with database.read() as connection:
        assert set(store.load_inputs(connection, job.number)) == set(INPUTS)


def test_times_are_kept_as_text_that_sorts(database: Database) -> None:
    add_running(database, created_at=at(0))

    assert rows(database, "SELECT created_at, started_at FROM job") == [
        ("2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:10.000000Z")
    ]


def test_numbers_count_up_from_one_and_never_come_twice(database: Database) -> None:
    numbers = [add_ended(database).number for _ in range(3)]
    assert numbers == [1, 2, 3]

    with database.write() as connection:
        for number in numbers:
            assert store.delete_ended_job(connection, number)

    assert count(database, "job") == 0
    assert add_job(database).number == 4


def test_a_deleted_job_takes_labels_inputs_and_signals_along(database: Database) -> None:
    stays = add_running(database, labels={"a": "b"}, inputs=INPUTS)
    gone = add_running(database, labels={"a": "b", "c": "d"}, inputs=INPUTS)
    with database.write() as connection:
        store.add_signal(connection, gone.number, 10)
        store.add_signal(connection, stays.number, 12)
        assert execution.finish_job(connection, gone.number, "me", end_of())

    with database.write() as connection:
        assert store.delete_ended_job(connection, gone.number)

    assert rows(database, "SELECT number, key FROM job_label") == [(stays.number, "a")]
    assert [row.number for row in rows(database, "SELECT number FROM job_input")] == [stays.number] * 3
    assert rows(database, "SELECT number, signal FROM job_signal") == [(stays.number, 12)]


def test_only_an_ended_job_can_be_deleted_and_only_once(database: Database) -> None:
    running, queued, ended = add_running(database), None, add_ended(database)
    queued = add_job(database)

    with database.write() as connection:
        assert not store.delete_ended_job(connection, running.number)
        assert not store.delete_ended_job(connection, queued.number)
        assert store.delete_ended_job(connection, ended.number)
        assert not store.delete_ended_job(connection, ended.number)

    assert count(database, "job") == 2


def test_the_states_are_counted_with_the_disk_space_of_what_has_ended(database: Database) -> None:
    add_ended(database, JobState.FAILED, disk_bytes=4096)
    add_ended(database, JobState.FAILED, disk_bytes=8192)
    add_ended(database, JobState.LOST)
    add_running(database)
    add_job(database)

    with database.read() as connection:
        states, size = store.count_states(connection)

    assert set(states) == set(JobState)
    assert {state: number for state, number in states.items() if number} == {
        JobState.FAILED: 2, JobState.LOST: 1, JobState.RUNNING: 1, JobState.QUEUED: 1,
    }  # fmt: skip
    assert size == 12288


def test_an_empty_database_counts_nothing(database: Database) -> None:
    with database.read() as connection:
        assert store.count_states(connection) == (dict.fromkeys(JobState, 0), 0)


# ── claims ──


def test_jobs_are_claimed_by_priority_then_in_the_order_they_came(database: Database) -> None:
    order = [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.LOW, Priority.HIGH]
    for priority in order:
        add_job(database, priority=priority)

    assert claim(database, 4) == [3, 6, 2, 4]
    assert claim(database, 4) == [1, 5]
    assert claim(database, 4) == []


def test_a_claimed_job_runs_and_names_its_executor_and_start(database: Database) -> None:
    job = add_running(database, "me")

    assert (job.state, job.executor, job.started_at) == (JobState.RUNNING, "me", at(10))
    assert job.deadline_at == at(70)
    assert find(database, job.number) == job


def test_what_is_not_queued_is_never_claimed(database: Database) -> None:
    add_ended(database)
    add_running(database)
    canceled = add_job(database)
    with database.write() as connection:
        assert store.cancel_queued(connection, canceled.number, cancel_request())

    assert claim(database, 10) == []


def test_the_queue_tells_whether_anything_waits(database: Database) -> None:
    def has_queued() -> bool:
        with database.read() as connection:
            return store.has_queued(connection)

    assert not has_queued()
    add_job(database)
    assert has_queued()
    claim(database, 1)
    assert not has_queued()


def test_four_processes_claim_two_thousand_jobs_once_each_and_in_order(database: Database, data_dir: Path) -> None:
    priorities = [Priority.NORMAL, Priority.LOW, Priority.HIGH, Priority.NORMAL]
    add_many(database, ({"state": JobState.QUEUED, "priority": priorities[n % 4]} for n in range(2000)))
    database.close()

    crew = run_crew(4, "claim", data_dir / "jobrunner.db", 5)

    times = Counter(number for claimed in crew for _, number in claimed)
    assert set(times) == set(range(1, 2001))
    assert set(times.values()) == {1}
    for claimed in crew:
        assert claimed == sorted(claimed)
    owners = Counter(row.executor for row in rows(database, "SELECT executor FROM job WHERE state = 'running'"))
    assert owners == {f"worker {place}": len(claimed) for place, claimed in enumerate(crew) if claimed}


# ── ends ──


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_running_job_ends_in_any_of_the_ended_states(database: Database, state: JobState) -> None:
    job = add_running(database)

    with database.write() as connection:
        assert execution.finish_job(connection, job.number, "me", end_of(state))

    assert find(database, job.number).state is state


def test_everything_that_is_said_of_an_end_is_kept(database: Database) -> None:
    job = add_running(database)
    end = end_of(
        JobState.CANCELED,
        finished_at=at(20.000001),
        status=ExitStatus(signal=9),
        error=JobError(ErrorCode.WORKER_LOST, "Grüße\n"),
        signals=(SentSignal(15, at(18)), SentSignal(9, at(19.5))),
        stdout_bytes=1 << 40,
        stderr_bytes=7,
    )

    with database.write() as connection:
        assert execution.finish_job(connection, job.number, "me", end)

    ended = find(database, job.number)
    assert ended.finished_at == at(20.000001)
    assert (ended.status, ended.error, ended.signals) == (end.status, end.error, end.signals)
    assert (ended.stdout_bytes, ended.stderr_bytes) == (1 << 40, 7)


def test_exit_code_0_is_kept_apart_from_no_status(database: Database) -> None:
    seen, unseen = add_running(database), add_running(database)
    with database.write() as connection:
        execution.finish_job(connection, seen.number, "me", end_of(status=ExitStatus(code=0)))
        execution.finish_job(connection, unseen.number, "me", end_of(JobState.LOST))

    assert find(database, seen.number).status == ExitStatus(code=0)
    assert find(database, unseen.number).status is None


Write = Callable[[Connection, int], bool]

WRITES: dict[str, Write] = {
    "finish": lambda connection, number: execution.finish_job(connection, number, "me", end_of(JobState.FAILED)),
    "finish as another": lambda connection, number: execution.finish_job(connection, number, "other", end_of()),
    "cancel_queued": lambda connection, number: store.cancel_queued(connection, number, cancel_request("late")),
    "cancel_running": lambda connection, number: store.cancel_running(connection, number, cancel_request("late")),
    "requeue": lambda connection, number: execution.requeue_job(connection, number, "me") is not None,
    "requeue as another": lambda connection, number: execution.requeue_job(connection, number, "other") is not None,
}
ALLOWED = {
    JobState.QUEUED: {"cancel_queued"},
    JobState.RUNNING: {"finish", "cancel_running", "requeue"},
}


def put(database: Database, state: JobState) -> int:
    match state:
        case JobState.QUEUED:
            return add_job(database).number
        case JobState.RUNNING:
            return add_running(database).number
        case _:
            return add_ended(database, state).number


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_does_not_fit_the_state_changes_nothing(database: Database, state: JobState, write: str) -> None:
    number = put(database, state)
    before = rows(database, "SELECT * FROM job")

    with database.write() as connection:
        done = WRITES[write](connection, number)

    assert done == (write in ALLOWED.get(state, set()))
    assert (rows(database, "SELECT * FROM job") == before) == (not done)


@pytest.mark.parametrize("write", WRITES)
def test_a_write_to_a_job_that_is_gone_changes_nothing(database: Database, write: str) -> None:
    with database.write() as connection:
        assert not WRITES[write](connection, 4711)


@pytest.mark.parametrize(
    ("state", "contenders"),
    [
        (JobState.RUNNING, ["finish", "finish"]),
        (JobState.RUNNING, ["finish", "requeue"]),
        (JobState.QUEUED, ["cancel_queued", "cancel_queued"]),
    ],
)
def test_of_two_at_once_one_wins(database: Database, state: JobState, contenders: list[str]) -> None:
    for _ in range(30):
        number = put(database, state)
        together = threading.Barrier(len(contenders))

        def contend(name: str, number: int = number, together: threading.Barrier = together) -> bool:
            together.wait()
            with database.write() as connection:
                return WRITES[name](connection, number)

        with ThreadPoolExecutor(len(contenders)) as pool:
            assert sum(pool.map(contend, contenders)) == 1
        claim(database, 1)


def test_a_queued_job_is_either_canceled_or_claimed(database: Database) -> None:
    outcomes: Counter[tuple[bool, bool]] = Counter()
    for _ in range(60):
        number = add_job(database).number
        together = threading.Barrier(2)

        def cancel(number: int = number, together: threading.Barrier = together) -> bool:
            together.wait()
            with database.write() as connection:
                return store.cancel_queued(connection, number, cancel_request())

        def take(together: threading.Barrier = together) -> bool:
            together.wait()
            return bool(claim(database, 1))

        with ThreadPoolExecutor(2) as pool:
            canceling, taking = pool.submit(cancel), pool.submit(take)
            outcomes[canceling.result(), taking.result()] += 1

    assert set(outcomes) <= {(True, False), (False, True)}
    states = Counter(row.state for row in rows(database, "SELECT state FROM job"))
    assert states == +Counter({"canceled": outcomes[True, False], "running": outcomes[False, True]})


def test_the_request_to_cancel_a_running_job_and_its_end_never_leave_a_half(database: Database) -> None:
    """The end wins whenever it comes; a request after it changes nothing."""
    for _ in range(60):
        number = add_running(database).number
        together = threading.Barrier(2)

        def cancel(number: int = number, together: threading.Barrier = together) -> bool:
            together.wait()
            with database.write() as connection:
                return store.cancel_running(connection, number, cancel_request())

        def finish(number: int = number, together: threading.Barrier = together) -> bool:
            together.wait()
            with database.write() as connection:
                return execution.finish_job(connection, number, "me", end_of())

        with ThreadPoolExecutor(2) as pool:
            canceling, finishing = pool.submit(cancel), pool.submit(finish)
            canceled, finished = canceling.result(), finishing.result()

        job = find(database, number)
        assert finished
        assert job.state is JobState.SUCCEEDED
        assert (job.cancel is not None) == canceled


# ── requests ──


def test_a_canceled_queued_job_has_ended_without_a_start(database: Database) -> None:
    job = add_job(database)

    with database.write() as connection:
        assert store.cancel_queued(connection, job.number, cancel_request("ann", grace=3.0))

    ended = find(database, job.number)
    assert (ended.state, ended.started_at, ended.finished_at) == (JobState.CANCELED, None, at(15))
    assert ended.cancel == cancel_request("ann", grace=3.0)


def test_a_running_job_that_should_end_runs_on_and_says_who_asked_first(database: Database) -> None:
    job = add_running(database)
    with database.write() as connection:
        assert store.cancel_running(connection, job.number, cancel_request("ann", at=at(11), signal=2, grace=None))
    with database.write() as connection:
        assert store.cancel_running(connection, job.number, cancel_request("bob", at=at(12), signal=9, grace=0.0))

    asked = find(database, job.number)
    assert asked.state is JobState.RUNNING
    assert asked.cancel == cancel_request("ann", at=at(11), signal=9, grace=0.0)


def test_the_executor_is_told_what_running_jobs_should_end(database: Database) -> None:
    add_running(database)
    asked = add_running(database)
    ended = add_running(database)
    with database.write() as connection:
        for job in (asked, ended):
            store.cancel_running(connection, job.number, cancel_request())
        execution.finish_job(connection, ended.number, "me", end_of(JobState.CANCELED))

    with database.read() as connection:
        assert execution.list_cancel_requests(connection) == {asked.number: cancel_request()}


def test_signals_are_sent_in_the_order_they_were_asked_for(database: Database) -> None:
    first, second = add_running(database), add_running(database)
    with database.write() as connection:
        for number, signal in ((second.number, 10), (first.number, 12), (second.number, 1)):
            store.add_signal(connection, number, signal)

    with database.read() as connection:
        listed = execution.list_signals(connection)
    assert [(wanted.number, wanted.signal) for wanted in listed] == [
        (second.number, 10), (first.number, 12), (second.number, 1),
    ]  # fmt: skip

    with database.write() as connection:
        execution.remove_signals(connection, [wanted.row for wanted in listed[:2]])
    with database.read() as connection:
        assert execution.list_signals(connection) == listed[2:]


def test_how_a_job_is_told_to_end_is_written_down_by_the_owner_only(database: Database) -> None:
    job = add_running(database)
    sent = (SentSignal(15, at(16)),)
    why = JobError(ErrorCode.OUTPUT_LIMIT, "too much")
    with database.write() as connection:
        execution.record_signals(connection, job.number, "me", sent, ending=JobState.OUTPUT_LIMIT, error=why)
        execution.record_signals(connection, job.number, "other", (SentSignal(9, at(16)),), ending=JobState.CANCELED)

    found = find(database, job.number)
    assert (found.state, found.signals, found.ending, found.error) == (
        JobState.RUNNING, sent, JobState.OUTPUT_LIMIT, why,
    )  # fmt: skip


def test_who_takes_a_job_over_learns_what_it_was_told_and_what_was_dropped(database: Database) -> None:
    job = add_running(database, "old")
    sent, holes = (SentSignal(15, at(16)),), {Stream.STDERR: Hole(4096, 1 << 40)}
    with database.write() as connection:
        execution.record_signals(connection, job.number, "old", sent, ending=JobState.TIMED_OUT)
        assert execution.record_holes(connection, job.number, "old", holes)
        (taken,) = execution.take_over_jobs(connection, "new")
        assert not execution.record_holes(connection, job.number, "old", {})

    assert (taken.signals, taken.ending, taken.error, taken.holes) == (sent, JobState.TIMED_OUT, None, holes)


# ── giving back and taking over ──


def test_a_requeued_job_is_as_it_was_before_its_claim(database: Database) -> None:
    job = add_job(database)
    claim(database, 1)

    with database.write() as connection:
        assert execution.requeue_job(connection, job.number, "me") is JobState.QUEUED

    assert find(database, job.number) == job
    assert claim(database, 1, "next") == [job.number]


def test_a_claimed_job_that_was_canceled_is_not_put_back_but_has_ended(database: Database) -> None:
    """Its process was never made, and never will be."""
    job = add_running(database)
    with database.write() as connection:
        assert store.cancel_running(connection, job.number, cancel_request("ann", grace=3.0))

    with database.write() as connection:
        assert execution.requeue_job(connection, job.number, "other") is None
        assert execution.requeue_job(connection, job.number, "me") is JobState.CANCELED

    ended = find(database, job.number)
    assert (ended.state, ended.started_at, ended.finished_at) == (JobState.CANCELED, None, at(15))
    assert (ended.executor, ended.cancel) == (None, cancel_request("ann", grace=3.0))
    assert claim(database, 1) == []


def test_a_new_executor_takes_over_what_others_left_running(database: Database) -> None:
    old = [add_running(database, f"old {n}").number for n in range(3)]
    own = add_running(database, "new").number
    add_ended(database)
    add_job(database)

    with database.write() as connection:
        taken = execution.take_over_jobs(connection, "new")

    assert [job.number for job in taken] == old
    assert {job.executor for job in taken} == {"new"}
    assert rows(database, "SELECT number FROM job WHERE executor = 'new'") == [(number,) for number in [*old, own]]
    assert {job.started_at for job in taken} == {at(10)}


def test_an_executor_that_lost_its_jobs_can_no_longer_end_them(database: Database) -> None:
    job = add_running(database, "old")
    with database.write() as connection:
        execution.take_over_jobs(connection, "new")

    with database.write() as connection:
        assert not execution.finish_job(connection, job.number, "old", end_of(JobState.LOST))
        assert not execution.requeue_job(connection, job.number, "old")
        assert execution.finish_job(connection, job.number, "new", end_of())

    assert find(database, job.number).state is JobState.SUCCEEDED


# ── gc's view ──


def test_ended_jobs_are_paged_newest_first_without_the_others(database: Database) -> None:
    ended = []
    for _ in range(5):
        ended.append(add_ended(database, disk_bytes=4096).number)
        add_running(database)
    add_job(database)

    pages, before = [], 1 << 62
    while True:
        with database.read() as connection:
            page = retention.list_ended(connection, before=before, limit=2)
        if not page:
            break
        pages.append([job.number for job in page])
        before = page[-1].number

    assert pages == [[9, 7], [5, 3], [1]]
    assert ended == [1, 3, 5, 7, 9]


def test_of_many_ids_those_that_exist_are_told(database: Database) -> None:
    jobs = [add_job(database) for _ in range(3)]

    with database.read() as connection:
        found = retention.existing_ids(connection, [jobs[0].id, "absent", jobs[2].id])
        assert retention.existing_ids(connection, []) == set()

    assert found == {jobs[0].id, jobs[2].id}
