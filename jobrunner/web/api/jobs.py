"""``/v1/jobs``: submit, list, look up, delete, run again."""

import base64
import binascii
from urllib.parse import urlencode

from flask import Response, request

from jobrunner.domain.access import Scope
from jobrunner.domain.errors import InvalidRequest
from jobrunner.domain.job import JobFilter, parse_label_filters
from jobrunner.domain.states import ACTIVE, ENDED, JobState
from jobrunner.service.document import job_path, render_job, render_plan
from jobrunner.service.submitting import Accepted
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import JobDocument, JobListDocument, ProblemDocument, SubmittedDocument
from jobrunner.web.api.schema import DeleteQuery, JobPath, JobQuery, ListQuery, RerunQuery, Submission, SubmitQuery
from jobrunner.web.parse import parse_idempotency_key, parse_wait
from jobrunner.web.render import conditional, job_response, json_response
from jobrunner.web.services import caller, services

bp = ApiBlueprint("jobs", __name__, url_prefix="/v1/jobs", abp_responses={"default": ProblemDocument})

FORCE_PATIENCE = 30.0
"""Seconds that a forced deletion waits for the job to be gone after SIGKILL."""

_STATE_GROUPS = {"active": ACTIVE, "ended": ENDED}


@bp.post("", responses={202: JobDocument, 200: SubmittedDocument})
def submit(query: SubmitQuery, body: Submission) -> Response:
    """Submit a job. 202 once it is durable; with `Prefer: wait=N`, 200 if it ended within N seconds.

    With `Idempotency-Key` a repeat starts nothing. With `dry_run` the answer is a plan.
    """
    if query.dry_run:
        return json_response(render_plan(services().submissions.plan(body.to_domain(), caller())))
    seconds = _waiting_time(query.wait)
    # As it was before there were steps: a key outlives an upgrade.
    missing = {"steps"} if body.steps is None else None
    key = parse_idempotency_key(lambda: body.model_dump(mode="json", exclude=missing))
    accepted = services().submissions.submit(body.to_domain(), caller(), wait=seconds or 0, key=key)
    return _answer(accepted, query.wait, seconds)


@bp.post("/<job_id>/rerun", responses={202: JobDocument, 200: JobDocument})
def rerun(path: JobPath, query: RerunQuery) -> Response:
    """Submit a new job of the same specification. Answers as a submission does."""
    seconds = _waiting_time(query.wait)
    key = parse_idempotency_key(lambda: ["rerun", path.job_id])
    accepted = services().submissions.rerun(path.job_id, caller(), wait=seconds or 0, key=key)
    return _answer(accepted, query.wait, seconds)


def _answer(accepted: Accepted, asked: float | None, seconds: float | None) -> Response:
    job = accepted.job
    ended = job.state.is_ended
    # Who may only submit is told what became of it, but is not shown its output.
    include_output = ended and caller().grant.allows(Scope.READ)
    response = job_response(job, 200 if ended else 202, include_output=include_output)
    response.headers["Location"] = job_path(job)
    if accepted.is_repeat:
        response.headers["Idempotency-Replayed"] = "true"
    return _applied(response, asked, seconds)


@bp.get("", responses={200: JobListDocument})
def list_jobs(query: ListQuery) -> Response:
    """List jobs, newest first. The cost of a page does not grow with the history."""
    wanted = JobFilter(
        states=_states(query.state),
        name=query.name,
        owner=query.owner,
        labels=parse_label_filters((key, value) for key, _, value in (text.partition(":") for text in query.label)),
        since=query.since,
        until=query.until,
        text=query.q,
    )
    page = services().jobs.list(wanted, caller(), limit=query.limit, before=_before(query.cursor))
    following = None
    if page.before is not None:
        filters = [(name, value) for name, value in request.args.items(multi=True) if name != "cursor"]
        following = f"/v1/jobs?{urlencode([*filters, ('cursor', _cursor(page.before))])}"
    response = json_response({"jobs": [render_job(job, services().output) for job in page.jobs], "next": following})
    if following:
        response.headers["Link"] = f'<{following}>; rel="next"'
    return response


@bp.get("/<job_id>", responses={200: JobDocument})
def get(path: JobPath, query: JobQuery) -> Response:
    """Look a job up; with `Prefer: wait=N` answer when it has ended, or after N seconds."""
    job = services().jobs.get(path.job_id, caller())
    seconds = _waiting_time(query.wait)
    if seconds is not None:
        job = services().jobs.wait(job, caller(), seconds)
    response = job_response(job, 200, include_output=query.include == "output")
    return conditional(_applied(response, query.wait, seconds))


@bp.delete("/<job_id>", responses={204: None})
def delete(path: JobPath, query: DeleteQuery) -> Response:
    """Forget an ended job, and remove its files. With `force`, end it first."""
    services().jobs.delete(path.job_id, caller(), force=query.force, patience=FORCE_PATIENCE)
    response = Response(status=204)
    # Flask names a type whether there is content or not.
    del response.headers["Content-Type"]
    return response


def _waiting_time(asked: float | None) -> float | None:
    """Return how long to wait; None when the client did not ask to, or there is nobody else to answer meanwhile."""
    if not request.environ.get("wsgi.multithread"):
        return None
    return parse_wait(asked, services().settings.max_wait)


def _applied(response: Response, asked: float | None, seconds: float | None) -> Response:
    """Say that the preference was followed (RFC 7240, section 3): not one that the parameter has overruled."""
    if asked is None and seconds is not None:
        response.headers["Preference-Applied"] = f"wait={seconds:g}"
    return response


def _states(names: list[str]) -> frozenset[JobState]:
    return frozenset().union(*(_STATE_GROUPS[name] if name in _STATE_GROUPS else {JobState(name)} for name in names))


def _cursor(before: int) -> str:
    return base64.urlsafe_b64encode(str(before).encode()).decode().rstrip("=")


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        if text.isdecimal() and len(text) < 19 and int(text) > 0:
            return int(text)
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequest.at("?cursor", "is not a cursor of this service; use the next of a page as it is")
