"""The document of a job as http-runner shows it, and sends it to who is called back."""

import errno
import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from jobrunner.domain.callback import Message
from jobrunner.domain.job import Job
from jobrunner.domain.streams import Stream
from jobrunner.service.output import OutputService
from jobrunner.web.dialects.starting import find_errno
from jobrunner.web.dialects.written import LongText, gather, write_object

WHITE_SPACE = "\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
"""What ``\\s`` means in JavaScript, for a set of a regular expression."""


def split_arguments(text: str) -> tuple[str, ...]:
    """Take arguments apart: each run of white space becomes one space, and each space ends an argument."""
    return tuple(re.sub(f"[{WHITE_SPACE}]+", " ", text).split(" "))


def to_json(document: Any) -> str:
    """Write a document as ``JSON.stringify`` does."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def render_id(job_id: str) -> str:
    """Return what http-runner calls a job: the 32 digits of its uuid, and the first 8 of these once more."""
    digits = job_id.replace("-", "")
    return digits + digits[:8]


def parse_id(text: str) -> str | None:
    """Return the uuid of the job that is called so; None: none is."""
    if not re.fullmatch(r"[0-9a-f]{40}", text) or text[32:] != text[:8]:
        return None
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:32]))


def write_job(job: Job, output: OutputService) -> Iterator[str]:
    """Write the document of a job."""
    return write_object(_render_job(job, output), to_json)


def _render_job(job: Job, output: OutputService) -> dict[str, Any]:
    (step,) = job.spec.steps
    command, *arguments = step.argv
    document: dict[str, Any] = {
        "stderr": LongText(output.whole(job, Stream.STDERR), "replace"),
        "stdout": LongText(output.whole(job, Stream.STDOUT), "replace"),
        "id": render_id(job.id),
        "code": job.status.code if job.status else None,
        "command": command,
        "arguments": arguments,
    }
    if job.spec.callback_url is not None:
        document["callback"] = job.spec.callback_url
    if job.state.is_ended:
        number = find_errno(job.error) if job.error is not None and job.status is None else None
        if number is not None:
            document["code"] = -number
        document["err"] = number and {
            "errno": -number,
            "code": errno.errorcode[number],
            "syscall": f"spawn {command}",
            "path": command,
            "spawnargs": arguments,
        }
    return document


def render_message(job: Job, output: OutputService, now: datetime) -> Message:
    """Make what is sent about a job."""
    headers = {"Accept": "application/json", "X-Notify-Timestamp": str(int(now.timestamp() * 1000))}
    return Message(gather(write_job(job, output)), headers)
