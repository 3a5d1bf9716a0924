"""No statement of daily use walks through the whole table of jobs: their cost does not grow with the history."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jobrunner.config import Gc
from jobrunner.domain.callback import Attempt, CallbackState
from jobrunner.domain.job import JobFilter
from jobrunner.domain.states import JobState
from jobrunner.service.gc import GcService
from jobrunner.spool import Spool
from jobrunner.store import callbacks, execution, retention
from jobrunner.store import jobs as store
from jobrunner.store.engine import Connection, Database
from jobrunner.store.listing import list_jobs
from tests.integration.statements import told
from tests.integration.stored import add_job, add_many, at, cancel_request, end_of, new_job

Statement = tuple[str, Any]


@contextmanager
def recorded() -> Iterator[list[Statement]]:
    """Record what is executed meanwhile."""
    found: list[Statement] = []

    def record(statement: str, parameters: Any) -> None:
        if statement.split(maxsplit=1)[0] in {"SELECT", "UPDATE", "DELETE", "INSERT", "WITH"}:
            found.append((statement, parameters))

    with told(record):
        yield found


def plan(database: Database, statement: Statement) -> list[str]:
    text, parameters = statement
    with database.read() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters).all()
    return [row.detail for row in rows]


def walks(details: list[str]) -> list[str]:
    """Return the steps that read all of the table of jobs, or all of an index of the history.

    ``ix_job_queue`` is no such index: it holds only what waits.
    """
    return [
        detail
        for detail in details
        if re.match(r"SCAN (job|job_label|job_input|callback)\b", detail) and "INDEX ix_job_queue" not in detail
    ]


CLAIM = callbacks.Claim(3, "receiver:80", "http://receiver/", "2026-01-01T00:00:00.000000Z")

FILTERS: dict[str, JobFilter] = {
    "nothing": JobFilter(),
    "a state": JobFilter(states=frozenset({JobState.FAILED})),
    "active": JobFilter(states=frozenset({JobState.QUEUED, JobState.RUNNING})),
    "ended": JobFilter(states=frozenset(set(JobState) - {JobState.QUEUED, JobState.RUNNING})),
    "a name": JobFilter(name="nightly"),
    "an owner": JobFilter(owner="ann"),
    "a label": JobFilter(labels={"team": "a"}),
    "labels": JobFilter(labels={"team": "a", "env": "prod"}),
    "a text": JobFilter(text="make"),
    "since": JobFilter(since=at(100)),
    "until": JobFilter(until=at(100)),
    "a span": JobFilter(since=at(100), until=at(200)),
    "everything": JobFilter(
        states=frozenset({JobState.FAILED, JobState.LOST}),
        name="nightly",
        owner="ann",
        labels={"team": "a", "env": "prod"},
        since=at(100),
        until=at(200),
        text="make",
    ),
    "a state of an owner": JobFilter(states=frozenset({JobState.FAILED}), owner="ann"),
    "a name in a span": JobFilter(name="nightly", since=at(100)),
}

WRITES: dict[str, Callable[[Connection], Any]] = {
    "claim": lambda connection: execution.claim_jobs(connection, "me", 5, at(0)),
    "finish": lambda connection: execution.finish_job(connection, 3, "me", end_of()),
    "requeue": lambda connection: execution.requeue_job(connection, 3, "me"),
    "record signals": lambda connection: execution.record_signals(connection, 3, "me", (), ending=JobState.CANCELED),
    "record holes": lambda connection: execution.record_holes(connection, 3, "me", {}),
    "take over": lambda connection: execution.take_over_jobs(connection, "me"),
    "cancel a queued job": lambda connection: store.cancel_queued(connection, 3, cancel_request()),
    "cancel a running job": lambda connection: store.cancel_running(connection, 3, cancel_request()),
    "add": lambda connection: store.add_job(connection, new_job(labels={"a": "b"}), ()),
    "delete": lambda connection: store.delete_ended_job(connection, 3),
    "add a signal": lambda connection: store.add_signal(connection, 3, 15),
    "claim callbacks": lambda connection: callbacks.claim_callbacks(
        connection, "receiver:80", "me", now=at(1000), until=at(1030), limit=5
    ),
    "record an attempt": lambda connection: callbacks.record_attempt(
        connection,
        CLAIM,
        "me",
        Attempt(at(1), 500, "answered 500"),
        lambda _: callbacks.Next(CallbackState.FAILED, at(1)),
    ),
    "put a callback back": lambda connection: callbacks.put_back(connection, CLAIM, "me", at(1)),
    "send a callback again": lambda connection: callbacks.send_again(connection, 3, at(1)),
    "purge": lambda connection: retention.purge_job(connection, 3),
    "remove signals": lambda connection: execution.remove_signals(connection, [1, 2]),
}

READS: dict[str, Callable[[Connection], Any]] = {
    "look up by uuid": lambda connection: store.find_job(connection, "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11"),
    "look up by number": lambda connection: store.find_job(connection, 3),
    "state": lambda connection: store.find_state(connection, 3),
    "inputs": lambda connection: store.load_inputs(connection, 3),
    "has queued": store.has_queued,
    "cancel requests": execution.list_cancel_requests,
    "signals": execution.list_signals,
    "page of gc": lambda connection: retention.list_ended(connection, before=300, limit=50),
    "who is owed a callback": callbacks.list_waiting,
    "a callback": lambda connection: callbacks.find_callback(connection, 3),
    "existing ids": lambda connection: retention.existing_ids(connection, ["a", "b"]),
}


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with a history, all of whose indexes are worth something."""
    states = [JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED, JobState.RUNNING, JobState.LOST]
    add_many(
        database,
        (
            {
                "state": states[n % 5],
                "name": ("nightly", None)[n % 2],
                "owner": ("ann", "bob")[n % 2],
                "labels": {"team": "a"},
            }
            for n in range(500)
        ),
    )
    return database


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("before", [None, 250])
def test_no_page_of_a_list_walks_through_the_history(filled: Database, name: str, before: int | None) -> None:
    with recorded() as statements, filled.read() as connection:
        list_jobs(connection, FILTERS[name], limit=10, before=before)

    assert statements
    for statement in statements:
        details = plan(filled, statement)
        assert walks(details) == [], (statement, details)


@pytest.mark.parametrize("name", READS)
def test_no_look_up_walks_through_the_history(filled: Database, name: str) -> None:
    with recorded() as statements, filled.read() as connection:
        READS[name](connection)

    assert statements
    for statement in statements:
        assert walks(plan(filled, statement)) == [], statement


@pytest.mark.parametrize("name", WRITES)
def test_no_write_walks_through_the_history(filled: Database, name: str) -> None:
    with recorded() as statements, filled.write() as connection:
        WRITES[name](connection)

    assert statements
    for statement in statements:
        assert walks(plan(filled, statement)) == [], statement


def test_a_page_of_one_filter_sorts_no_more_than_itself(filled: Database) -> None:
    """Its numbers come from the index in the right order; only the page is sorted once more."""
    for name in ("nothing", "a state", "a name", "an owner", "a label"):
        with recorded() as statements, filled.read() as connection:
            list_jobs(connection, FILTERS[name], limit=10)
        details = [detail for statement in statements for detail in plan(filled, statement)]
        assert not any("USE TEMP B-TREE" in detail for detail in details[:-1]), (name, details)


def test_claims_take_the_queue_s_own_index(filled: Database) -> None:
    """Else each claim sorts all that waits, inside the writer's lock."""
    for take in (WRITES["claim"], READS["has queued"]):
        with recorded() as statements, filled.write() as connection:
            take(connection)
        details = [detail for statement in statements for detail in plan(filled, statement)]
        assert any("INDEX ix_job_queue" in detail for detail in details), details
        assert not any("USE TEMP B-TREE" in detail for detail in details), details


def test_due_callbacks_are_found_by_their_index(filled: Database) -> None:
    """However much one receiver has not taken: its part of the index is skipped, and read only as far as is claimed."""
    for name, take in (("claim", WRITES["claim callbacks"]), ("look", READS["who is owed a callback"])):
        with recorded() as statements, filled.write() as connection:
            take(connection)
        details = [detail for statement in statements for detail in plan(filled, statement)]
        assert any("INDEX ix_callback_pending" in detail for detail in details), (name, details)
        assert not any("USE TEMP B-TREE" in detail for detail in details), (name, details)
        assert not any(re.match(r"SCAN callback\b(?!.*ix_callback_pending)", detail) for detail in details), (
            name,
            details,
        )


def test_gc_walks_through_ended_jobs_by_their_number_in_pages(filled: Database, data_dir: Any) -> None:
    service = GcService(filled, Spool(data_dir), lambda: at(1000))
    with recorded() as statements:
        service.run(Gc(keep=1, max_age=1e9, max_bytes=1 << 40))

    for text, parameters in {(text, str(values)): (text, values) for text, values in statements}.values():
        assert walks(plan(filled, (text, parameters))) == [], text


def test_a_recorded_statement_of_a_bare_walk_would_be_noticed(filled: Database) -> None:
    add_job(filled)

    assert walks(plan(filled, ("SELECT * FROM job WHERE summary = 'x'", ()))) == ["SCAN job"]
