"""The jobs of a dialect, in the order in which they came. Every function takes a connection."""

from collections.abc import Collection

from sqlalchemy import Connection, bindparam, delete, func, literal_column, select
from sqlalchemy.dialects.sqlite import insert

from jobrunner.domain.job import DialectNumber, Job
from jobrunner.domain.states import ACTIVE, JobState, Priority
from jobrunner.store.models import DialectRow, JobRow
from jobrunner.store.rows import COLUMNS, to_job

_TAKE = (
    insert(DialectRow)
    .values(api=bindparam("api"), next_number=1)
    .on_conflict_do_update(index_elements=[DialectRow.api], set_={"next_number": DialectRow.next_number + 1})
    .returning(DialectRow.next_number - 1)
)
_NEXT = select(DialectRow.next_number).where(DialectRow.api == bindparam("api"))
_FIND = select(*COLUMNS).where(JobRow.api == bindparam("api"), JobRow.dialect_number == bindparam("number"))


def take_number(connection: Connection, api: str) -> int:
    """Return the next number of a dialect, from 0 on; nobody else gets it once this is committed."""
    number: int = connection.execute(_TAKE, {"api": api}).scalar_one()
    return number


def next_number(connection: Connection, api: str) -> int:
    """Return what the next job of a dialect will be called: how many it ever had."""
    return connection.execute(_NEXT, {"api": api}).scalar_one_or_none() or 0


def find_numbered(connection: Connection, called: DialectNumber) -> Job | None:
    """Look a job up by what its dialect calls it."""
    row = connection.execute(_FIND, called._asdict()).one_or_none()
    return to_job(row) if row is not None else None


def list_of_dialect(
    connection: Connection,
    api: str,
    *,
    states: Collection[JobState] = (),
    owner: str | None = None,
    after: int = -1,
    limit: int,
) -> list[Job]:
    """Return jobs of a dialect, oldest first.

    Args:
        connection: where to look.
        api: the dialect.
        states: one of these; empty is all. Of jobs that have not ended the cost does not grow with the history.
        owner: whose; None: everyone's.
        after: only numbers above this one.
        limit: most jobs to return.
    """
    wanted = select(*COLUMNS).where(JobRow.dialect_number > after)
    # With the sign SQLite, which has no statistics, takes the index of states and not that of the dialect.
    is_few = bool(states) and ACTIVE.issuperset(states)
    wanted = wanted.where((literal_column("+job.api") if is_few else JobRow.api) == api)
    if states:
        wanted = wanted.where(JobRow.state.in_(sorted(state.value for state in states)))
    if owner is not None:
        wanted = wanted.where(JobRow.owner == owner)
    return [to_job(row) for row in connection.execute(wanted.order_by(JobRow.dialect_number).limit(limit))]


def count_of_dialect(
    connection: Connection, api: str, owner: str | None = None
) -> dict[tuple[JobState, Priority], int]:
    """Return how many jobs of a dialect there are, by state and priority; the cost grows with their number."""
    counted = (
        select(JobRow.state, JobRow.priority, func.count())
        .where(JobRow.api == api, JobRow.dialect_number.is_not(None))
        .group_by(JobRow.state, JobRow.priority)
    )
    if owner is not None:
        counted = counted.where(JobRow.owner == owner)
    return {(JobState(state), Priority.from_rank(rank)): count for state, rank, count in connection.execute(counted)}


def delete_ended_jobs(connection: Connection, numbers: Collection[int]) -> set[str]:
    """Forget those of these jobs (by `Job.number`) that have ended; return their ids."""
    ended = delete(JobRow).where(JobRow.number.in_(numbers), JobRow.finished_at.is_not(None))
    return set(connection.execute(ended.returning(JobRow.id)).scalars())
