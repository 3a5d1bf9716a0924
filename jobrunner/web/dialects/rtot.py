"""rtot: scripts by HTTP, as the service in Go does it."""

import time
from typing import Any

from flask import Blueprint, Response, g, request

import jobrunner
from jobrunner.config_dialects import RtotSettings
from jobrunner.domain.access import Caller
from jobrunner.domain.errors import Unauthenticated
from jobrunner.web.dialects import go
from jobrunner.web.dialects.dialect import Dialect, Why, answer, here, settings_as
from jobrunner.web.dialects.texts import http_error, in_texts
from jobrunner.web.services import services

NAME = "rtot"

bp = Blueprint(NAME, __name__)


def _json(document: Any, status: int = 200) -> Response:
    return answer(go.to_json(document), status, content_type="application/json; charset=UTF-8")


@bp.get("/ping")
def ping() -> Response:
    """Say that somebody is here, and since when."""
    uptime = time.monotonic() - here().began_at
    return _json({"ping": [{"message": "still here", "uptime": go.duration(int(uptime * 1e9))}]})


@bp.get("/")
def root() -> Response:
    """Say what there is."""
    return _json({"links": {"jobs": "/jobs{?state}", "jobs.by_id": "/jobs/{jobs.id}", "ping": "/ping"}})


@bp.after_app_request
def _add_version(response: Response) -> Response:
    if "caller" in g or _is_ping():
        response.headers["Rtot-Version"] = jobrunner.__version__
    return response


def _is_ping() -> bool:
    return request.method == "GET" and request.path == "/ping"


def _authenticate() -> Caller:
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    known = settings_as(RtotSettings).secret
    assert known is not None
    if kind != NAME:
        raise Unauthenticated("send Authorization: rtot SECRET")
    return services().access.authenticate_shared(secret, known.text, NAME)


DIALECT = Dialect(
    name=NAME,
    blueprint=bp,
    refuse=in_texts(
        {
            Why.NO_ROUTE: lambda _: http_error("404 page not found", 404),
            Why.NO_JOB: lambda _: _json({"error": "no such job"}, 404),
            Why.FORBIDDEN: lambda refusal: _json({"error": refusal.text}, 403),
            Why.INVALID: lambda refusal: _json({"error": refusal.text}, 400),
        }
    ),
    authenticate=_authenticate,
    is_public=_is_ping,
)
