"""``/v1/jobs/ID/stdout`` and ``/stderr``: what a job wrote, byte for byte."""

import errno
import io
import os
from typing import BinaryIO, cast

from flask import Response, request
from werkzeug.datastructures import Range
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import parse_range_header
from werkzeug.wsgi import wrap_file

from jobrunner.domain.errors import OutputNotFound
from jobrunner.domain.streams import Stream
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import ProblemDocument
from jobrunner.web.api.schema import OutputQuery, StreamPath
from jobrunner.web.services import caller, services

bp = ApiBlueprint("output", __name__, url_prefix="/v1/jobs", abp_responses={"default": ProblemDocument})


class FileSlice(io.RawIOBase):
    """A part of an open file, which it owns.

    It has a descriptor that stands at the part's begin, so that a server with
    ``sendfile`` leaves the bytes to the kernel; any other server reads them.
    """

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        file.seek(start)
        self._file = file
        self._end = start + length
        self._at = start  # by what we were told: a server puts the descriptor itself back to the begin

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._file.fileno()

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read on, but not beyond the part's end."""
        left = self._end - self._at
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move within the file: a server that has sent it by the kernel says so."""
        self._at = self._file.seek(offset, whence)
        return self._at

    def close(self) -> None:
        """Close the file.

        Raises:
            ConnectionResetError: not all of it was sent, though its length was promised: a job may shorten its
                own output. The connection is useless then, since the client takes what follows for the rest.
        """
        if self.closed:
            return
        missing = self._end - self._at
        self._file.close()
        super().close()
        if missing > 0:
            raise ConnectionResetError(errno.ECONNRESET, f"{missing} bytes are missing in the answer")


@bp.get("/<job_id>/<any(stdout,stderr):stream>")
def download(path: StreamPath, query: OutputQuery) -> Response:
    """Return what the job has written so far: `text/plain`, with `Range`, byte for byte."""
    if path.stream not in set(Stream):
        raise OutputNotFound("a job has stdout and stderr")
    stream = Stream(path.stream)
    job = services().jobs.get(path.job_id, caller())
    size = services().jobs.output_bytes(job, stream)
    file = services().jobs.open_output(job, stream)
    try:
        size = min(size, os.fstat(file.fileno()).st_size)
        start, stop, status = _part(size, query.tail)
        response = Response(status=status, content_type="text/plain; charset=utf-8")
        if request.method != "HEAD":
            response.response = wrap_file(
                request.environ, cast("BinaryIO", FileSlice(file, start, stop - start)), 1 << 16
            )
            response.direct_passthrough = True
        else:
            file.close()
    except BaseException:
        file.close()
        raise
    response.content_length = stop - start
    if status == 206:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response.headers["Accept-Ranges"] = "bytes"
    # The bytes are the job's: no browser may take them for a page of ours.
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-cache"
    if query.download:
        response.headers["Content-Disposition"] = f'attachment; filename="job-{job.number}.{stream.value}.txt"'
    return response


def _part(size: int, tail: int | None) -> tuple[int, int, int]:
    """Return begin and end of what was asked for, and the status.

    Raises:
        RequestedRangeNotSatisfiable: the range begins behind the end.
    """
    if tail is not None:
        return max(size - tail, 0), size, 200
    ranges = parse_range_header(request.headers.get("Range"))
    # More than one range may be answered with the whole (RFC 9110, 14.2).
    if ranges is None or ranges.units != "bytes" or len(ranges.ranges) != 1:
        return 0, size, 200
    begin, _ = ranges.ranges[0]
    if begin is not None and begin < -size:  # a suffix longer than the whole is the whole
        begin = -size
    found = Range("bytes", [(begin, ranges.ranges[0][1])]).range_for_length(size)
    if found is None:
        raise RequestedRangeNotSatisfiable(size, description=f"the stream has {size} bytes so far")
    return found[0], found[1], 206
