"""``/v1/jobs/ID/cancel`` and ``/signal``."""

from flask import Response

from jobrunner.service.jobs import CancelAsked
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import JobDocument, ProblemDocument
from jobrunner.web.api.schema import Cancel, JobPath, Signal
from jobrunner.web.render import job_response
from jobrunner.web.services import caller, services

bp = ApiBlueprint("control", __name__, url_prefix="/v1/jobs", abp_responses={"default": ProblemDocument})


@bp.post("/<job_id>/cancel", responses={202: JobDocument, 200: JobDocument})
def cancel(path: JobPath, body: Cancel) -> Response:
    """Ask a job to end. 202 while it runs, 200 once it has ended; asking twice is harmless."""
    job = services().jobs.cancel(path.job_id, caller(), CancelAsked(signal=body.signal, grace=body.grace))
    return job_response(job, 200 if job.state.is_ended else 202)


@bp.post("/<job_id>/signal", responses={202: JobDocument})
def signal(path: JobPath, body: Signal) -> Response:
    """Send a signal to a running job's process group."""
    return job_response(services().jobs.signal(path.job_id, caller(), body.signal), 202)
