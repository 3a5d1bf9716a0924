"""http-runner: programs with their arguments by HTTP, as the service for Node does it."""

import json
import re
from typing import Any

from flask import Blueprint, Response
from werkzeug.exceptions import NotFound

from jobrunner.config_dialects import HttpRunnerSettings
from jobrunner.domain.errors import Forbidden, InvalidRequest, JobNotFound, Problem
from jobrunner.domain.job import Job
from jobrunner.domain.spec import StepKind
from jobrunner.service.submission import StepAsked, Submission
from jobrunner.web.dialects.dialect import Dialect, Refusal, Why, answer, asked_path, here, settings_as
from jobrunner.web.dialects.http_runner_document import parse_id, split_arguments, to_json, write_job
from jobrunner.web.dialects.long import answer_long
from jobrunner.web.dialects.unicode import to_unicode
from jobrunner.web.parse import read_body
from jobrunner.web.services import caller, services

NAME = "http-runner"

_JSON = "application/json"

bp = Blueprint(NAME, __name__)


def _document(job: Job, status: int) -> Response:
    return answer_long(write_job(job, services().output), status, content_type=_JSON)


def _json(document: Any, status: int, refusal: Refusal | None = None) -> Response:
    return answer(to_json(document), status, content_type=_JSON, refusal=refusal)


@bp.post("/")
def submit() -> Response:
    """Run a program."""
    if asked_path() not in {"", "/"}:
        raise NotFound
    asked = _parse(read_body())
    try:
        job = services().submissions.submit(asked, caller()).job
    except InvalidRequest as error:
        problems = [Problem(_member(problem.pointer), problem.detail) for problem in error.problems]
        raise InvalidRequest(problems) from error
    return _document(job, 202)


@bp.get("/<id>")
def get(id: str) -> Response:  # noqa: A002 what it is called here
    """Look a job up. What can be no id is no path either; one with a slash behind it is nobody's."""
    if not re.fullmatch(r"/[0-9a-f]{40}/?", asked_path()):
        raise NotFound
    found = parse_id(id)
    if found is None or asked_path().endswith("/"):
        raise JobNotFound
    job = services().jobs.get(found, caller())
    if not here().dialect.is_among_newest(job, settings_as(HttpRunnerSettings).max_jobs):
        raise JobNotFound
    return _document(job, 200)


def _parse(body: bytes) -> Submission:
    """Read what is to be run.

    Raises:
        InvalidRequest: it is nothing that could be.
        Forbidden: it is not in the whitelist.
    """
    try:
        asked = to_unicode(json.loads(body.decode(errors="replace"), parse_constant=_refuse, parse_int=float))
    except RecursionError:
        raise InvalidRequest.at("#", "too many arrays or objects in one another") from None
    except ValueError as error:
        raise InvalidRequest.at("#", str(error)) from None
    members = asked if isinstance(asked, dict) else {}
    whitelist = settings_as(HttpRunnerSettings).whitelist
    command, args, callback = members.get("command"), members.get("args"), members.get("callback", "")
    if whitelist and command not in whitelist:
        raise Forbidden(_NOT_IN_WHITELIST)
    if not isinstance(asked, dict):
        raise InvalidRequest.at("#", "must be an object")
    if not isinstance(command, str) or not command:
        raise InvalidRequest.at("#/command", "must be a string that is not empty")
    if not isinstance(args, str):
        raise InvalidRequest.at("#/args", "must be a string")
    if not isinstance(callback, str):
        raise InvalidRequest.at("#/callback", "must be a string")
    step = StepAsked(StepKind.ARGV, (command, *split_arguments(args)))
    return Submission((step,), callback_url=callback if "callback" in members else None)


def _member(pointer: str) -> str:
    """Point to what became the member of a submission that this points to."""
    kind, _, index = pointer.removeprefix("#/").partition("/")
    if kind == "argv":
        return "#/args" if index.strip("0") else "#/command"
    return "#/callback" if kind == "callback_url" else pointer


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_NOT_IN_WHITELIST = "Specified command is not in whitelist."


def _bad_request(text: str) -> Response:
    return _json({"message": "Bad Request", "error": text}, 400)


def _say(refusal: Refusal) -> Response:
    match refusal.why:
        case Why.NO_ROUTE:
            return _json({"message": "Not Implemented"}, 501)
        case Why.NO_JOB:
            return _json({"message": "Not Found"}, 404)
        case Why.UNAUTHORIZED:
            return _json({"message": "Unauthorized"}, 401)
        case Why.FORBIDDEN:
            return _bad_request(_NOT_IN_WHITELIST)
        case Why.INVALID:
            return _bad_request(refusal.text)
        case _:
            return _json({"message": refusal.text}, refusal.status, refusal)


DIALECT = Dialect(name=NAME, blueprint=bp, refuse=_say, has_head=False)
