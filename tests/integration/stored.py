"""Puts jobs straight into the store, and reads it past the store's own statements."""

import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from jobrunner.domain.ids import make_job_id
from jobrunner.domain.job import CancelRequest, Job, JobEnd, NewJob
from jobrunner.domain.spec import Input, InputInfo, JobSpec, Step, StepKind
from jobrunner.domain.states import JobState, Priority
from jobrunner.store import execution
from jobrunner.store import jobs as store
from jobrunner.store.engine import Database
from jobrunner.store.rows import to_text

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""When the first job of a test is created; the next one a second later."""


def at(seconds: float) -> datetime:
    """Return a time of the tests' own clock."""
    return EPOCH + timedelta(seconds=seconds)


def new_job(
    *argv: str, owner: str = "tester", created_at: datetime = EPOCH, inputs: Sequence[Input] = (), **members: Any
) -> NewJob:
    """Make a submission, as the service hands it to the store."""
    spec = JobSpec(
        steps=(Step(StepKind.ARGV, argv or ("true",)),),
        timeout=60.0,
        grace=10.0,
        inputs=tuple(InputInfo(given.kind, given.name, len(given.content)) for given in inputs),
        **members,
    )
    job_id = make_job_id(int(created_at.timestamp() * 1000))
    return NewJob(id=job_id, owner=owner, api="v1", created_at=created_at, spec=spec)


def add_job(database: Database, *argv: str, inputs: Sequence[Input] = (), **members: Any) -> Job:
    """Store a queued job."""
    with database.write() as connection:
        return store.add_job(connection, new_job(*argv, inputs=inputs, **members), inputs)


def add_running(database: Database, executor: str = "me", **members: Any) -> Job:
    """Store a job and have an executor claim it; nothing else may be queued."""
    job = add_job(database, **members)
    with database.write() as connection:
        (claimed,) = execution.claim_jobs(connection, executor, 1, at(10))
    assert claimed.number == job.number
    return claimed


def end_of(state: JobState = JobState.SUCCEEDED, **members: Any) -> JobEnd:
    """Make the end of a job."""
    return JobEnd(state, members.pop("finished_at", at(20)), **members)


def add_ended(
    database: Database,
    state: JobState = JobState.SUCCEEDED,
    *,
    disk_bytes: int = 0,
    finished_at: datetime = EPOCH,
    **members: Any,
) -> Job:
    """Store a job that has ended."""
    job = add_running(database, **members)
    with database.write() as connection:
        assert execution.finish_job(
            connection, job.number, "me", end_of(state, finished_at=finished_at, disk_bytes=disk_bytes)
        )
    return find(database, job.number)


def cancel_request(by: str = "tester", **members: Any) -> CancelRequest:
    """Ask for the end of a job."""
    return CancelRequest(**{"by": by, "at": at(15), "signal": 15, **members})


def find(database: Database, reference: str | int) -> Job:
    """Look up a job that is there."""
    with database.read() as connection:
        job = store.find_job(connection, reference)
    assert job is not None
    return job


def rows(database: Database, statement: str, **values: Any) -> list[Any]:
    """Read with SQL of one's own."""
    with database.read() as connection:
        return list(connection.execute(text(statement), values).all())


def count(database: Database, table: str) -> int:
    """Count the rows of a table."""
    (row,) = rows(database, f"SELECT count(*) FROM {table}")
    number: int = row[0]
    return number


def add_many(database: Database, jobs: Iterable[dict[str, Any]]) -> None:
    """Store thousands of jobs at once, each from what is special about it; ``labels`` is a dict.

    They count on from number 1, a second apart: the table must be empty.
    """
    spec = json.dumps(JobSpec((Step(StepKind.ARGV, ("true",)),), timeout=60.0, grace=10.0).to_json())
    job_rows: list[dict[str, Any]] = []
    label_rows: list[dict[str, Any]] = []
    for number, job in enumerate(jobs, 1):
        state = JobState(job.get("state", JobState.SUCCEEDED))
        created_at = to_text(at(number))
        job_rows.append(
            {
                "number": number,
                "id": str(uuid.UUID(int=number)),
                "owner": job.get("owner", "tester"),
                "name": job.get("name"),
                "summary": job.get("summary", "true"),
                "priority": job.get("priority", Priority.NORMAL).rank,
                "spec": spec,
                "state": state.value,
                "created_at": created_at,
                "finished_at": created_at if state.is_ended else None,
                "disk_bytes": job.get("disk_bytes", 0),
            }
        )
        label_rows.extend({"key": k, "value": v, "number": number} for k, v in job.get("labels", {}).items())
    with database.write() as connection:
        connection.execute(
            text(
                "INSERT INTO job (number, id, owner, api, name, summary, priority, spec, state,"
                " created_at, finished_at, disk_bytes)"
                " VALUES (:number, :id, :owner, 'v1', :name, :summary, :priority, :spec, :state,"
                " :created_at, :finished_at, :disk_bytes)"
            ),
            job_rows,
        )
        if label_rows:
            connection.execute(
                text("INSERT INTO job_label (key, value, number) VALUES (:key, :value, :number)"), label_rows
            )
