"""``/v1/jobs/ID/stdout`` and ``/stderr``: what a job wrote, byte for byte, or writes as it comes."""

import os

from flask import Response
from werkzeug.exceptions import RequestedRangeNotSatisfiable

from jobrunner.domain.errors import InvalidRequest, OutputNotFound
from jobrunner.domain.job import Job
from jobrunner.domain.streams import Hole, Stream
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import ProblemDocument
from jobrunner.web.api.schema import OutputQuery, StreamPath
from jobrunner.web.sending import asked_part, disposition, harmless, send_file
from jobrunner.web.services import caller, services
from jobrunner.web.streaming import bytes_of, finish, send_stream

bp = ApiBlueprint("output", __name__, url_prefix="/v1/jobs", abp_responses={"default": ProblemDocument})

_TYPE = "text/plain; charset=utf-8"


@bp.get("/<job_id>/<any(stdout,stderr):stream>")
def download(path: StreamPath, query: OutputQuery) -> Response:
    """Return what the job has written so far: `text/plain`, with `Range`, byte for byte.

    With `follow`, from `offset` on: what is there and what comes, until the job has ended.
    """
    if path.stream not in set(Stream):
        raise OutputNotFound("a job has stdout and stderr")
    stream = Stream(path.stream)
    if query.offset is not None and not query.follow:
        raise InvalidRequest.at("?offset", "is for follow; send Range: bytes=OFFSET- for what is there by now")
    if query.offset is not None and query.tail is not None:
        raise InvalidRequest.at("?tail", "can't be given together with offset")
    job = services().jobs.get(path.job_id, caller())
    response = _follow(job, stream, query) if query.follow else _send(job, stream, query.tail)
    if query.download:
        response.headers["Content-Disposition"] = disposition(f"job-{job.number}.{stream}.txt")
    return response


def _follow(job: Job, stream: Stream, query: OutputQuery) -> Response:
    output = services().output
    size = output.size(job, stream)
    offset = query.offset or 0
    if query.tail is not None:
        offset = _begin_of_tail(size, job.holes.get(stream), query.tail)
    if job.state.is_ended and offset > size:
        raise RequestedRangeNotSatisfiable(size, description=f"the stream has ended with {size} bytes")
    return harmless(send_stream(job, lambda listener: bytes_of(output.follow(job, {stream: offset}, listener)), _TYPE))


def _send(job: Job, stream: Stream, tail: int | None) -> Response:
    output = services().output
    hole = job.holes.get(stream)
    size = output.size(job, stream)
    etag = f"{job.id}.{stream}.{size}" if job.state.is_ended else None
    if job.state.is_ended and hole is None:
        file = output.open(job, stream)
        size = min(size, os.fstat(file.fileno()).st_size)
        return send_file(file, size, content_type=_TYPE, etag=etag, tail=tail)
    # Not by the kernel: while the job runs, more may be dropped.
    start, stop, status = 0, size, 200
    if tail is not None:
        start = _begin_of_tail(size, hole, tail)
    elif (part := asked_part(size, etag)) is not None:
        start, stop = _kept_part(*part, hole, size)
        status = 206
    response = harmless(Response(status=status, content_type=_TYPE))
    passes = hole is not None and start < hole.stop and stop > hole.start
    if hole is not None and passes:
        response.headers["X-Dropped-Range"] = f"{hole.start}-{hole.stop - 1}"
    else:
        response.content_length = stop - start
    if status == 206:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response.headers["Accept-Ranges"] = "bytes"
    if etag is not None:
        response.set_etag(etag)
    response.response = finish(bytes_of(output.read(job, stream, start, stop), may_drop=passes))
    return response


def _begin_of_tail(size: int, hole: Hole | None, tail: int) -> int:
    """Return where the last so many of the bytes begin that are kept."""
    if hole is None or tail <= size - hole.stop:
        return max(size - tail, 0)
    return max(hole.start - (tail - (size - hole.stop)), 0)


def _kept_part(start: int, stop: int, hole: Hole | None, size: int) -> tuple[int, int]:
    """Cut a range of so long a stream at a hole.

    Raises:
        RequestedRangeNotSatisfiable: nothing of it is kept.
    """
    if hole is None or start >= hole.stop or stop <= hole.start:
        return start, stop
    if start < hole.start:
        return start, hole.start
    if stop <= hole.stop:
        raise RequestedRangeNotSatisfiable(
            size, description=f"bytes {hole.start} to {hole.stop - 1} are no longer kept"
        )
    return hole.stop, stop
