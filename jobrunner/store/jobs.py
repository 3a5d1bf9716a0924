"""The rows of jobs. Every function takes a connection; its caller began the transaction.

Each change of state is one compare-and-set: it names the state it starts
from, and the loser of a race changes nothing.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import CancelRequest, Job, JobEnd, JobError, NewJob, SentSignal, StepSpan
from jobrunner.domain.spec import Input, InputKind
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Hole, Stream
from jobrunner.store.callbacks import ENDED, end_job
from jobrunner.store.faces import take_number
from jobrunner.store.models import QUEUED, RUNNING, InputRow, JobRow, LabelRow, SignalRow
from jobrunner.store.rows import COLUMNS, spans_text, to_holes, to_job, to_text


def _signals_text(signals: Sequence[SentSignal]) -> str:
    return json.dumps([sent.to_json() for sent in signals], separators=(",", ":"))


# ── by anyone ────────────────────────────────────────────────────────────────

_INSERT = insert(JobRow).returning(JobRow.number)
_BY_ID = select(*COLUMNS).where(JobRow.id == bindparam("reference"))
_BY_NUMBER = select(*COLUMNS).where(JobRow.number == bindparam("reference"))
_STATE = select(JobRow.state).where(JobRow.number == bindparam("number"))


def add_job(connection: Connection, new: NewJob, inputs: Sequence[Input]) -> Job:
    """Store a submission; it is queued from the commit on."""
    spec = new.spec
    face_number = take_number(connection, new.api) if new.is_numbered else None
    number = connection.execute(
        _INSERT,
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
            "face_number": face_number,
        },
    ).scalar_one()
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
        face_number=face_number,
    )


def find_job(connection: Connection, reference: str | int) -> Job | None:
    """Look a job up by its uuid or its number."""
    statement = _BY_NUMBER if isinstance(reference, int) else _BY_ID
    row = connection.execute(statement, {"reference": reference}).one_or_none()
    return to_job(row) if row is not None else None


def find_state(connection: Connection, number: int) -> JobState | None:
    """Return only the state of a job, or None when it is gone."""
    state = connection.execute(_STATE, {"number": number}).scalar_one_or_none()
    return JobState(state) if state is not None else None


_PROGRESS = select(JobRow.state, JobRow.stdout_bytes, JobRow.stderr_bytes, JobRow.holes).where(
    JobRow.number == bindparam("number")
)


class Progress(NamedTuple):
    """How far a job is, for who follows its output; the lengths count once it has ended."""

    state: JobState
    sizes: Mapping[Stream, int]
    holes: Mapping[Stream, Hole]


def find_progress(connection: Connection, number: int) -> Progress | None:
    """Return how far a job is, or None when it is gone."""
    row = connection.execute(_PROGRESS, {"number": number}).one_or_none()
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


# ── by the executor ──────────────────────────────────────────────────────────

_BEST_QUEUED = (
    select(JobRow.number)
    .where(JobRow.state == QUEUED)
    .order_by(JobRow.priority, JobRow.number)
    .limit(bindparam("limit"))
)
_CLAIM = (
    update(JobRow)
    .where(JobRow.number.in_(_BEST_QUEUED.scalar_subquery()), JobRow.state == QUEUED)
    .values(state=RUNNING, executor=bindparam("claimed_by"), started_at=bindparam("now"))
    .returning(*COLUMNS)
)


_NTH_QUEUED = (
    select(JobRow.number)
    .where(JobRow.state == QUEUED)
    .order_by(JobRow.priority, JobRow.number)
    .limit(1)
    .offset(bindparam("before"))
)
_ACTIVE = select(JobRow.number).where(JobRow.state.in_([QUEUED, RUNNING])).limit(1)


def has_queued(connection: Connection, *, at_least: int = 1) -> bool:
    """Tell whether so many jobs wait. The cost grows with the number of those that do."""
    return connection.execute(_NTH_QUEUED, {"before": at_least - 1}).one_or_none() is not None


_ACTIVE_NAME = (
    select(JobRow.id, JobRow.owner)
    .where(JobRow.name == bindparam("name"), JobRow.name.is_not(None), JobRow.finished_at.is_(None))
    .order_by(JobRow.number)
    .limit(1)
)


class Named(NamedTuple):
    """A job that has a name to itself."""

    id: str
    owner: str


def find_active_name(connection: Connection, name: str) -> Named | None:
    """Return the first job of this name that has not ended."""
    row = connection.execute(_ACTIVE_NAME, {"name": name}).one_or_none()
    return Named(*row) if row is not None else None


def has_active(connection: Connection) -> bool:
    """Tell whether any job waits or runs."""
    return connection.execute(_ACTIVE).one_or_none() is not None


def claim_jobs(connection: Connection, executor: str, limit: int, now: datetime) -> list[Job]:
    """Take up to ``limit`` jobs from the queue: by priority, then by number."""
    rows = connection.execute(_CLAIM, {"claimed_by": executor, "now": to_text(now), "limit": limit}).all()
    # RETURNING has no order of its own.
    return sorted(map(to_job, rows), key=lambda job: (job.spec.priority.rank, job.number))


_FINISH = (
    update(JobRow)
    .where(
        JobRow.number == bindparam("of_number"),
        JobRow.state == RUNNING,
        JobRow.executor == bindparam("of_executor"),
    )
    .values(
        {
            column: bindparam(f"new_{column}")
            for column in (
                "state", "finished_at", "exit_code", "exit_signal", "error_code", "error_detail", "signals",
                "stdout_bytes", "stderr_bytes", "disk_bytes",
            )
        }
    )
    .returning(*ENDED)
)  # fmt: skip


def finish_job(connection: Connection, number: int, executor: str, end: JobEnd) -> bool:
    """End a running job of this executor. False when another has taken it over or ended it."""
    status = end.status or ExitStatus()
    return end_job(
        connection,
        _FINISH,
        {
            "of_number": number,
            "of_executor": executor,
            "new_state": end.state.value,
            "new_finished_at": to_text(end.finished_at),
            "new_exit_code": status.code,
            "new_exit_signal": status.signal,
            "new_error_code": end.error.code.value if end.error else None,
            "new_error_detail": end.error.detail if end.error else None,
            "new_signals": _signals_text(end.signals),
            "new_stdout_bytes": end.stdout_bytes,
            "new_stderr_bytes": end.stderr_bytes,
            "new_disk_bytes": end.disk_bytes,
        },
    )


def record_signals(
    connection: Connection,
    number: int,
    executor: str,
    signals: Sequence[SentSignal],
    *,
    ending: JobState,
    error: JobError | None = None,
) -> None:
    """Write down how a running job is told to end, for whoever looks and for an executor that takes over.

    ``ending`` is the state that it will end in, and ``error`` tells why, where the state does not.
    """
    connection.execute(
        update(JobRow)
        .where(JobRow.number == number, JobRow.state == RUNNING, JobRow.executor == executor)
        .values(
            signals=_signals_text(signals),
            ending=ending.value,
            error_code=error.code.value if error else None,
            error_detail=error.detail if error else None,
        )
    )


def record_holes(connection: Connection, number: int, executor: str, holes: Mapping[Stream, Hole]) -> bool:
    """Write down what is about to be dropped of a running job's streams. False when it is no longer ours."""
    done = connection.execute(
        update(JobRow)
        .where(JobRow.number == number, JobRow.state == RUNNING, JobRow.executor == executor)
        .values(holes=json.dumps(holes, separators=(",", ":")))
    )
    return done.rowcount == 1


def record_step(connection: Connection, number: int, executor: str, spans: Sequence[StepSpan]) -> bool:
    """Write down that a step of a running job has ended well, and when the next begins. False when it is not ours."""
    done = connection.execute(
        update(JobRow)
        .where(JobRow.number == number, JobRow.state == RUNNING, JobRow.executor == executor)
        .values(steps=spans_text(spans))
    )
    return done.rowcount == 1


def requeue_job(connection: Connection, number: int, executor: str) -> JobState | None:
    """Put a claimed job back for which no process was ever made; if it was canceled meanwhile, it has ended with that.

    Returns:
        The state it has now; None when it is no longer ours.
    """
    ours = update(JobRow).where(
        JobRow.number == number, JobRow.state == RUNNING, JobRow.executor == executor, JobRow.steps.is_(None)
    )
    never_started = ours.values(executor=None, started_at=None)
    canceled = never_started.where(JobRow.cancel_at.is_not(None)).values(
        state=JobState.CANCELED.value, finished_at=JobRow.cancel_at
    )
    if end_job(connection, canceled.returning(*ENDED)):
        return JobState.CANCELED
    done = connection.execute(never_started.values(state=QUEUED))
    return JobState.QUEUED if done.rowcount == 1 else None


def take_over_jobs(connection: Connection, executor: str) -> list[Job]:
    """Make this executor the owner of all running jobs of others; return them by number.

    Only the executor that holds the data directory's lock may do this: the
    others are dead then.
    """
    rows = connection.execute(
        update(JobRow)
        .where(JobRow.state == RUNNING, JobRow.executor != executor)
        .values(executor=executor)
        .returning(*COLUMNS)
    ).all()
    return sorted(map(to_job, rows), key=lambda job: job.number)


_CANCEL_REQUESTS = select(
    JobRow.number, JobRow.cancel_by, JobRow.cancel_at, JobRow.cancel_signal, JobRow.cancel_grace
).where(JobRow.state == RUNNING, JobRow.cancel_at.is_not(None))
_SIGNALS = (
    select(SignalRow.id, SignalRow.number, SignalRow.signal, JobRow.state)
    .join(JobRow, JobRow.number == SignalRow.number)
    .order_by(SignalRow.id)
)


class WantedSignal(NamedTuple):
    """A signal that somebody wants a job to get; it is pointless once the job no longer runs."""

    row: int
    number: int
    signal: int
    is_running: bool


def list_cancel_requests(connection: Connection) -> dict[int, CancelRequest]:
    """Return what running jobs should end, by number."""
    return {
        row.number: CancelRequest(
            row.cancel_by, datetime.fromisoformat(row.cancel_at), row.cancel_signal, row.cancel_grace
        )
        for row in connection.execute(_CANCEL_REQUESTS)
    }


def list_signals(connection: Connection) -> list[WantedSignal]:
    """Return the signals to be sent, oldest first."""
    return [
        WantedSignal(row.id, row.number, row.signal, row.state == JobState.RUNNING.value)
        for row in connection.execute(_SIGNALS)
    ]


def remove_signals(connection: Connection, rows: Sequence[int]) -> None:
    """Forget signals that have been sent, or have lost their job."""
    connection.execute(delete(SignalRow).where(SignalRow.id.in_(rows)))
