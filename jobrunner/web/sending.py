"""Sends files: whole or in part, by the kernel where the server can do that.

What jobs write comes from strangers: whatever a file says it is, a browser
must not run it as a page of ours.
"""

import errno
import io
import os
from typing import BinaryIO, cast
from urllib.parse import quote

from flask import Response, request
from werkzeug.datastructures import Range
from werkzeug.exceptions import PreconditionFailed, RequestedRangeNotSatisfiable
from werkzeug.http import parse_range_header
from werkzeug.wsgi import wrap_file

_BLOCK = 1 << 16
"""Bytes that are read at a time where a server has no ``sendfile``."""

_ATTR_CHARS = "!#$&+-.^_`|~"
"""What may stand unescaped in ``filename*`` besides letters and digits (RFC 8187, 3.2.1)."""


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
                own files. The connection is useless then, since the client takes what follows for the rest.
        """
        if self.closed:
            return
        missing = self._end - self._at
        self._file.close()
        super().close()
        if missing > 0:
            raise ConnectionResetError(errno.ECONNRESET, f"{missing} bytes are missing in the answer")


def send_file(
    file: BinaryIO,
    size: int,
    *,
    content_type: str,
    download_name: str | None = None,
    etag: str | None = None,
    tail: int | None = None,
) -> Response:
    """Answer the current request with a file, or with the part that it asks for.

    Args:
        file: unbuffered; it is closed when it has been sent, or at once if nothing of it is.
        size: bytes to send of it from its begin; it may have more by now.
        content_type: as the header has it.
        download_name: have a browser save it under this name; None: the browser decides.
        etag: changes whenever the content does (a strong one, without quotes); None: there is none at present.
        tail: only so many bytes from the end, whatever ``Range`` says.

    Raises:
        RequestedRangeNotSatisfiable: the range begins behind the end.
        PreconditionFailed: the client wants another version of it.
    """
    try:
        if etag is not None and (unchanged := _unchanged(etag)):
            file.close()
            return unchanged
        if tail is not None:
            response = send_part(file, max(size - tail, 0), size, content_type=content_type)
        elif (part := asked_part(size, etag)) is not None:
            response = send_part(file, *part, content_type=content_type, of=size)
        else:
            response = send_part(file, 0, size, content_type=content_type)
    except BaseException:
        file.close()
        raise
    if etag is not None:
        response.set_etag(etag)
    if download_name is not None:
        response.headers["Content-Disposition"] = disposition(download_name)
    return response


def send_part(file: BinaryIO, start: int, stop: int, *, content_type: str, of: int | None = None) -> Response:
    """Answer with the bytes of a file from ``start`` to before ``stop``.

    Args:
        file: unbuffered; it is closed when they have been sent.
        start: where they begin.
        stop: where they end.
        content_type: as the header has it.
        of: they are the range of a whole of this length, and the client has asked for it: 206.
    """
    response = Response(status=200 if of is None else 206, content_type=content_type)
    if request.method == "HEAD":
        file.close()
    else:
        body = cast("BinaryIO", FileSlice(file, start, stop - start))
        response.response = wrap_file(request.environ, body, _BLOCK)
        response.direct_passthrough = True
    response.content_length = stop - start
    if of is not None:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{of}"
    response.headers["Accept-Ranges"] = "bytes"
    return harmless(response)


def harmless(response: Response) -> Response:
    """Mark bytes as a job's: no browser may take them for a page of ours, and no page of others may load them."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'; frame-ancestors 'none'"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    return response


def asked_part(size: int, etag: str | None = None) -> tuple[int, int] | None:
    """Return begin and end of the part that the current request asks for; None: the whole.

    Args:
        size: of the whole.
        etag: of the whole, if it has one, without quotes.

    Raises:
        RequestedRangeNotSatisfiable: the range begins behind the end.
    """
    # Ranges are defined for GET alone (RFC 9110, 14.2).
    asked = parse_range_header(request.headers.get("Range")) if request.method == "GET" else None
    # More than one range may be answered with the whole.
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return None
    condition = request.headers.get("If-Range")
    # A date never holds: a job can give its files any (RFC 9110, 13.1.5).
    if condition is not None and (etag is None or condition.strip() != f'"{etag}"'):
        return None
    begin, end = asked.ranges[0]
    begin = max(begin, -size)  # a suffix longer than the whole is the whole
    found = Range("bytes", [(begin, end)]).range_for_length(size)
    if found is None:
        raise RequestedRangeNotSatisfiable(size, description=f"there are {size} bytes")
    return found


def _unchanged(etag: str) -> Response | None:
    """Return a 304 if the client has this version already.

    Raises:
        PreconditionFailed: it wants another one.
    """
    if request.if_match and not request.if_match.contains(etag):
        raise PreconditionFailed("the file is another by now")
    if not request.if_none_match.contains_weak(etag):
        return None
    response = Response(status=304)
    response.set_etag(etag)
    del response.headers["Content-Type"]
    return response


def disposition(name: str) -> str:
    """Return a ``Content-Disposition`` that has a browser save under this name (RFC 6266).

    What can't stand in it, or would steer a terminal, becomes ``_``.
    """
    name = "".join(character if character.isprintable() else "_" for character in name)
    # Clients disagree about escapes in `filename`: it gets none.
    simple = "".join(character if character.isascii() and character not in '"\\%' else "_" for character in name)
    if simple == name:
        return f'attachment; filename="{name}"'
    return f"attachment; filename=\"{simple}\"; filename*=UTF-8''{quote(name, safe=_ATTR_CHARS)}"
