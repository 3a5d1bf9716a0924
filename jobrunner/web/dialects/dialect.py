"""What a dialect is: a blueprint that translates, and how it refuses.

Each dialect has an application of its own, so that whatever it is asked is
answered in its own form, unknown paths too. Who asks, and what they may do, is
decided for it as it is for ``/v1``.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum, auto
from pathlib import Path
from typing import TypeVar, cast

from flask import Blueprint, Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES

from jobrunner.config_dialects import DialectSettings
from jobrunner.domain import errors
from jobrunner.domain.access import Caller
from jobrunner.domain.callback import ID_HEADER
from jobrunner.service.dialects import DialectService
from jobrunner.web.auditing import note_refusal
from jobrunner.web.errors import status_of, understand_os_error
from jobrunner.web.guard import identify, is_foreign_change, is_known_host, names_of, secret_of
from jobrunner.web.peer import client_address, connected_address, has_passed_proxy, trust_proxies
from jobrunner.web.protection import register_protection
from jobrunner.web.services import EXTENSION, Services, services

logger = logging.getLogger("jobrunner.web")

S = TypeVar("S", bound=DialectSettings)

_HERE = "jobrunner.dialect"
_UNREAD = "jobrunner.unread"


class Why(StrEnum):
    """Why a request is refused."""

    UNAUTHORIZED = auto()
    """Nobody that we know."""

    FORBIDDEN = auto()
    """Policy, or the token, does not allow it."""

    INVALID = auto()
    """It can't be done as written."""

    NO_JOB = auto()
    """There is no such job, or it is another's."""

    NO_ROUTE = auto()
    """The dialect has no such path, or not with this method."""

    TOO_LARGE = auto()
    FOREIGN = auto()
    """It has asked for another host, or comes from a page of one."""

    CONFLICT = auto()
    """Right in itself, but not in this state."""

    UNREAD = auto()
    """It is no request that could be looked at: no HTTP, too long, or too slow."""

    BUSY = auto()
    """The queue is full, the service is drained, too many wait."""

    BROKEN = auto()
    """Something is wrong with us; the log tells what."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not done, for a dialect to say in its own form.

    Attributes:
        status: what ``/v1`` would answer.
        text: one sentence for people.
        retry_after: seconds after which another try makes sense; None: it makes none.
    """

    why: Why
    status: int
    text: str
    retry_after: int | None = None


@dataclass(frozen=True)
class Dialect:
    """A dialect, as its module describes it.

    Attributes:
        name: of its section, of its path, and of the API (`Job.api`) that its jobs come through.
        blueprint: its routes.
        refuse: says in its form that something is not done.
        authenticate: finds out who asks (raises `Unauthenticated`), if not by a token as ``/v1`` takes them.
        is_public: tells whether the current request needs no token.
        has_head: HEAD is taken wherever GET is.
    """

    name: str
    blueprint: Blueprint
    refuse: Callable[[Refusal], Response]
    authenticate: Callable[[], Caller] | None = None
    is_public: Callable[[], bool] = lambda: False
    has_head: bool = True


@dataclass(frozen=True)
class Here:
    """What the application of a dialect works with besides `services()`; its `jobs` are those of the dialect.

    Attributes:
        dialect: its jobs as a whole.
        data_dir: the data directory.
        is_draining: tells whether nothing new is taken.
        work_dir: where relative paths of clients begin.
        stop: ends the service, with exit code 1; None: there is nobody to do that.
        began_at: when it was made, by the monotonic clock.
    """

    name: str
    settings: DialectSettings
    services: Services
    dialect: DialectService
    data_dir: Path
    is_draining: Callable[[], bool]
    work_dir: Path
    stop: Callable[[], None] | None = None
    began_at: float = field(default_factory=time.monotonic)


def here() -> Here:
    """Return what the dialect of the current request works with."""
    return cast("Here", current_app.extensions[_HERE])


def make_dialect_app(dialect: Dialect, parts: Here) -> Flask:
    """Make the application of a dialect."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = parts.services.settings.max_body_bytes
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.extensions.update({EXTENSION: parts.services, _HERE: parts})
    app.url_map.strict_slashes = False
    # Nothing is ever redirected: paths are taken as they are.
    app.url_map.merge_slashes = False
    for kind in (errors.JobrunnerError, HTTPException, OSError, Exception):
        app.register_error_handler(kind, lambda error: _refuse(dialect, understand(error)))
    register_protection(app)
    trust_proxies(app, parts.services.settings.trusted_proxies)
    allowed = names_of(parts.services.settings) | ({parts.settings.host.lower()} if parts.settings.host else set())

    @app.before_request
    def check() -> Response | None:
        if not is_known_host(request, allowed):
            return _refuse(dialect, Refusal(Why.FOREIGN, 421, "the request's Host is not a name of this service"))
        if is_foreign_change(request):
            return _refuse(dialect, Refusal(Why.FOREIGN, 403, "a page of another origin must not change anything here"))
        if request.method == "HEAD" and not dialect.has_head:
            return _refuse(dialect, Refusal(Why.NO_ROUTE, 405, "there is no HEAD here"))
        if not dialect.is_public():
            g.caller = identify(request, _authentication(dialect, parts.settings))
        return None

    @app.after_request
    def name_status(response: Response) -> Response:
        # "404 Not Found": some clients compare all of it. Werkzeug would write it in capitals.
        response.status = f"{response.status_code} {HTTP_STATUS_CODES.get(response.status_code, 'Unknown')}"
        return response

    def refuse_unread(status: int, text: str) -> Response:
        why = {503: Why.BUSY, 500: Why.BROKEN}.get(status, Why.UNREAD)
        refusal = Refusal(why, status, text, 1 if status == 503 else None)
        with app.test_request_context():  # of none: for what each answer of the dialect has in its head
            return app.process_response(dialect.refuse(refusal))

    app.extensions[_UNREAD] = refuse_unread
    app.register_blueprint(dialect.blueprint)
    return app


def unread_refusal(app: Flask) -> Callable[[int, str], Response]:
    """Return what makes the answer, of status and words, to what never gets as far as this dialect's application."""
    return cast("Callable[[int, str], Response]", app.extensions[_UNREAD])


def _refuse(dialect: Dialect, refusal: Refusal) -> Response:
    note_refusal(refusal.status, refusal.why.value, refusal.text)
    return dialect.refuse(refusal)


def _authentication(dialect: Dialect, settings: DialectSettings) -> Callable[[bool], Caller]:
    """Return what finds out who is asking.

    Raises:
        Unauthenticated: the request does not say, or may not come without a token from where it does.
    """
    access = services().access
    if settings.auth == "none":
        proxy = connected_address(request)
        # The proxy as well: who connects past it could say to come from anywhere.
        if not settings.takes_from(client_address(request)) or (proxy and not settings.takes_from(proxy)):
            raise errors.Unauthenticated("who asks without a token must do so from a network in allow_from")
        if services().settings.trusted_proxies == 0 and has_passed_proxy(request):
            raise errors.Unauthenticated("this has come by a proxy; [server] trusted_proxies tells how many there are")
        # Ours come from here, to wherever any token's bearer has us send them, with what a job has written: as one of
        # the clients that are let in they would be a way around the token.
        if ID_HEADER in request.headers:
            raise errors.Unauthenticated("a callback needs a token here, as if it came from elsewhere")
        return lambda _: _stand_in(dialect, settings)
    if dialect.authenticate is not None:
        authenticate = dialect.authenticate
        return lambda _: authenticate()
    secret = secret_of(request)
    return lambda sparingly: access.authenticate(secret, sparingly=sparingly)


def _stand_in(dialect: Dialect, settings: DialectSettings) -> Caller:
    assert settings.run_as is not None
    try:
        return services().access.stand_in(settings.run_as)
    except errors.Unauthenticated as error:
        logger.warning("[dialect:%s]: %s", dialect.name, error)
        raise


_REASONS: dict[type[errors.JobrunnerError], Why] = {
    errors.Unauthenticated: Why.UNAUTHORIZED,
    errors.TooManyFailures: Why.UNAUTHORIZED,  # the dialects know no 429
    errors.Forbidden: Why.FORBIDDEN,
    errors.InvalidRequest: Why.INVALID,
    errors.NotFound: Why.NO_JOB,
    errors.Conflict: Why.CONFLICT,
    errors.TooBusy: Why.BUSY,
}
_STATUSES = {404: Why.NO_ROUTE, 405: Why.NO_ROUTE, 413: Why.TOO_LARGE}


def understand(error: Exception) -> Refusal:
    """Say why something is not done."""
    if isinstance(error, OSError):
        error = understand_os_error(error)
    if isinstance(error, HTTPException):
        status = error.code or 500
        return Refusal(_STATUSES.get(status, Why.INVALID), status, error.description or error.name)
    if not isinstance(error, errors.JobrunnerError):
        logger.error("a request has failed", exc_info=error)
        return Refusal(Why.BROKEN, 500, "the service has made a mistake; its log tells more")
    why = next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), Why.BROKEN)
    if why is Why.BROKEN:
        logger.warning("refused: %s", error)
    retry_after = error.retry_after if isinstance(error, errors.TooBusy) else None
    return Refusal(why, status_of(error), str(error), retry_after)


def answer(body: str | bytes, status: int = 200, *, content_type: str, refusal: Refusal | None = None) -> Response:
    """Answer with a body; with a refusal also say when another try makes sense."""
    response = Response(body, status=status, content_type=content_type)
    if refusal is not None and refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


def asked_path() -> str:
    """Return the path of the current request as it came: Flask would drop all but one of the slashes at its begin."""
    return cast("str", request.environ["PATH_INFO"])


def settings_as(kind: type[S]) -> S:
    """Return the settings of the dialect of the current request, which are of this kind."""
    found = here().settings
    assert isinstance(found, kind)
    return found
