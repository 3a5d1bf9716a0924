"""Answers to what never gets as far as the application: what is no HTTP, too long, or too slow."""

from collections.abc import Callable, Iterable, Mapping

from flask import Response
from werkzeug.http import HTTP_STATUS_CODES

from jobrunner.web.errors import HTTP_NAMES, make_document
from jobrunner.web.protection import PROTECTION

EXTENSION = "jobrunner.refuser"
"""Where an application has its `Refuser`."""


class Refuser:
    """Makes these answers: problems, or what a dialect says at a port of its own.

    Args:
        dialects: make an answer of status and words, by port.
    """

    def __init__(self, dialects: Mapping[int, Callable[[int, str], Response]]) -> None:
        self._dialects = dialects

    def render(self, port: int | None, status: int, detail: str) -> bytes:
        """Return the bytes of an answer, after which the connection is closed.

        Args:
            port: that the client has connected to; None: it has none.
            status: the HTTP status.
            detail: about this one.
        """
        make = self._dialects.get(port) if port is not None else None
        if make is not None:
            response = make(status, detail)
            return _to_bytes(response.status, response.headers.items(), response.get_data())
        title = HTTP_STATUS_CODES[status]
        headers = {"Content-Type": "application/problem+json", **PROTECTION}
        if status == 503:
            headers["Retry-After"] = "1"
        body = make_document(status, HTTP_NAMES.get(status, "error"), title, detail).encode()
        return _to_bytes(f"{status} {title}", headers.items(), body)


def _to_bytes(status: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers if name.lower() != "content-length"),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
