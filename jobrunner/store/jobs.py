"""The rows of jobs, for everybody; `store.execution` is what their executor does with them.

Every function takes a connection; its caller began the transaction. Each change
of state is one compare-and-set: it names the state it starts from, and the
loser of a race changes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from jobrunner.domain.job import CancelRequest, Job, NewJob
from jobrunner.domain.spec import Input, InputKind
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Hole, Stream
from jobrunner.store.callbacks import ENDED, end_job
from jobrunner.store.dialects import take_number
from jobrunner.store.models import QUEUED, RUNNING, InputRow, JobRow, LabelRow, SignalRow
from jobrunner.store.prepared import Prepared
from jobrunner.store.rows import COLUMNS, to_holes, to_job, to_text

_INSERT = Prepared(
    insert(JobRow)
    .values(
        {
            column: bindparam(column)
            for column in (
                "id", "owner", "api", "name", "summary", "priority", "spec", "state", "created_at", "callback_url",
                "dialect_number",
            )
        }
    )
    .returning(JobRow.number)
)  # fmt: skip
_BY_ID = Prepared(select(*COLUMNS).where(JobRow.id == bindparam("reference")))
_BY_NUMBER = Prepared(select(*COLUMNS).where(JobRow.number == bindparam("reference")))
_STATE = select(JobRow.state).where(JobRow.number == bindparam("number"))


def add_job(connection: Connection, new: NewJob, inputs: Sequence[Input]) -> Job:
    """Store a submission; it is queued from the commit on."""
    spec = new.spec
    dialect_number = take_number(connection, new.api) if new.is_numbered else None
    number: int = _INSERT.find(
        connection,
        {
            "id": new.id,
            "owner": new.owner,
            "api": new.api,
            "name": spec.name,
            "summary": spec.summary,
            "priority": spec.priority.rank,
            "spec": json.dumps(spec.to_json(), ensure_ascii=False, separators=(",", ":")),
            "state": JobState.QUEUED.value,
            "created_at": to_text(new.created_at),
            "callback_url": spec.callback_url,
            "dialect_number": dialect_number,
        },
    ).number
    if spec.labels:
        labels = [{"key": key, "value": value, "number": number} for key, value in spec.labels.items()]
        connection.execute(insert(LabelRow), labels)
    if inputs:
        rows = [
            {"number": number, "kind": given.kind.value, "name": given.name, "content": given.content}
            for given in inputs
        ]
        connection.execute(insert(InputRow), rows)
    return Job(
        number=number,
        id=new.id,
        owner=new.owner,
        api=new.api,
        spec=spec,
        state=JobState.QUEUED,
        created_at=new.created_at,
        dialect_number=dialect_number,
    )


def find_job(connection: Connection, reference: str | int) -> Job | None:
    """Look a job up by its uuid or its number."""
    statement = _BY_NUMBER if isinstance(reference, int) else _BY_ID
    row = statement.find(connection, {"reference": reference})
    return to_job(row) if row is not None else None


def find_state(connection: Connection, number: int) -> JobState | None:
    """Return only the state of a job, or None when it is gone."""
    state = connection.execute(_STATE, {"number": number}).scalar_one_or_none()
    return JobState(state) if state is not None else None


_PROGRESS = Prepared(
    select(JobRow.state, JobRow.stdout_bytes, JobRow.stderr_bytes, JobRow.holes).where(
        JobRow.number == bindparam("number")
    )
)


class Progress(NamedTuple):
    """How far a job is, for who follows its output; the lengths count once it has ended."""

    state: JobState
    sizes: Mapping[Stream, int]
    holes: Mapping[Stream, Hole]


def find_progress(connection: Connection, number: int) -> Progress | None:
    """Return how far a job is, or None when it is gone."""
    row = _PROGRESS.find(connection, {"number": number})
    if row is None:
        return None
    sizes = {Stream.STDOUT: row.stdout_bytes, Stream.STDERR: row.stderr_bytes}
    return Progress(JobState(row.state), sizes, to_holes(row.holes))


def load_inputs(connection: Connection, number: int) -> list[Input]:
    """Return everything that came with a submission."""
    rows = connection.execute(select(InputRow.kind, InputRow.name, InputRow.content).where(InputRow.number == number))
    return [Input(InputKind(row.kind), row.name, row.content) for row in rows]


def cancel_queued(connection: Connection, number: int, request: CancelRequest) -> bool:
    """End a job that waits in the queue. False when it does not, or no longer."""
    ending = (
        update(JobRow)
        .where(JobRow.number == number, JobRow.state == QUEUED)
        .values(state=JobState.CANCELED.value, finished_at=to_text(request.at), **_cancel_values(request))
    )
    return end_job(connection, ending.returning(*ENDED))


def cancel_running(connection: Connection, number: int, request: CancelRequest) -> bool:
    """Write down that a running job should end; its executor acts on it. False when it does not run.

    Who asked first, and when, stays; a repeat may change the grace period and
    the signal.
    """
    values = _cancel_values(request)
    values["cancel_by"] = func.coalesce(JobRow.cancel_by, request.by)
    values["cancel_at"] = func.coalesce(JobRow.cancel_at, to_text(request.at))
    done = connection.execute(update(JobRow).where(JobRow.number == number, JobRow.state == RUNNING).values(**values))
    return done.rowcount == 1


def _cancel_values(request: CancelRequest) -> dict[str, Any]:
    return {
        "cancel_by": request.by,
        "cancel_at": to_text(request.at),
        "cancel_signal": request.signal,
        "cancel_grace": request.grace,
    }


def add_signal(connection: Connection, number: int, signal: int) -> None:
    """Write down a signal that the executor of a job should send."""
    connection.execute(insert(SignalRow).values(number=number, signal=signal))


def delete_ended_job(connection: Connection, number: int) -> bool:
    """Forget a job with everything that belongs to it. False when it has not ended, or is gone."""
    done = connection.execute(delete(JobRow).where(JobRow.number == number, JobRow.finished_at.is_not(None)))
    return done.rowcount == 1


def count_states(connection: Connection, owner: str | None = None) -> tuple[dict[JobState, int], int]:
    """Return the number of jobs in each state, and the disk blocks of all ended ones in bytes.

    Reads one index from end to end, so its cost grows with the history; the jobs of one owner (None: of all) are
    looked up one by one.
    """
    counted = select(JobRow.state, func.count(), func.sum(JobRow.disk_bytes)).group_by(JobRow.state)
    if owner is not None:
        counted = counted.where(JobRow.owner == owner)
    rows = connection.execute(counted).all()
    counts = dict.fromkeys(JobState, 0) | {JobState(state): count for state, count, _ in rows}
    return counts, sum(size for _, _, size in rows)


_NTH_QUEUED = Prepared(
    select(JobRow.number)
    .where(JobRow.state == QUEUED)
    .order_by(JobRow.priority, JobRow.number)
    .limit(1)
    .offset(bindparam("before"))
)
_ACTIVE = select(JobRow.number).where(JobRow.state.in_([QUEUED, RUNNING])).limit(1)


def has_queued(connection: Connection, *, at_least: int = 1) -> bool:
    """Tell whether so many jobs wait. The cost grows with the number of those that do."""
    return _NTH_QUEUED.find(connection, {"before": at_least - 1}) is not None


_ACTIVE_NAME = (
    select(JobRow.id, JobRow.owner)
    .where(JobRow.name == bindparam("name"), JobRow.name.is_not(None), JobRow.finished_at.is_(None))
    .where(or_(bindparam("api").is_(None), JobRow.api == bindparam("api")))
    .order_by(JobRow.number)
    .limit(1)
)


class Named(NamedTuple):
    """A job that has a name to itself."""

    id: str
    owner: str


def find_active_name(connection: Connection, name: str, api: str | None = None) -> Named | None:
    """Return the first job of this name that has not ended; with ``api`` of those that came through this API."""
    row = connection.execute(_ACTIVE_NAME, {"name": name, "api": api}).one_or_none()
    return Named(*row) if row is not None else None


def has_active(connection: Connection) -> bool:
    """Tell whether any job waits or runs."""
    return connection.execute(_ACTIVE).one_or_none() is not None
