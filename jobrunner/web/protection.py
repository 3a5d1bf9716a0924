"""What every answer tells browsers and caches: take it for nothing else, run nothing of it, keep nothing, tell nobody.

An answer that says something else of its own keeps that: what jobs write is
put into a sandbox (`web.sending`), a page of ours may allow its own scripts.

There is no ``X-Frame-Options``: ``frame-ancestors`` says the same, and browsers
that know both follow that alone.
"""

from collections.abc import Mapping

from flask import Flask, Response

PROTECTION: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""For what is refused before it gets to the application, too."""

_REVALIDATED = "private, no-cache"
"""Cache-Control of what has an ETag: a browser may keep it, and has to ask whether it is still so."""


def register_protection(app: Flask) -> None:
    """Have every answer of the application protected."""
    app.after_request(_protect)


def _protect(response: Response) -> Response:
    headers = response.headers
    present = {name.lower() for name, _ in headers}
    for name, value in PROTECTION.items():
        if name.lower() not in present:
            headers.add(name, _REVALIDATED if name == "Cache-Control" and "etag" in present else value)
    return response
