"""jobrunner, the older service of this name: shell commands by HTTP, as the service in Go does it."""

import re
from collections.abc import Iterator
from contextlib import suppress

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from jobrunner.domain.errors import Forbidden, InvalidRequest, JobNotFound, TooBusy
from jobrunner.domain.ids import parse_job_reference
from jobrunner.domain.states import ACTIVE
from jobrunner.domain.streams import Stream
from jobrunner.service.jobs import CancelAsked
from jobrunner.service.waiting import Listener
from jobrunner.web.dialects import go
from jobrunner.web.dialects.dialect import Dialect, Refusal, Why, answer, asked_path, here
from jobrunner.web.dialects.go_jobrunner_request import Wrong, command_ids, parse_submission
from jobrunner.web.dialects.texts import PLAIN, http_error, in_texts
from jobrunner.web.parse import read_body
from jobrunner.web.sending import harmless
from jobrunner.web.services import caller, services
from jobrunner.web.streaming import bytes_of, send_stream

NAME = "go-jobrunner"

PATIENCE = 5.0
"""Seconds that a DELETE waits for the job to be gone after SIGKILL."""

bp = Blueprint(NAME, __name__)


@bp.before_request
def _check_path() -> None:
    path = asked_path()
    if path not in {"", "/"} and (path.endswith("/") or "//" in path):
        raise NotFound


def _text(text: str) -> Response:
    return answer(text, content_type=PLAIN)


@bp.post("/")
def submit() -> Response:
    """Run a command, or several one after the other."""
    asked = parse_submission(read_body())
    for image in asked.images:
        services().access.require_image(caller(), image)
    if asked.images:
        raise Wrong("No container engine is configured.")
    job = services().submissions.submit(asked.submission, caller()).job
    if asked.commands is None:
        return _text(go.to_json({"ID": job.id}))
    return _text(go.to_json({"JobID": job.id, "CommandIDs": command_ids(job.id, asked.commands)}))


@bp.get("/")
def list_jobs() -> Response:
    """Name the jobs that have not ended."""
    return _text(go.to_json({"IDs": [job.id for job in here().dialect.list(caller(), ACTIVE)]}))


@bp.get("/<id>")
def get_info(id: str) -> Response:  # noqa: A002 what it is called here
    """Say nothing about a job, and that of any."""
    return http_error(f"GetInfo: {id}", 200)


@bp.get("/<id>/attach")
def attach(id: str) -> Response:  # noqa: A002
    """Send what a job writes from now on, or from an offset, until it has ended."""
    job = services().jobs.get(_reference(id), caller())
    if job.state.is_ended:
        raise JobNotFound
    output = services().output
    offset = _offset()
    if offset is None:
        offset = output.size(job, Stream.STDOUT)

    def body(listener: Listener) -> Iterator[bytes]:
        return bytes_of(output.follow(job, {Stream.STDOUT: offset}, listener))

    return harmless(send_stream(job, body, PLAIN))


@bp.delete("/<id>")
def delete(id: str) -> Response:  # noqa: A002
    """Kill a job with all that it has started; also one that there is not."""
    with suppress(JobNotFound):
        job = services().jobs.cancel(_reference(id), caller(), CancelAsked(signal="SIGKILL", grace=0))
        # It is told to end; that it has ended is only for the next request to find.
        with suppress(TooBusy, Forbidden):
            services().jobs.wait(job, caller(), PATIENCE)
    return _text("")


@bp.post("/<id>/clean")
def clean(id: str) -> Response:  # noqa: A002
    """Forget a job that has ended, and remove its files."""
    services().jobs.delete(_reference(id), caller(), force=False, patience=0)
    return _text("")


def _reference(text: str) -> str:
    """Read an id, as it is given out and in no other way.

    Raises:
        JobNotFound: it is none.
    """
    if parse_job_reference(text) != text:
        raise JobNotFound
    return text


def _offset() -> int | None:
    text = request.args.get("offset")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidRequest.at("?offset", "must be a whole number")
    return int(text)


def _no_job(_: Refusal) -> Response:
    return http_error("Job ID not found." if request.endpoint == f"{NAME}.attach" else "Job ID not found", 404)


DIALECT = Dialect(
    name=NAME,
    blueprint=bp,
    refuse=in_texts(
        {
            Why.NO_ROUTE: lambda _: http_error("404 page not found", 404),
            Why.NO_JOB: _no_job,
            Why.INVALID: lambda refusal: http_error(refusal.text, 500),
            Why.FORBIDDEN: lambda refusal: http_error(refusal.text, 500),
        }
    ),
    has_head=False,
)
