"""Answers to what never gets as far as the application: what is no HTTP, too long, or too slow."""

from werkzeug.http import HTTP_STATUS_CODES

from jobrunner.web.errors import HTTP_NAMES, make_document
from jobrunner.web.protection import PROTECTION


def render_refusal(status: int, detail: str) -> bytes:
    """Return the bytes of a problem, after which the connection is closed.

    Args:
        status: the HTTP status.
        detail: about this one.
    """
    title = HTTP_STATUS_CODES[status]
    body = make_document(status, HTTP_NAMES.get(status, "error"), title, detail).encode()
    lines = [
        f"HTTP/1.1 {status} {title}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in PROTECTION.items()),
    ]
    if status == 503:
        lines.append("Retry-After: 1")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
