"""The document of a job: what HTTP and the command line show of it."""

from datetime import datetime
from typing import Any

from jobrunner.domain.exitstatus import ExitStatus, signal_name
from jobrunner.domain.job import CancelRequest, Job, JobError
from jobrunner.domain.spec import InputKind
from jobrunner.domain.streams import Stream
from jobrunner.service.output import OutputService
from jobrunner.service.submitting import Plan

TEXT_MOST = 1 << 20
"""Most bytes of a stream that a document includes: its tail, if it is longer."""


def render_time(at: datetime | None) -> str | None:
    """Write a time as RFC 3339 in UTC, with microseconds."""
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z") if at is not None else None


def job_path(job: Job) -> str:
    """Return where a job's document is."""
    return f"/v1/jobs/{job.id}"


def render_job(
    job: Job, output: OutputService, *, include_output: bool = False, text_most: int = TEXT_MOST
) -> dict[str, Any]:
    """Make the document of a job.

    Args:
        job: of what.
        output: knows its files.
        include_output: whether to show what the job has written.
        text_most: most bytes of each stream then.
    """
    most = text_most if include_output else 0
    spec, status = job.spec, job.status
    duration = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
    return {
        "id": job.id,
        "number": job.number,
        "name": spec.name,
        "owner": job.owner,
        "labels": spec.labels,
        "api": job.api,
        "state": job.state.value,
        "priority": spec.priority.value,
        "exclusive": spec.exclusive,
        "steps": _render_steps(job, output),
        **_render_status(status),
        "error": _render_error(job.error),
        "created_at": render_time(job.created_at),
        "started_at": render_time(job.started_at),
        "finished_at": render_time(job.finished_at),
        "deadline_at": render_time(job.deadline_at),
        "duration": duration,
        "timeout": spec.timeout,
        "grace": spec.grace,
        "callback_url": spec.callback_url,
        "env_names": sorted(spec.env),
        "stdin": {"bytes": sum(info.size for info in spec.input_info(InputKind.STDIN))},
        "files": [{"name": info.name, "bytes": info.size} for info in spec.input_info(InputKind.FILE)],
        "stdout": _render_stream(job, output, Stream.STDOUT, most),
        "stderr": _render_stream(job, output, Stream.STDERR, most),
        "cancel": _render_cancel(job, job.cancel) if job.cancel else None,
    }


def render_plan(plan: Plan) -> dict[str, Any]:
    """Make the answer to a dry run; ``SOURCE`` and ``cwd`` null stand for places that only a real job has."""
    spec = plan.spec
    steps = [
        {
            "index": index,
            "name": step.name,
            "kind": step.kind.value,
            "argv": step.command_line("SOURCE"),
            "cwd": spec.cwd_of(step),
            "env_names": sorted(step.env),
            "timeout": step.timeout,
            "rule": rule,
        }
        for index, (step, rule) in enumerate(zip(spec.steps, plan.rules, strict=True))
    ]
    return {
        "argv": steps[0]["argv"],
        "cwd": spec.cwd,
        "env_names": sorted(spec.env),
        "timeout": spec.timeout,
        "grace": spec.grace,
        "limits": dict(plan.limits),
        "rule": steps[0]["rule"],
        "steps": steps,
    }


def _render_steps(job: Job, output: OutputService) -> list[dict[str, Any]]:
    return [
        {
            "index": index,
            "name": step.name,
            "kind": step.kind.value,
            "argv": step.command_line(output.source_path(job, index)),
            "cwd": job.spec.cwd_of(step),
            "env_names": sorted(step.env),
            "timeout": step.timeout,
            "state": result.state.value,
            **_render_status(result.status),
            "error": _render_error(result.error),
            "started_at": render_time(result.started_at),
            "finished_at": render_time(result.finished_at),
        }
        for index, (step, result) in enumerate(zip(job.spec.steps, job.step_results(), strict=True))
    ]


def _render_status(status: ExitStatus | None) -> dict[str, Any]:
    return {
        "exit_code": status.code if status else None,
        "signal": signal_name(status.signal) if status and status.signal is not None else None,
    }


def _render_error(error: JobError | None) -> dict[str, str] | None:
    return {"code": error.code.value, "detail": error.detail} if error else None


def _render_stream(job: Job, output: OutputService, stream: Stream, most: int) -> dict[str, Any]:
    size = output.size(job, stream)
    hole = job.holes.get(stream)
    document: dict[str, Any] = {
        "bytes": size,
        "dropped_bytes": hole.size if hole else 0,
        "href": f"{job_path(job)}/{stream.value}",
    }
    if most:
        document["text_offset"], data = output.tail(job, stream, most) if size else (0, b"")
        document["text"] = data.decode(errors="replace")
    return document


def _render_cancel(job: Job, request: CancelRequest) -> dict[str, Any]:
    return {
        "by": request.by,
        "at": render_time(request.at),
        "signals": [{"signal": signal_name(sent.signal), "at": render_time(sent.at)} for sent in job.signals],
        "escalated": len(job.signals) > 1 and job.signals[-1].signal == 9,
    }
