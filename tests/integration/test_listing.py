"""Lists: every filter, and pages that cover everything exactly once."""

import itertools
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from jobrunner.domain.job import JobFilter
from jobrunner.domain.states import JobState
from jobrunner.store.engine import Database
from jobrunner.store.listing import WINDOW, list_jobs
from tests.integration.stored import add_ended, add_job, add_many, add_running, at

OWNERS = ["ann", "bob"]
NAMES = [None, "nightly", "backup"]
STATES = [JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED, JobState.RUNNING, JobState.LOST]
LABELS: list[dict[str, str]] = [{}, {"team": "a"}, {"team": "b"}, {"team": "a", "env": "prod"}]
SUMMARIES = ["make all", "make clean", "echo 100%"]


def page(database: Database, limit: int = 50, before: int | None = None, **wanted: Any) -> tuple[list[int], int | None]:
    with database.read() as connection:
        found = list_jobs(connection, JobFilter(**wanted), limit=limit, before=before)
    return [job.number for job in found.jobs], found.before


def pages(database: Database, limit: int, **wanted: Any) -> Iterator[list[int]]:
    before = None
    while True:
        numbers, before = page(database, limit, before, **wanted)
        yield numbers
        if before is None:
            return


def numbers(database: Database, **wanted: Any) -> list[int]:
    """Return a whole list, page by page."""
    return [number for found in pages(database, 7, **wanted) for number in found]


def mixed(count: int) -> list[dict[str, Any]]:
    chance = random.Random(4711)
    return [
        {
            "owner": chance.choice(OWNERS),
            "name": chance.choice(NAMES),
            "state": chance.choice(STATES),
            "labels": chance.choice(LABELS),
            "summary": chance.choice(SUMMARIES),
        }
        for _ in range(count)
    ]


FILTERS: dict[str, list[dict[str, Any]]] = {
    "states": [{}, {"states": frozenset({JobState.FAILED})}, {"states": frozenset(STATES[:3])}],
    "name": [{}, {"name": "nightly"}],
    "owner": [{}, {"owner": "bob"}],
    "labels": [{}, {"labels": {"team": "a"}}, {"labels": {"team": "a", "env": "prod"}}],
    "text": [{}, {"text": "MAKE"}],
    "bounds": [{}, {"since": at(60), "until": at(240)}],
}
COMBINATIONS = [
    {key: value for chosen in combination for key, value in chosen.items()}
    for combination in itertools.product(*FILTERS.values())
]


def fits(job: dict[str, Any], number: int, wanted: dict[str, Any]) -> bool:
    return (
        (not wanted.get("states") or job["state"] in wanted["states"])
        and wanted.get("name") in {None, job["name"]}
        and wanted.get("owner") in {None, job["owner"]}
        and wanted.get("labels", {}).items() <= job["labels"].items()
        and any(wanted.get("text", "").lower() in (text or "") for text in (job["name"], job["summary"]))
        and wanted.get("since", at(0)) <= at(number) <= wanted.get("until", at(1e6))
    )


def test_every_combination_of_filters_finds_what_fits_and_nothing_else(database: Database) -> None:
    jobs = mixed(300)
    add_many(database, jobs)

    for wanted in COMBINATIONS:
        expected = [number for number, job in enumerate(jobs, 1) if fits(job, number, wanted)][::-1]
        assert numbers(database, **wanted) == expected, wanted
    assert len(COMBINATIONS) == 144


def test_a_list_shows_whole_jobs(database: Database) -> None:
    job = add_job(database, "echo", "hello", name="a", labels={"b": "c"})
    with database.read() as connection:
        found = list_jobs(connection, JobFilter(), limit=1)

    assert found.jobs == (job,)
    assert found.before is None


def test_no_jobs_are_an_empty_list_whatever_is_wanted(database: Database) -> None:
    for wanted in COMBINATIONS:
        assert page(database, **wanted) == ([], None)


# ── pages ──


@pytest.mark.parametrize("limit", [1, 2, 3, 99, 100, 101, 1000])
@pytest.mark.parametrize("wanted", [{}, {"states": frozenset({JobState.SUCCEEDED, JobState.FAILED})}, {"text": "make"}])
def test_pages_cover_everything_once_in_falling_order(database: Database, limit: int, wanted: dict[str, Any]) -> None:
    add_many(database, ({"state": (JobState.FAILED, JobState.SUCCEEDED)[n % 2], "summary": "make"} for n in range(100)))

    found = list(pages(database, limit, **wanted))

    assert list(itertools.chain(*found)) == list(range(100, 0, -1))
    assert [len(numbers) for numbers in found[:-1]] == [limit] * (len(found) - 1)
    assert found[-1] != []


def test_jobs_that_come_between_two_pages_move_nothing(database: Database) -> None:
    for _ in range(10):
        add_job(database, labels={"a": "b"})

    found: list[int] = []
    before = None
    while True:
        page_numbers, before = page(database, 3, before, labels={"a": "b"})
        found.extend(page_numbers)
        if before is None:
            break
        add_job(database, labels={"a": "b"})

    assert found == list(range(10, 0, -1))


def test_jobs_that_go_between_two_pages_move_nothing(database: Database) -> None:
    for _ in range(9):
        add_ended(database)
    first, before = page(database, 3)

    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job WHERE number IN (9, 7, 6, 2)")

    assert first == [9, 8, 7]
    assert page(database, 9, before) == ([5, 4, 3, 1], None)


def test_a_page_before_the_first_number_is_empty(database: Database) -> None:
    add_job(database)

    assert page(database, before=1) == ([], None)


def test_a_rare_combination_ends_a_page_early_with_a_cursor_and_goes_on(database: Database) -> None:
    """The cost of a page is bounded: it may be short, or even empty, but leads on."""
    rare = {1, 2, 15_000, 25_000}
    add_many(database, ({"name": "rare" if number in rare else None} for number in range(1, 25_001)))

    found = list(pages(database, 50, text="rare"))

    assert list(itertools.chain(*found)) == [25_000, 15_000, 2, 1]
    assert len(found) > 1


@pytest.mark.parametrize(
    "common",
    [
        {"owner": "ann"},
        {"states": frozenset({JobState.SUCCEEDED})},
        {"states": frozenset({JobState.SUCCEEDED, JobState.FAILED})},
        {"labels": {"team": "a"}},
    ],
)
def test_nothing_is_passed_over_when_the_driving_filter_is_a_common_one(
    database: Database, common: dict[str, Any]
) -> None:
    rare = {3, 4, 11_000, 21_999}
    states = sorted(common.get("states", {JobState.SUCCEEDED}))
    add_many(
        database,
        (
            {
                "owner": "ann",
                "labels": {"team": "a"} if "labels" in common else {},
                "state": states[number % len(states)],
                "summary": "rare" if number in rare else "common",
            }
            for number in range(1, 22_001)
        ),
    )  # fmt: skip

    assert list(itertools.chain(*pages(database, 50, text="rare", **common))) == sorted(rare, reverse=True)


def test_a_page_before_number_0_is_empty_like_any_before_the_first(database: Database) -> None:
    add_job(database)

    assert page(database, before=0) == ([], None)


@pytest.mark.parametrize("wanted", [{"text": "true"}, {"text": "no such"}, {"owner": "tester", "text": "no such"}])
def test_a_page_that_has_looked_at_the_last_job_leads_nowhere(database: Database, wanted: dict[str, Any]) -> None:
    """Also when it has looked at just as many as it may."""
    add_many(database, ({"summary": "true" if number == 1 else "false"} for number in range(1, WINDOW + 1)))

    found = list(pages(database, 50, **wanted))

    assert found == [[1] if wanted["text"] == "true" else []]


@pytest.mark.parametrize("change", ["DELETE FROM job WHERE number > 12000", "UPDATE job SET owner = 'bob'"])
def test_a_page_and_the_cursor_behind_it_are_of_the_same_moment(database: Database, change: str) -> None:
    """Else what was never looked at would be passed over, or shown twice."""
    add_many(database, ({"owner": "ann", "summary": "rare" if n == 3000 else ""} for n in range(1, 15_001)))
    selects: list[str] = []

    def meddle(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            selects.append(statement)
            if len(selects) == 2:
                with database.write() as connection:
                    connection.exec_driver_sql(change)

    event.listen(database._reader, "before_cursor_execute", meddle)
    numbers, before = page(database, owner="ann", text="rare")

    assert (numbers, before) == ([], 5001)
    assert len(selects) == 2


def test_a_list_leaves_no_transaction_behind(database: Database) -> None:
    """Whoever reads on over the same connection would see the past, and the log could not be truncated."""
    add_job(database)
    with database.read() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        list_jobs(connection, JobFilter(text="true"), limit=1)
        assert not driver.in_transaction
        with pytest.raises(OverflowError):
            list_jobs(connection, JobFilter(text="true"), limit=1 << 70)
        assert not driver.in_transaction


def test_a_list_can_be_made_inside_a_transaction(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("PRAGMA user_version")
        assert list_jobs(connection, JobFilter(text="true"), limit=1).jobs == ()
        assert connection.connection.driver_connection.in_transaction  # type: ignore[union-attr]


# ── time ──


def test_both_bounds_of_the_time_are_included(database: Database) -> None:
    add_many(database, ({} for _ in range(10)))  # number n at second n

    assert numbers(database, since=at(3), until=at(5)) == [5, 4, 3]
    assert numbers(database, since=at(3.000001)) == [10, 9, 8, 7, 6, 5, 4]
    assert numbers(database, until=at(4.999999)) == [4, 3, 2, 1]
    assert numbers(database, since=at(5), until=at(5)) == [5]
    assert numbers(database, since=at(6), until=at(5)) == []
    assert numbers(database, since=at(11)) == []
    assert numbers(database, until=at(0)) == []


def test_a_bound_may_be_given_in_any_time_zone(database: Database) -> None:
    add_many(database, ({} for _ in range(5)))
    elsewhere = at(3).astimezone(None) + timedelta(0)

    assert numbers(database, since=elsewhere, until=elsewhere) == [3]


def test_jobs_of_the_same_instant_are_all_within_its_bounds(database: Database) -> None:
    for _ in range(3):
        add_job(database, created_at=at(7))

    assert numbers(database, since=at(7), until=at(7)) == [3, 2, 1]


def test_a_clock_that_was_set_back_shows_no_wrong_job(database: Database) -> None:
    for seconds in (10, 20, 5, 30):
        add_job(database, created_at=at(seconds))

    assert set(numbers(database, since=at(8), until=at(25))) <= {1, 2}
    assert set(numbers(database, until=at(6))) <= {3}


# ── text ──


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%", [1]),
        ("0%", [1]),
        ("_", [2]),
        ("a_b", [2]),
        ("/", [3]),
        ("\\", [4]),
        ("'", [5]),
        ("MAKE", [6]),
        ("make ALL", [6]),
        ("ü", [7]),
        ("nightly", [8]),
        ("echo", [8, 7, 5, 4, 3, 2, 1]),
        ("o u", []),
        ("x" * 10_000, []),
        ("", [8, 7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_text_is_found_as_it_is_written_but_for_the_case(database: Database, text: str, found: list[int]) -> None:
    for word in ("100%", "a_b", "a/b", "a\\b", "it's"):
        add_job(database, "echo", word)
    add_job(database, "Make", "all")
    add_job(database, "echo", "grün")
    add_job(database, "echo", name="Nightly")

    assert numbers(database, text=text) == found


def test_names_owners_and_labels_are_compared_exactly(database: Database) -> None:
    add_job(database, name="a%", owner="Ann", labels={"k": "v"})

    assert numbers(database, name="a%", owner="Ann", labels={"k": "v"}) == [1]
    for wanted in ({"name": "a"}, {"name": "A%"}, {"owner": "ann"}, {"labels": {"k": "V"}}, {"labels": {"k": "%"}}):
        assert numbers(database, **wanted) == []


def test_as_many_labels_as_a_job_may_have_can_be_asked_for(database: Database) -> None:
    labels = {f"key {n}": f"value {n}" for n in range(32)}
    job = add_job(database, labels=labels)
    add_job(database, labels={**labels, "key 31": "other"})

    assert numbers(database, labels=labels) == [job.number]


def test_active_and_ended_jobs_are_told_apart(database: Database) -> None:
    ended = add_ended(database)
    running = add_running(database)
    queued = add_job(database)

    assert numbers(database, states=frozenset({JobState.QUEUED, JobState.RUNNING})) == [queued.number, running.number]
    assert numbers(database, states=frozenset(set(JobState) - {JobState.QUEUED, JobState.RUNNING})) == [ended.number]
