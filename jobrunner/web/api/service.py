"""The service itself: ``/healthz``, ``/readyz``, ``/v1/stats``, ``/openapi.json``."""

import copy
import threading
from typing import cast

from flask import Response, current_app
from flask_openapi3 import OpenAPI

from jobrunner.domain.states import JobState
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.description import complete
from jobrunner.web.api.documents import HealthDocument, ProblemDocument, StatsDocument
from jobrunner.web.api.schema import NoQuery
from jobrunner.web.errors import problem
from jobrunner.web.render import json_response, to_json
from jobrunner.web.services import caller, services

_DESCRIPTION = "jobrunner.openapi"
_making = threading.Lock()

bp = ApiBlueprint("service", __name__, abp_responses={"default": ProblemDocument})


@bp.get("/healthz", responses={200: HealthDocument}, security=[{}])
def healthz() -> Response:
    """Tell that the process answers. Needs no token."""
    return json_response({"status": "ok"})


@bp.get("/readyz", responses={200: HealthDocument, 503: ProblemDocument}, security=[{}])
def readyz() -> Response:
    """Tell whether work can be done: database, disk, executor. 503 names what can't. Needs no token."""
    checks = services().health.check()
    failing = {name: words for name, words in checks.items() if words is not None}
    if failing:
        detail = "; ".join(f"{name}: {words}" for name, words in failing.items())
        return problem(503, "not-ready", "The service is not ready", detail, checks=checks)
    return json_response({"status": "ok"})


@bp.get("/v1/stats", responses={200: StatsDocument})
def stats(query: NoQuery) -> Response:  # noqa: ARG001 refuses what is not known
    """Count slots, bytes, and the jobs the caller may see; `waiters` and `followers` are of the answering process."""
    found = services().health.stats(services().access.owner_for(caller(), None))
    return json_response(
        {
            "queued": found.states[JobState.QUEUED],
            "running": found.states[JobState.RUNNING],
            "slots": found.slots,
            "states": {state.value: count for state, count in found.states.items()},
            "waiters": services().waiters.count,
            "followers": services().followers.count,
            "spool_bytes": found.spool_bytes,
            "free_bytes": found.free_bytes,
        }
    )


@bp.get("/openapi.json", doc_ui=False)
def openapi() -> Response:
    """Describe the service. Needs no token."""
    app = cast("OpenAPI", current_app)
    with _making:
        text = app.extensions.get(_DESCRIPTION)
        if text is None:
            text = app.extensions[_DESCRIPTION] = to_json(
                complete(copy.deepcopy(app.api_doc), services().submissions.longest)
            )
    return Response(text, content_type="application/json")
