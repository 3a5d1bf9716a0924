"""What a row of the job table means."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import CancelRequest, ErrorCode, Job, JobError, SentSignal, StepSpan
from jobrunner.domain.spec import JobSpec
from jobrunner.domain.states import JobState, Priority
from jobrunner.domain.streams import Hole, Stream
from jobrunner.store.models import JobRow

COLUMNS = (
    JobRow.number, JobRow.id, JobRow.owner, JobRow.api, JobRow.name, JobRow.priority, JobRow.spec, JobRow.state,
    JobRow.executor, JobRow.created_at, JobRow.started_at, JobRow.finished_at, JobRow.exit_code, JobRow.exit_signal,
    JobRow.error_code, JobRow.error_detail, JobRow.cancel_by, JobRow.cancel_at, JobRow.cancel_signal,
    JobRow.cancel_grace, JobRow.signals, JobRow.stdout_bytes, JobRow.stderr_bytes, JobRow.holes,
    JobRow.ending, JobRow.callback_url, JobRow.steps, JobRow.dialect_number,
)  # fmt: skip


def to_text(at: datetime) -> str:
    """Write a time as the database keeps it: always the same width, so that text sorts as time does."""
    try:
        at = at.astimezone(UTC)
    except OverflowError:  # before the year 1 or after 9999 in UTC
        at = datetime.min.replace(tzinfo=UTC) if at.year == 1 else datetime.max.replace(tzinfo=UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_time(text: str | None) -> datetime | None:
    """Read a time as `to_text` writes it; None stays None."""
    return datetime.fromisoformat(text) if text is not None else None


def to_job(row: Any) -> Job:
    """Turn a row of `COLUMNS` into the domain's word."""
    cancel = None
    if row.cancel_at is not None:
        cancel = CancelRequest(
            row.cancel_by, datetime.fromisoformat(row.cancel_at), row.cancel_signal, row.cancel_grace
        )
    spec = JobSpec.from_json(
        json.loads(row.spec), name=row.name, priority=Priority.from_rank(row.priority), callback_url=row.callback_url
    )
    has_status = row.exit_code is not None or row.exit_signal is not None
    return Job(
        number=row.number,
        id=row.id,
        owner=row.owner,
        api=row.api,
        spec=spec,
        state=JobState(row.state),
        created_at=datetime.fromisoformat(row.created_at),
        started_at=to_time(row.started_at),
        finished_at=to_time(row.finished_at),
        status=ExitStatus(row.exit_code, row.exit_signal) if has_status else None,
        error=JobError(ErrorCode(row.error_code), row.error_detail) if row.error_code is not None else None,
        cancel=cancel,
        signals=tuple(SentSignal.from_json(sent) for sent in json.loads(row.signals)),
        executor=row.executor,
        stdout_bytes=row.stdout_bytes,
        stderr_bytes=row.stderr_bytes,
        holes=to_holes(row.holes),
        ending=JobState(row.ending) if row.ending is not None else None,
        spans=_to_spans(row.steps),
        dialect_number=row.dialect_number,
    )


def spans_text(spans: Sequence[StepSpan]) -> str:
    """Write when steps have run, each as its begin, and its end if it has one."""
    times = [[at for at in (span.started_at, span.finished_at) if at is not None] for span in spans]
    return json.dumps([[to_text(at) for at in pair] for pair in times], separators=(",", ":"))


def _to_spans(text: str | None) -> tuple[StepSpan, ...]:
    if text is None:
        return ()
    return tuple(StepSpan(*map(datetime.fromisoformat, times)) for times in json.loads(text))


def to_holes(text: str) -> dict[Stream, Hole]:
    """Read what is no longer kept of the streams."""
    return {Stream(stream): Hole(*bounds) for stream, bounds in json.loads(text).items()} if text != "{}" else {}
