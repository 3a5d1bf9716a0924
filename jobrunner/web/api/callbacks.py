"""``/v1/jobs/ID/callbacks``: whether the end of a job was told."""

from collections.abc import Iterable

from flask import Response

from jobrunner.domain.callback import Callback
from jobrunner.service.document import render_time
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import CallbackListDocument, ProblemDocument
from jobrunner.web.api.schema import JobPath, NoQuery
from jobrunner.web.render import json_response
from jobrunner.web.services import caller, services

bp = ApiBlueprint("callbacks", __name__, url_prefix="/v1/jobs", abp_responses={"default": ProblemDocument})


@bp.get("/<job_id>/callbacks", responses={200: CallbackListDocument})
def list_callbacks(path: JobPath, query: NoQuery) -> Response:  # noqa: ARG001 refuses what is not known
    """Show what became of a job's callback, attempt by attempt. Until the job ends there is none."""
    return json_response(_render(services().callbacks.list(path.job_id, caller())))


@bp.post("/<job_id>/callbacks/retry", responses={202: CallbackListDocument})
def retry(path: JobPath, query: NoQuery) -> Response:  # noqa: ARG001 refuses what is not known
    """Send the callback of an ended job again, from now on by the schedule, whatever became of it."""
    return json_response(_render(services().callbacks.send_again(path.job_id, caller())), 202)


def _render(callbacks: Iterable[Callback]) -> dict[str, object]:
    return {
        "callbacks": [
            {
                "id": callback.id,
                "url": callback.url,
                "state": callback.state.value,
                "next_attempt_at": render_time(callback.next_at),
                "attempts": [
                    {"at": render_time(attempt.at), "status": attempt.status, "error": attempt.error}
                    for attempt in callback.attempts
                ],
            }
            for callback in callbacks
        ]
    }
