"""The rows of jobs as their executor reads and writes them: claimed, told to end, ended, taken over.

Every function takes a connection; its caller began the transaction. What is
written of a running job names its executor: it is written only as long as the
job is still that one's.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, select, update

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import CancelRequest, Job, JobEnd, JobError, SentSignal, StepSpan
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Hole, Stream
from jobrunner.store.callbacks import ENDED, end_job
from jobrunner.store.models import QUEUED, RUNNING, JobRow, SignalRow
from jobrunner.store.prepared import Prepared
from jobrunner.store.rows import COLUMNS, spans_text, to_job, to_text

_BEST_QUEUED = (
    select(JobRow.number)
    .where(JobRow.state == QUEUED)
    .order_by(JobRow.priority, JobRow.number)
    .limit(bindparam("limit"))
)
_CLAIM = Prepared(
    update(JobRow)
    .where(JobRow.number.in_(_BEST_QUEUED.scalar_subquery()), JobRow.state == QUEUED)
    .values(state=RUNNING, executor=bindparam("claimed_by"), started_at=bindparam("now"))
    .returning(*COLUMNS)
)


def claim_jobs(connection: Connection, executor: str, limit: int, now: datetime) -> list[Job]:
    """Take up to ``limit`` jobs from the queue: by priority, then by number."""
    rows = _CLAIM.all(connection, {"claimed_by": executor, "now": to_text(now), "limit": limit})
    # RETURNING has no order of its own.
    return sorted(map(to_job, rows), key=lambda job: (job.spec.priority.rank, job.number))


_FINISH = Prepared(
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


def _signals_text(signals: Sequence[SentSignal]) -> str:
    return json.dumps([sent.to_json() for sent in signals], separators=(",", ":"))
