"""rtot: scripts by HTTP, as the service in Go does it."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Blueprint, Response, g, request, stream_with_context
from werkzeug.exceptions import NotFound

import jobrunner
from jobrunner.config_dialects import RtotSettings
from jobrunner.domain.access import Caller, Scope
from jobrunner.domain.errors import Forbidden, JobNotFound, Unauthenticated
from jobrunner.domain.job import DialectNumber, Job
from jobrunner.domain.spec import StepKind
from jobrunner.domain.states import ENDED, JobState
from jobrunner.domain.streams import Stream
from jobrunner.service.submission import StepAsked, Submission
from jobrunner.web.dialects import go
from jobrunner.web.dialects.dialect import Dialect, Why, answer, asked_path, here, settings_as
from jobrunner.web.dialects.long import answer_long
from jobrunner.web.dialects.texts import http_error, in_texts
from jobrunner.web.dialects.written import LongText, write_object
from jobrunner.web.parse import read_body
from jobrunner.web.services import caller, services

NAME = "rtot"

PATIENCE = 30.0
"""Seconds that a deletion waits for the job to be gone after SIGKILL."""

_JSON = "application/json; charset=UTF-8"

bp = Blueprint(NAME, __name__)


def _json(document: Any, status: int = 200) -> Response:
    return answer(go.to_json(document), status, content_type=_JSON)


@bp.before_request
def _check_path() -> None:
    if "//" in asked_path() and asked_path() != "//":
        raise NotFound


@bp.get("/ping")
def ping() -> Response:
    """Say that somebody is here, and since when."""
    uptime = time.monotonic() - here().began_at
    return _json({"ping": [{"message": "still here", "uptime": go.duration(int(uptime * 1e9))}]})


@bp.get("/")
def root() -> Response:
    """Say what there is."""
    return _json({"links": {"jobs": "/jobs{?state}", "jobs.by_id": "/jobs/{jobs.id}", "ping": "/ping"}})


@bp.delete("/")
def die() -> Response:
    """Stop the service."""
    services().access.require(caller(), Scope.CANCEL)
    stop = here().stop
    if not settings_as(RtotSettings).allow_shutdown or stop is None:
        raise Forbidden("the service is not to be stopped by its clients ([dialect:rtot] allow_shutdown)")
    response = _nothing()
    response.call_on_close(stop)
    return response


@bp.post("/jobs")
def create() -> Response:
    """Run the body as a script."""
    script = read_body()
    if not script.startswith(b"#!"):
        script = b"#!/bin/bash\n" + script
    job = services().submissions.submit(Submission((StepAsked(StepKind.SOURCE, source=script),)), caller()).job
    return _documents([job], 201)


@bp.get("/jobs")
def list_jobs() -> Response:
    """Return all jobs, or those in one state."""
    states = _STATES.get(request.args.get("state", ""))
    jobs = here().dialect.list(caller(), states) if states is not None else ()
    return _documents(jobs, 200)


@bp.delete("/jobs")
def delete_all() -> Response:
    """Kill and forget all jobs, or those in one state."""
    states = _STATES.get(request.args.get("state", ""))
    if states is not None:
        here().dialect.delete_all(caller(), states, patience=PATIENCE)
    return _nothing()


@bp.get("/jobs/<number>")
def get(number: str) -> Response:
    """Look a job up."""
    reference = _reference(number)
    if reference is None:
        return _invalid(number)
    try:
        job = services().jobs.get(reference, caller())
    except JobNotFound:
        return _json({"jobs": []}, 404)
    response = _documents([job], 200 if job.state.is_ended else 202)
    response.headers["Location"] = _href(job)
    return response


@bp.delete("/jobs/<number>")
def delete(number: str) -> Response:
    """Forget a job; kill it first."""
    reference = _reference(number)
    if reference is None:
        return _invalid(number)
    services().jobs.delete(reference, caller(), force=True, patience=PATIENCE)
    return _nothing()


def _reference(number: str) -> DialectNumber | None:
    """Read the number of a job as ``strconv.Atoi`` does; None: it is none."""
    if not re.fullmatch(r"[+-]?[0-9]{1,64}", number) or not -(1 << 63) <= int(number) < 1 << 63:
        return None
    return here().dialect.number(int(number))


def _invalid(number: str) -> Response:
    return _json({"error": "invalid job number", "message": f"what is {go.quote(number)}?"}, 400)


def _nothing() -> Response:
    return answer("", 204, content_type=_JSON)


def _documents(jobs: Iterable[Job], status: int) -> Response:
    """Answer with a list of jobs, bit by bit: there may be many, and each has its output."""
    return answer_long(stream_with_context(_write_list(jobs, _fields())), status, content_type=_JSON)


def _write_list(jobs: Iterable[Job], fields: frozenset[str]) -> Iterator[str]:
    yield '{"jobs":['
    for index, job in enumerate(jobs):
        if index:
            yield ","
        yield from write_object(_document(job, fields), go.to_json)
    yield "]}"


def _fields() -> frozenset[str]:
    return frozenset(request.args.get("fields", "out,err,create,start,complete,filename").split(","))


def _href(job: Job) -> str:
    return f"{request.script_root}/jobs/{job.dialect_number}"


def _document(job: Job, fields: frozenset[str]) -> dict[str, Any]:
    """Make the document of a job, with those of its fields that may be left out."""
    output = services().output
    filename = output.source_path(job, 0)

    def text(stream: Stream) -> LongText:
        return go.to_long_text(output.whole(job, stream))

    optional: dict[str, Callable[[], str | LongText]] = {
        "out": lambda: text(Stream.STDOUT),
        "err": lambda: text(Stream.STDERR),
        "start": lambda: go.to_string(job.started_at),
        "complete": lambda: go.to_string(job.finished_at),
        "create": lambda: go.to_string(job.created_at),
        "filename": lambda: filename,
    }
    chosen = {field: make() for field, make in optional.items() if field in fields}
    document = {
        "id": job.dialect_number,
        "out": chosen.pop("out", ""),
        "err": chosen.pop("err", ""),
        "state": "complete" if job.state.is_ended else _NAMES[job.state],
        "exit": go.end_text(job, filename) if job.state.is_ended else "",
        **chosen,
        "href": _href(job),
    }
    return {name: value for name, value in document.items() if value or value == 0}


_NAMES = {JobState.QUEUED: "new", JobState.RUNNING: "running"}
_STATES: dict[str, frozenset[JobState]] = {
    "": frozenset(),
    "new": frozenset({JobState.QUEUED}),
    "running": frozenset({JobState.RUNNING}),
    "complete": ENDED,
}
"""What `DialectService` calls them; empty: all."""


@bp.after_app_request
def _add_version(response: Response) -> Response:
    if "caller" in g or _is_ping():
        response.headers["Rtot-Version"] = jobrunner.__version__
    return response


def _is_ping() -> bool:
    return request.method == "GET" and asked_path() == "/ping"


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
