"""Pages of jobs, newest first, whose cost does not grow with the history.

One filter drives: the one with an index of its own that is likely to be the
most selective. It yields numbers in falling order, below the cursor. The other
filters are then tried on at most `WINDOW` of these, so that a page of a rare
combination ends early, with fewer jobs than asked for and a cursor that goes on.
"""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Select, Subquery, exists, func, or_, select, union_all

from jobrunner.domain.job import JobFilter, JobPage
from jobrunner.store.engine import one_moment
from jobrunner.store.models import JobRow, LabelRow
from jobrunner.store.rows import COLUMNS, to_job, to_text

WINDOW = 10_000
"""How many rows one page looks at, at most."""

_TOP = 1 << 62

Condition = ColumnElement[bool]
Numbers = Callable[[int, int, int], Subquery]
"""(below, from, limit) → a subquery with a column ``number``, falling."""


def list_jobs(connection: Connection, wanted: JobFilter, *, limit: int, before: int | None = None) -> JobPage:
    """Return a page of jobs.

    Args:
        connection: may be in a transaction or not.
        wanted: everything that must hold.
        limit: most jobs to return.
        before: only numbers below this one: where the page before ended.
    """
    numbers, others = _plan(wanted)
    with one_moment(connection):
        below, lowest = _bounds(connection, wanted, before)
        window = numbers(below, lowest, WINDOW if others else limit + 1)
        rows = connection.execute(
            select(*COLUMNS)
            .select_from(window)
            .join(JobRow, JobRow.number == window.c.number)
            .where(*others)
            .order_by(window.c.number.desc())
            .limit(limit + 1)
        ).all()
        if len(rows) > limit:
            return JobPage(tuple(map(to_job, rows[:limit])), before=rows[limit - 1].number)
        unseen = _unseen(connection, numbers(below, lowest, WINDOW + 1)) if others else None
    return JobPage(tuple(map(to_job, rows)), before=unseen)


def _unseen(connection: Connection, window: Subquery) -> int | None:
    """Return where the next page begins, if there is more than one page may look at; the window has one row more."""
    seen, last = connection.execute(select(func.count(), func.min(window.c.number)).select_from(window)).one()
    return last + 1 if seen > WINDOW else None


def _bounds(connection: Connection, wanted: JobFilter, before: int | None) -> tuple[int, int]:
    """Turn the bounds of the time of creation into bounds of the number: numbers are given in that order.

    (A wall clock that was set back makes exceptions to that; the exact time is
    compared as well, so a page may miss jobs at such an edge but shows no wrong one.)
    """
    below, lowest = before if before is not None else _TOP, 0
    if wanted.until is not None:
        last = _edge(connection, JobRow.created_at <= _bound(wanted.until), newest=True)
        below = min(below, last + 1 if last is not None else 0)
    if wanted.since is not None:
        first = _edge(connection, JobRow.created_at >= _bound(wanted.since), newest=False)
        lowest = first if first is not None else _TOP
    return below, lowest


def _bound(at: datetime) -> str:
    return to_text(at)


def _edge(connection: Connection, condition: Condition, *, newest: bool) -> int | None:
    order = (
        (JobRow.created_at.desc(), JobRow.number.desc()) if newest else (JobRow.created_at.asc(), JobRow.number.asc())
    )
    return connection.execute(select(JobRow.number).where(condition).order_by(*order).limit(1)).scalar_one_or_none()


def _plan(wanted: JobFilter) -> tuple[Numbers, list[Condition]]:
    """Choose the filter that drives; return it and the conditions that are left for the rows."""
    drivers: list[Numbers] = []
    conditions: list[Condition] = []

    def indexed(condition: Condition) -> None:
        drivers.append(_numbers_where(condition))
        conditions.append(condition)

    for key, value in wanted.labels.items():
        drivers.append(_numbers_with_label(key, value))
        conditions.append(
            exists().where(LabelRow.key == key, LabelRow.value == value, LabelRow.number == JobRow.number)
        )
    if wanted.name is not None:
        indexed(JobRow.name == wanted.name)
    if wanted.states:
        values = sorted(state.value for state in wanted.states)
        drivers.append(_numbers_in_states(values))
        conditions.append(JobRow.state.in_(values))
    if wanted.owner is not None:
        indexed(JobRow.owner == wanted.owner)
    others = conditions[1:]
    if wanted.text is not None:
        others.append(
            or_(*(column.icontains(wanted.text, autoescape=True) for column in (JobRow.name, JobRow.summary)))
        )
    if wanted.since is not None:
        others.append(JobRow.created_at >= _bound(wanted.since))
    if wanted.until is not None:
        others.append(JobRow.created_at <= _bound(wanted.until))
    return (drivers[0] if drivers else _all_numbers), others


def _falling(statement: Select[int], column: ColumnElement[int], below: int, lowest: int, limit: int) -> Select[int]:
    return statement.where(column < below, column >= lowest).order_by(column.desc()).limit(limit)


def _all_numbers(below: int, lowest: int, limit: int) -> Subquery:
    number = JobRow.number.expression
    return _falling(select(JobRow.number), number, below, lowest, limit).subquery()


def _numbers_where(condition: Condition) -> Numbers:
    def numbers(below: int, lowest: int, limit: int) -> Subquery:
        number = JobRow.number.expression
        return _falling(select(JobRow.number).where(condition), number, below, lowest, limit).subquery()

    return numbers


def _numbers_with_label(key: str, value: str) -> Numbers:
    def numbers(below: int, lowest: int, limit: int) -> Subquery:
        labelled = select(LabelRow.number).where(LabelRow.key == key, LabelRow.value == value)
        return _falling(labelled, LabelRow.number.expression, below, lowest, limit).subquery()

    return numbers


def _numbers_in_states(states: list[str]) -> Numbers:
    """One walk down the index for each state, then the newest of all: an IN would sort the whole history."""

    def numbers(below: int, lowest: int, limit: int) -> Subquery:
        walks = [_numbers_where(JobRow.state == state)(below, lowest, limit) for state in states]
        if len(walks) == 1:
            return walks[0]
        merged = union_all(*(select(walk.c.number) for walk in walks)).subquery()
        return select(merged.c.number).order_by(merged.c.number.desc()).limit(limit).subquery()

    return numbers
