"""Errors as problem details (RFC 9457). The only place that knows which status an error has."""

import errno
import json
import logging
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from jobrunner.domain import errors

logger = logging.getLogger("jobrunner.web")

STATUSES: Mapping[type[errors.JobrunnerError], tuple[int, str, str]] = {
    # exception: status, name of the problem's type, title
    errors.InvalidRequest: (422, "invalid-request", "The request can't be done as written"),
    errors.ShellNotAllowed: (403, "shell-not-allowed", "Shells are not allowed"),
    errors.CommandNotAllowed: (403, "command-not-allowed", "This command is not allowed"),
    errors.Forbidden: (403, "forbidden", "Not allowed"),
    errors.Unauthenticated: (401, "unauthorized", "A token is needed"),
    errors.NotFound: (404, "not-found", "Not found"),
    errors.JobNotEnded: (409, "not-ended", "The job has not ended"),
    errors.NameInUse: (409, "name-in-use", "Another job has this name"),
    errors.NoCallback: (409, "no-callback", "The job has no callback"),
    errors.JobNotRunning: (409, "not-running", "The job is not running"),
    errors.Conflict: (409, "conflict", "Not possible in this state"),
    errors.TooManyFailures: (429, "too-many-failures", "Too many wrong tokens"),
    errors.QueueFull: (503, "queue-full", "The queue is full"),
    errors.Draining: (503, "draining", "No new jobs are taken"),
    errors.TooBusy: (503, "busy", "Too much to do at the moment"),
    errors.StorageFull: (507, "storage-full", "No space is left"),
    errors.StorageError: (503, "storage-unavailable", "The storage refuses"),
}

HTTP_NAMES: Mapping[int, str] = {
    # status: name of the problem's type, where no exception of ours has one
    400: "bad-request",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "too-slow",
    412: "precondition-failed",
    413: "too-large",
    414: "too-long",
    415: "unsupported-media-type",
    416: "range-not-satisfiable",
    417: "expectation-failed",
    421: "misdirected-request",
    431: "head-too-large",
    500: "internal",
    501: "not-implemented",
    503: "busy",
    505: "version-not-supported",
}


class ProblemResponse(Response):
    """A response that knows which problem it tells.

    Attributes:
        name: of the type.
        detail: about this one.
    """

    name = ""
    detail = ""


def problem(status: int, name: str, title: str, detail: str, **members: Any) -> ProblemResponse:
    """Make a response of a problem.

    Args:
        status: the HTTP status.
        name: of the type; stable, clients may rely on it.
        title: the same for every problem of the type.
        detail: about this one.
        members: more of the document.
    """
    document = make_document(status, name, title, detail, **members)
    response = ProblemResponse(document, status=status, content_type="application/problem+json")
    response.name, response.detail = name, detail
    if status in {429, 503, 507}:
        response.headers["Retry-After"] = str(members.get("retry_after", 1))
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def make_document(status: int, name: str, title: str, detail: str, **members: Any) -> str:
    """Write the document of a problem: see `problem`."""
    document = {"type": f"/problems/{name}", "title": title, "status": status, "detail": detail, **members}
    return json.dumps(document) + "\n"


def status_of(error: errors.JobrunnerError) -> int:
    """Return the status that an error of the domain has."""
    return next((STATUSES[kind][0] for kind in type(error).__mro__ if kind in STATUSES), 500)


def render_error(error: errors.JobrunnerError) -> Response:
    """Turn an error of the domain into a response."""
    status, name, title = next(
        (STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), (500, "internal", "Internal error")
    )
    members: dict[str, Any] = {}
    if isinstance(error, errors.InvalidRequest):
        members["errors"] = [{"pointer": found.pointer, "detail": found.detail} for found in error.problems]
    if isinstance(error, errors.NameInUse) and error.job_id is not None:
        members["job_id"] = error.job_id
    if isinstance(error, errors.TooBusy):
        members["retry_after"] = error.retry_after
    if status >= 500 and not isinstance(error, errors.TooBusy):
        logger.warning("refused: %s", error)
    return problem(status, name, title, str(error), **members)


def render_http_error(error: HTTPException) -> Response:
    """Turn an error of Flask or Werkzeug into a response; its headers (``Allow``, ``Content-Range``) stay."""
    status = error.code or 500
    name = HTTP_NAMES.get(status, "error")
    response = problem(status, name, error.name, error.description or error.name)
    for key, value in error.get_headers():
        if key.lower() not in {"content-type", "content-length"}:
            response.headers[key] = value
    return response


def understand_os_error(error: OSError) -> errors.JobrunnerError:
    """Put what the system says about a file of ours into the words of the domain."""
    words = error.strerror or str(error)
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        # Nothing is wrong with the storage: the limit of descriptors (RLIMIT_NOFILE) is reached.
        logger.warning("refused: %s", error)
        return errors.TooBusy(f"too many open files: {words}")
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return errors.StorageFull(words)
    return errors.StorageError(words)


def render_os_error(error: OSError) -> Response:
    """Turn what the system says about a file of ours into a response."""
    return render_error(understand_os_error(error))


def render_unexpected(error: Exception) -> Response:
    """Answer for a mistake of ours, without telling its insides; the log has them."""
    logger.error("a request has failed", exc_info=error)
    return problem(500, "internal", "Internal error", "the service has made a mistake; its log tells more")


def register_error_handlers(app: Flask) -> None:
    """Have every error of the application answered as a problem."""
    app.register_error_handler(errors.JobrunnerError, render_error)
    app.register_error_handler(HTTPException, render_http_error)
    app.register_error_handler(OSError, render_os_error)
    app.register_error_handler(Exception, render_unexpected)
