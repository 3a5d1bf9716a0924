"""The jobs of a dialect: their numbers, and what it is shown of them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jobrunner.domain.access import Caller, Grant, Scope
from jobrunner.domain.errors import Forbidden, JobNotFound
from jobrunner.domain.job import DialectNumber, Job
from jobrunner.domain.states import JobState, Priority
from jobrunner.house import House
from jobrunner.service.dialects import DialectService
from jobrunner.service.jobs import CancelAsked
from jobrunner.store.dialects import next_number, take_number
from jobrunner.store.engine import Connection
from tests.factories import CALLER, argv, make_job

ANN = Caller("ann", Grant(frozenset({Scope.READ, Scope.EXEC, Scope.CANCEL})))


class Spoken:
    """A dialect: its jobs one by one (`jobs`), and as a whole (`all`)."""

    def __init__(self, house: House, api: str) -> None:
        self.jobs = house.make_jobs(only_api=api)
        self.all = DialectService(api, self.jobs, house.database, house.spool, house.access, house.audit)
        self._submissions = house.make_submissions(api, self.jobs)

    def submit(self, caller: Caller = CALLER, **members: Any) -> Job:
        return self._submissions.submit(argv("true", **members), caller).job


def test_each_dialect_counts_its_own_jobs(house: House) -> None:
    one, two = Spoken(house, "one"), Spoken(house, "two")
    made = [one.submit(), two.submit(), one.submit(), one.submit(), make_job(house), two.submit()]

    assert [job.dialect_number for job in made] == [0, 0, 1, 2, None, 1]


def test_jobs_that_come_at_the_same_time_get_numbers_without_a_gap(house: House) -> None:
    spoken = Spoken(house, "one")
    together = threading.Barrier(16)

    def submit(_: int) -> int | None:
        together.wait()
        return spoken.submit().dialect_number

    with ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(submit, range(16)))

    assert sorted(map(int, numbers)) == list(range(16))  # type: ignore[arg-type]
    listed = list(spoken.all.list(CALLER))
    assert [job.dialect_number for job in listed] == list(range(16))
    assert [job.number for job in listed] == sorted(job.number for job in listed), "in the order of all jobs"


def test_a_number_is_not_given_again_unless_its_job_was_never_stored(house: House) -> None:
    def fail(connection: Connection) -> None:
        assert take_number(connection, "one") == 0
        raise JobNotFound

    with pytest.raises(JobNotFound):
        house.database.write_together(fail)
    spoken = Spoken(house, "one")
    assert spoken.submit().dialect_number == 0
    spoken.all.delete_all(CALLER, patience=1)
    assert spoken.submit().dialect_number == 1
    with house.database.read() as connection:
        assert (next_number(connection, "one"), next_number(connection, "absent")) == (2, 0)


def test_a_dialect_sees_no_other_jobs(house: House) -> None:
    one, two = Spoken(house, "one"), Spoken(house, "two")
    mine = one.submit()
    others = [two.submit(), make_job(house)]

    for reference in (mine.id, str(mine.number), DialectNumber("one", 0)):
        assert one.jobs.get(reference, CALLER).id == mine.id
        assert house.jobs.get(reference, CALLER).id == mine.id
    for other in others:
        for reference in (other.id, str(other.number), DialectNumber("two", 0)):
            with pytest.raises(JobNotFound):
                one.jobs.get(reference, CALLER)
            with pytest.raises(JobNotFound):
                one.jobs.cancel(reference, CALLER, CancelAsked())
            with pytest.raises(JobNotFound):
                one.jobs.delete(reference, CALLER, force=True, patience=1)
    assert [job.id for job in one.all.list(CALLER)] == [mine.id]
    one.all.delete_all(CALLER, patience=1)
    assert [house.jobs.get(job.id, CALLER).state for job in others] == [JobState.QUEUED] * 2


def test_lists_and_sums_are_of_one_s_own_jobs(house: House) -> None:
    spoken = Spoken(house, "one")
    spoken.submit()
    mine = spoken.submit(ANN, priority=Priority.HIGH)
    ended = spoken.jobs.cancel(spoken.submit(ANN).id, ANN, CancelAsked())

    assert [job.dialect_number for job in spoken.all.list(ANN)] == [1, 2]
    assert [job.dialect_number for job in spoken.all.list(CALLER)] == [0, 1, 2]
    assert [job.id for job in spoken.all.list(ANN, {JobState.QUEUED})] == [mine.id]
    assert [job.id for job in spoken.all.list(ANN, {JobState.CANCELED, JobState.FAILED})] == [ended.id]
    queued, high, canceled = JobState.QUEUED, Priority.HIGH, JobState.CANCELED
    assert spoken.all.count(ANN) == ({(queued, high): 1, (canceled, Priority.NORMAL): 1}, 1), "others wait, too"
    assert sum(spoken.all.count(CALLER)[0].values()) == 3
    with pytest.raises(Forbidden):
        spoken.all.list(Caller("x", Grant(frozenset({Scope.EXEC}))))
    with pytest.raises(Forbidden):
        spoken.all.delete_all(Caller("x", Grant(frozenset({Scope.READ}))), patience=1)
    spoken.all.delete_all(ANN, patience=1)
    assert [job.dialect_number for job in spoken.all.list(CALLER)] == [0]


def test_only_the_newest_are_told_from_the_others(house: House) -> None:
    spoken = Spoken(house, "one")
    made = [spoken.submit() for _ in range(4)]
    spoken.jobs.delete(made[3].id, CALLER, force=True, patience=1)

    assert [spoken.all.is_among_newest(job, 3) for job in made[:3]] == [False, True, True]


def test_the_audit_names_each_job_that_is_forgotten(house: House, caplog: pytest.LogCaptureFixture) -> None:
    spoken = Spoken(house, "one")
    made = [spoken.submit() for _ in range(3)]
    spoken.jobs.cancel(made[0].id, CALLER, CancelAsked())
    with caplog.at_level("INFO", "jobrunner.audit"):
        spoken.all.delete_all(CALLER, patience=1)

    deleted = [record.fields["id"] for record in caplog.records if record.fields["action"] == "delete"]  # type: ignore[attr-defined]
    assert sorted(deleted) == sorted(job.id for job in made)
