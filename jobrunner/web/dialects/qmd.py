"""QMD: catalogued scripts by HTTP, as the service in Go does it."""

from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from jobrunner.config_dialects import QmdSettings
from jobrunner.domain.access import Scope
from jobrunner.domain.errors import Draining, InvalidRequest, TooBusy
from jobrunner.domain.job import Job
from jobrunner.domain.spec import StepKind
from jobrunner.domain.states import JobState, Priority
from jobrunner.service.catalogue import Catalogue
from jobrunner.service.submission import StepAsked, Submission
from jobrunner.web.dialects import go
from jobrunner.web.dialects.dialect import Dialect, Refusal, Why, answer, asked_path, here, settings_as
from jobrunner.web.dialects.long import answer_long
from jobrunner.web.dialects.qmd_document import RESULT, normalize_url, write_job
from jobrunner.web.dialects.texts import PLAIN, http_error, in_texts
from jobrunner.web.parse import read_body
from jobrunner.web.services import caller, services

NAME = "qmd"

FOR_EVER = 1e9
"""Seconds that a client waits for the end of a script, which has an end of its own (`max_exec_time`)."""

PRIORITIES = {"urgent": Priority.HIGH, "high": Priority.NORMAL, "low": Priority.LOW}

bp = Blueprint(NAME, __name__)


@bp.before_app_request
def _check() -> None:
    if here().is_draining():
        raise Draining
    if "//" in asked_path():
        raise NotFound


def _text(text: str, status: int = 200) -> Response:
    return answer(text, status, content_type=PLAIN)


@bp.get("/ping")
def ping() -> Response:
    """Say that somebody is here."""
    return _text(".")


@bp.get("/")
def root() -> Response:
    """Say nothing."""
    return _text("¯\\_(ツ)_/¯")


@bp.post("/scripts/<name>")
def submit(name: str) -> Response:
    """Run a script; answer with its end, or at once if somebody is to be called back."""
    if asked_path().endswith("/") or name in {".", ".."} or "\0" in name:
        raise NotFound
    given = request.args.get("priority") or "high"
    if given not in PRIORITIES:
        return http_error(f'unknown priority "{given}"', 422)
    services().access.require(caller(), Scope.RUN)
    services().access.require(caller(), Scope.READ)
    try:
        asked = _parse(read_body(), name, PRIORITIES[given])
    except ValueError as error:
        return http_error(f"parse request body: {error}", 422)
    job_id = services().submissions.make_id()
    asked = _complete(asked, name, job_id)
    wait = 0 if asked.callback_url is not None else FOR_EVER
    try:
        job = services().submissions.submit(asked, caller(), wait=wait, job_id=job_id).job
    except InvalidRequest as error:
        return http_error(f"parse request body: {error}", 422)
    return _document(job) if not wait else _ended(job)


@bp.get("/jobs")
def list_jobs() -> Response:
    """Count the jobs."""
    counts, ended = here().dialect.count(caller())
    parts: list[str] = []
    active = 0
    for title, state in (("Queued", JobState.QUEUED), ("Running", JobState.RUNNING)):
        found = {word: counts.get((state, priority), 0) for word, priority in PRIORITIES.items()}
        active += sum(found.values())
        lines = [f"- {count} ({word})" for word, count in found.items()]
        parts.append("\n".join([f"{title}: {sum(found.values())}", *lines]))
    parts.append(f"Finished (in-cache): {sum(counts.values()) - active}")
    parts.append(f"Finished (total): {ended}")
    return _text("\n\n".join(parts))


@bp.get("/jobs/<id>")
def get(id: str) -> Response:  # noqa: A002 what it is called here
    """Wait for the end of a job, and show it."""
    if asked_path().endswith("/"):
        raise NotFound
    job = services().jobs.get(id, caller())
    return _ended(services().jobs.wait(job, caller(), FOR_EVER))


def _ended(job: Job) -> Response:
    if not job.state.is_ended:
        raise TooBusy("the service stops, or the client has gone")
    return _document(job)


def _document(job: Job) -> Response:
    # Who has waited had one of these seats: to refuse them now would have them run the script again.
    return answer_long(write_job(job, services().output), content_type=PLAIN, seats=services().waiters)


# ── what is asked ──


def _parse(body: bytes, name: str, priority: Priority) -> Submission:
    """Read what comes with a script.

    Raises:
        ValueError: it is not what it should be, and why.
    """
    asked = go.parse_json(body)
    if not isinstance(asked, go.Members):
        raise ValueError(f"json: cannot unmarshal {_kind(asked)} into Go value of type qmd.ScriptRequest")  # noqa: TRY004
    args = asked.find("args")
    if args is not None and not isinstance(args, list):
        raise ValueError(f"json: cannot unmarshal {_kind(args)} into Go value of type []string")
    files = asked.find("files")
    if files is not None and not isinstance(files, dict):
        raise ValueError(f"json: cannot unmarshal {_kind(files)} into Go value of type map[string]string")
    url = _string(asked.find("callback_url"))
    return Submission(
        (StepAsked(StepKind.SCRIPT, (name, *map(_string, args or ()))),),
        files={name: _string(content).encode() for name, content in (files or {}).items()},
        merge_stderr=True,
        priority=priority,
        callback_url=normalize_url(url) if url else None,
    )


def _string(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"json: cannot unmarshal {_kind(value)} into Go value of type string")
    return value or ""


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "bool", type(None): "null"}
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), "number")


def _complete(asked: Submission, name: str, job_id: str) -> Submission:
    """Add what every script has, and why this one can't be started if it can't."""
    settings = settings_as(QmdSettings)
    return Submission(
        asked.steps,
        files=asked.files,
        merge_stderr=True,
        timeout=settings.max_exec_time,
        priority=asked.priority,
        callback_url=asked.callback_url,
        paths={
            "QMD_TMP": "",
            "QMD_OUT": RESULT,
            "QMD_STORE": str(settings.store(here().data_dir)),
        },
        result=RESULT,
        drops_scratch=not settings.keep_temp,
        doom=_doom(asked, name, services().output.scratch_path(job_id)),
    )


def _doom(asked: Submission, name: str, scratch: str) -> str | None:
    settings = settings_as(QmdSettings)
    catalogue = Catalogue(settings.scripts_dir.absolute()) if settings.scripts_dir else services().catalogue
    absent = f'script "{name}" doesn\'t exist'
    if not name.endswith(".sh"):
        return absent
    try:
        catalogue.find(name)
    except InvalidRequest:
        return absent
    for each in sorted(asked.files):
        if "/" in each:
            return "extra files must not contain any slashes in the path"
        if each in {"", ".", ".."}:
            path = {"..": scratch.rpartition("/")[0]}.get(each, scratch)
            return f"open {path}: is a directory"
        if "\0" in each or len(each.encode()) > 255:
            return f"open {scratch}/{each}: {'invalid argument' if chr(0) in each else 'file name too long'}"
    return None


# ── refusals ──


def _not_found(_: Refusal) -> Response:
    return _text("Not Found", 404)


@bp.after_app_request
def _forbid_to_keep(response: Response) -> Response:
    response.headers.update(
        {
            "Cache-Control": "no-cache, private, max-age=0",
            "Expires": "Thu, 01 Jan 1970 00:00:00 UTC",
            "Pragma": "no-cache",
            "X-Accel-Expires": "0",
        }
    )
    return response


DIALECT = Dialect(
    name=NAME,
    blueprint=bp,
    refuse=in_texts(
        {
            Why.NO_ROUTE: _not_found,
            Why.NO_JOB: _not_found,
            Why.INVALID: lambda refusal: http_error(f"parse request body: {refusal.text}", 422),
            Why.BUSY: lambda refusal: http_error("Service Unavailable", 503, refusal),
        }
    ),
    has_head=False,
)
