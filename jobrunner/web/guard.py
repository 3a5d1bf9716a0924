"""What every request has to pass: Host, Origin, token.

Checking ``Host`` keeps a foreign page from reaching the service under a name
of its own that it points here (DNS rebinding); checking ``Origin`` keeps it
from using the service with the user's own browser (CSRF).
"""

import math
import re
import time
from dataclasses import replace
from urllib.parse import urlsplit

from flask import Flask, Request, Response, g, request

from jobrunner.domain.access import Caller
from jobrunner.domain.errors import TooManyFailures, Unauthenticated
from jobrunner.web.auditing import register_auditing, route
from jobrunner.web.errors import problem
from jobrunner.web.peer import asked_hosts, client_address, client_network
from jobrunner.web.services import services

PUBLIC = frozenset({"service.healthz", "service.readyz", "service.openapi"})
"""Endpoints that need no token."""

PROBES = frozenset({"service.healthz", "service.readyz"})
"""Endpoints that may be asked under any name: a load balancer uses an address."""

SIGNED = "events.events"
"""The endpoint whose URL may be signed."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def register_guard(app: Flask) -> None:
    """Have every request of the application checked, those to unknown paths too."""
    settings = services().settings
    bind = {settings.host.lower()} if not settings.unix_socket else set()
    allowed = LOOPBACK | bind | set(settings.allowed_hosts)
    register_auditing(app, PROBES)

    @app.before_request
    def check() -> Response | None:
        endpoint = request.endpoint
        if endpoint not in PROBES and not {_host_name(host) for host in asked_hosts(request)} <= allowed:
            return problem(
                421,
                "misdirected-request",
                "Not the name of this service",
                "the request's Host is not a name of this service; [server] allowed_hosts lists more names",
            )
        if request.method not in _SAFE_METHODS and not _is_same_origin(request):
            return problem(
                403, "foreign-origin", "Foreign origin", "a page of another origin must not change anything here"
            )
        if endpoint not in PUBLIC:
            who = _authenticate(request)
            g.caller = replace(
                who, connection=_connection(request), address=client_address(request), route=route(request)
            )
        return None


def _authenticate(asked: Request) -> Caller:
    """Find out who is asking. A browser's ``EventSource`` sends no header: it may have a signed URL.

    Raises:
        Unauthenticated: nobody that we know.
        TooManyFailures: likewise, and many have been wrong before from there.
    """
    access, failures = services().access, services().failures
    signature = asked.args.get("signature")
    is_signed = asked.endpoint == SIGNED and signature is not None and asked.authorization is None
    secret = "" if is_signed else _secret(asked)
    seconds = failures.waiting_time(client_network(asked), time.monotonic()) if failures else None
    try:
        if signature is not None and is_signed:
            return access.authenticate_stream(signature, (asked.view_args or {})["job_id"])
        return access.authenticate(secret, sparingly=seconds is not None)
    except Unauthenticated as error:
        failures.add(client_network(asked), time.monotonic())
        if seconds is None:
            raise
        words = f"{error}; too many have been wrong that came from this address: wait before the next"
        raise TooManyFailures(words, retry_after=math.ceil(seconds)) from None


def _connection(asked: Request) -> int | None:
    """Return the descriptor of the client's connection, where the server shows it."""
    connection = asked.environ.get("gunicorn.socket")
    return connection.fileno() if connection is not None else None


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets; empty when it is none."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:/?#@\[\]\s]+))(?::\d*)?", host, re.ASCII)
    return (found[1] or found[2]).lower().removesuffix(".") if found else ""


def _is_same_origin(asked: Request) -> bool:
    origin = asked.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc.lower() == asked.headers.get("Host", "").lower()


def _secret(asked: Request) -> str:
    """Return the token of a request: Bearer, or Basic with the token as password."""
    given = asked.authorization
    if given is not None and given.type == "bearer" and given.token:
        return given.token
    if given is not None and given.type == "basic" and given.password:
        return given.password
    raise Unauthenticated("send a token: Authorization: Bearer TOKEN, or Basic with the token as password")
