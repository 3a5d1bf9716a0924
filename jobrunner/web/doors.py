"""Which application answers: that of ``/v1``, or that of a dialect."""

import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Doors:
    """WSGI. A dialect is at the root of its own port, and below ``/NAME`` of any other than a dialect's.

    Args:
        main: the application of all else.
        dialects: the others, by name.
        ports: the names of those that have a port of their own.
    """

    def __init__(
        self, main: "WSGIApplication", dialects: "Mapping[str, WSGIApplication]", ports: Mapping[int, str]
    ) -> None:
        self._main = main
        self._dialects = dialects
        self._ports = {str(port): name for port, name in ports.items()}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Pass the request on."""
        if not _is_unix(environ) and (name := self._ports.get(environ["SERVER_PORT"])) is not None:
            return self._dialects[name](environ, start_response)
        _, _, path = environ["PATH_INFO"].partition("/")
        first, slash, rest = path.partition("/")
        dialect = self._dialects.get(first)
        if dialect is None:
            return self._main(environ, start_response)
        environ["SCRIPT_NAME"] += f"/{first}"
        environ["PATH_INFO"] = slash + rest
        return dialect(environ, start_response)


def _is_unix(environ: "WSGIEnvironment") -> bool:
    """Tell whether a request has come by a unix socket: gunicorn takes its port from ``Host`` then, so from anybody."""
    connection = environ.get("gunicorn.socket")
    return connection is not None and connection.family == socket.AF_UNIX
