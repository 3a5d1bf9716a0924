"""What every request has to pass: Host, Origin, token.

Checking ``Host`` keeps a foreign page from reaching the service under a name
of its own that it points here (DNS rebinding); checking ``Origin`` keeps it
from using the service with the user's own browser (CSRF).
"""

import math
import re
import time
from collections.abc import Callable, Set
from dataclasses import replace
from functools import lru_cache
from urllib.parse import urlsplit

from flask import Flask, Request, Response, g
from werkzeug.datastructures import Authorization

from jobrunner.config import Server
from jobrunner.domain.access import Caller
from jobrunner.domain.errors import TooManyFailures, Unauthenticated
from jobrunner.web.auditing import register_auditing, route
from jobrunner.web.errors import problem
from jobrunner.web.peer import asked_hosts, client_address, client_network
from jobrunner.web.services import current_request, services

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
    allowed = names_of(services().settings)
    register_auditing(app, PROBES)

    @app.before_request
    def check() -> Response | None:
        asked = current_request()
        endpoint = asked.endpoint
        if endpoint not in PROBES and not is_known_host(asked, allowed):
            return problem(
                421,
                "misdirected-request",
                "Not the name of this service",
                "the request's Host is not a name of this service; [server] allowed_hosts lists more names",
            )
        if is_foreign_change(asked):
            return problem(
                403, "foreign-origin", "Foreign origin", "a page of another origin must not change anything here"
            )
        if endpoint not in PUBLIC:
            g.caller = identify(asked, _authentication(asked))
        return None


def _authentication(asked: Request) -> Callable[[bool], Caller]:
    """Return what finds out who is asking. A browser's ``EventSource`` sends no header: it may have a signed URL.

    Raises:
        Unauthenticated: the request does not say.
    """
    access = services().access
    signature = asked.args.get("signature") if asked.endpoint == SIGNED else None
    if signature is not None and _credentials(asked) is None:
        return lambda _: access.authenticate_stream(signature, (asked.view_args or {})["job_id"])
    secret = secret_of(asked)
    return lambda sparingly: access.authenticate(secret, sparingly=sparingly)


def _credentials(asked: Request) -> Authorization | None:
    """Return what the request has for a token; None: nothing that can be read."""
    try:
        return asked.authorization
    except ValueError:  # Basic with what is not even ASCII
        return None


def identify(asked: Request, authenticate: Callable[[bool], Caller]) -> Caller:
    """Find out who is asking, from where, and for what.

    Args:
        asked: the request.
        authenticate: finds out who, with as little work as possible if it is given true.

    Raises:
        Unauthenticated: nobody that we know.
        TooManyFailures: likewise, and many have been wrong before from there.
    """
    failures = services().failures
    seconds = failures.waiting_time(client_network(asked), time.monotonic()) if failures else None
    try:
        who = authenticate(seconds is not None)
    except Unauthenticated as error:
        failures.add(client_network(asked), time.monotonic())
        if seconds is None:
            raise
        words = f"{error}; too many have been wrong that came from this address: wait before the next"
        raise TooManyFailures(words, retry_after=math.ceil(seconds)) from None
    connection = asked.environ.get("gunicorn.socket")
    return replace(
        who,
        connection=connection.fileno() if connection is not None else None,
        address=client_address(asked),
        route=route(asked),
    )


def names_of(settings: Server) -> frozenset[str]:
    """Return the names under which the service may be asked."""
    bind = {settings.host.lower()} if not settings.unix_socket else set()
    return LOOPBACK | bind | set(settings.allowed_hosts)


def is_known_host(asked: Request, allowed: Set[str]) -> bool:
    """Tell whether a request has asked for one of these names."""
    return {_host_name(host) for host in asked_hosts(asked)} <= allowed


def is_foreign_change(asked: Request) -> bool:
    """Tell whether a request may change something, and a page of another origin has sent it."""
    return asked.method not in _SAFE_METHODS and not _is_same_origin(asked)


@lru_cache(maxsize=64)
def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets; empty when it is none."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:/?#@\[\]\s]+))(?::\d*)?", host, re.ASCII)
    return (found[1] or found[2]).lower().removesuffix(".") if found else ""


def _is_same_origin(asked: Request) -> bool:
    origin = asked.headers.get("Origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == asked.headers.get("Host", "").lower()
    except ValueError:  # "http://[" is no page of ours
        return False


def secret_of(asked: Request) -> str:
    """Return the token of a request: Bearer, or Basic with the token as password.

    Raises:
        Unauthenticated: it has none.
    """
    given = _credentials(asked)
    if given is not None and given.type == "bearer" and given.token:
        return given.token
    if given is not None and given.type == "basic" and given.password:
        return given.password
    raise Unauthenticated("send a token: Authorization: Bearer TOKEN, or Basic with the token as password")
