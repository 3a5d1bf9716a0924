"""Documents as responses."""

import hashlib
import json
from typing import Any

from flask import Response, request

from jobrunner.domain.job import Job
from jobrunner.service.document import render_job
from jobrunner.web.services import services

_CONDITIONS = frozenset({"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"})
"""The headers that name tags, as WSGI calls them: only with one of these there is something to compare."""


def job_response(job: Job, status: int, *, include_output: bool = False) -> Response:
    """Answer with the document of a job."""
    document = render_job(job, services().output, include_output=include_output)
    response = json_response(document, status)
    if not job.state.is_ended:
        response.headers["Retry-After"] = "1"
    return response


def json_response(document: Any, status: int = 200) -> Response:
    """Answer with a JSON document."""
    return Response(to_json(document), status=status, content_type="application/json")


def to_json(document: Any) -> str:
    """Write a JSON document on one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def conditional(response: Response) -> Response:
    """Give a document its ETag; answer 304 to a client that has it already."""
    response.set_etag(hashlib.blake2b(response.get_data(), digest_size=12).hexdigest())
    if not _CONDITIONS.isdisjoint(request.environ):
        response.make_conditional(request.environ)
    return response
