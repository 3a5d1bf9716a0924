"""The document of a job as QMD shows it, and sends it to who is called back."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from jobrunner.domain.callback import Message
from jobrunner.domain.job import Job
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.service.output import OutputService
from jobrunner.web.dialects import go
from jobrunner.web.dialects.starting import has_run
from jobrunner.web.dialects.written import gather, write_object

RESULT = "qmd.out"
"""The file in the scratch directory that a script leaves its output in."""


def write_job(job: Job, output: OutputService) -> Iterator[str]:
    """Write the document of a job: of one that has not ended as it is when it is queued."""
    return write_object(_render_job(job, output), go.to_json)


def _render_job(job: Job, output: OutputService) -> dict[str, Any]:
    (step,) = job.spec.steps
    path, *arguments = step.argv
    document: dict[str, Any] = {
        "id": job.number,
        "script": posixpath.basename(path),
        "args": arguments,
        "files": {name: content.decode() for name, content in sorted(output.files(job).items())},
        "callback_url": job.spec.callback_url or "",
    }
    if job.state.is_ended:
        document |= _end(job, path, output)
    else:
        document |= {"status": "QUEUED", "start_time": go.to_rfc3339(None), "end_time": go.to_rfc3339(None)}
    optional = {"args", "files", "callback_url", "duration", "output", "exec_log", "error"}
    return {name: value for name, value in document.items() if value or name not in optional}


def _end(job: Job, path: str, output: OutputService) -> dict[str, Any]:
    began, ended = (job.started_at, job.finished_at) if has_run(job) else (None, None)
    is_good = job.state is JobState.SUCCEEDED
    return {
        "status": "OK" if is_good else "ERR",
        "start_time": go.to_rfc3339(began),
        "end_time": go.to_rfc3339(ended),
        "duration": f"{(ended - began).total_seconds() if began and ended else 0:.6f}",
        "output": go.to_long_text(output.result(job)),
        "exec_log": go.to_long_text(output.whole(job, Stream.STDOUT)),
        # One that was told to end may have ended well.
        "error": job.spec.doom or go.end_text(job, path) or ("" if is_good else "signal: terminated"),
    }


def render_message(job: Job, output: OutputService) -> Message:
    """Make what is sent about a job."""
    return Message(gather(write_job(job, output)))


_PORTS = {"http": "80", "https": "443"}


def normalize_url(url: str) -> str:
    """Write a URL as QMD does: scheme and host in lower case, no default port, a clean path, a sorted query.

    Raises:
        ValueError: it can't be read.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url):
        url = f"http://{url.removeprefix('//')}"
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    found = re.fullmatch(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", rest, re.DOTALL)
    if found is None or not found[1]:
        raise ValueError(f"parse {go.quote(url)}: empty host")
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError(f"parse {go.quote(url)}: invalid character in URL")
    user, at, host = found[1].rpartition("@")
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    if port and not re.fullmatch("[0-9]+", port):
        raise ValueError(f"parse {go.quote(url)}: invalid port {go.quote(':' + port)} after host")
    suffix = f":{port}" if port and port != _PORTS.get(scheme) else ""
    text = f"{scheme}://{user}{at}{name.lower()}{suffix}{_clean(found[2])}"
    if found[3]:
        # Those of one key stay in their order, which may mean something.
        text += "?" + "&".join(sorted(filter(None, found[3].split("&")), key=lambda pair: pair.partition("=")[0]))
    if found[4]:
        text += f"#{found[4]}"
    return quote(text, safe="".join(map(chr, range(0x21, 0x7F))))


def _clean(path: str) -> str:
    """Remove duplicate slashes and dot segments (RFC 3986, 5.2.4)."""
    segments: list[str] = []
    *before, last = re.sub("/+", "/", path).split("/")
    for segment in before:
        if segment == "..":
            del segments[max(len(segments) - 1, 1) :]
        elif segment != ".":
            segments.append(segment)
    if last == "..":
        del segments[max(len(segments) - 1, 1) :]
    return "/".join([*segments, "" if last in {".", ".."} else last])
