"""Who sends a request, for the audit; and the one place that notes each request that is refused."""

from flask import Flask, Request, Response, g, request

from jobrunner.domain.access import Caller
from jobrunner.web.errors import ProblemResponse
from jobrunner.web.peer import client_address
from jobrunner.web.services import services

REFUSALS = frozenset({401, 403, 421, 429, 503, 507})
"""Statuses of what the service will not do for this client, or not now."""

_REFUSALS_OF_CHANGES = frozenset({409, 422})
"""Statuses of refusals, too, if something was to be changed."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def route(asked: Request) -> str:
    """Return method and route: the path as it was asked for is for no log."""
    return f"{asked.method} {asked.url_rule.rule if asked.url_rule is not None else '(none)'}"


def register_auditing(app: Flask, probes: frozenset[str]) -> None:
    """Have every refusal of the application noted, but for what is said to probes."""

    @app.after_request
    def note(response: Response) -> Response:
        if request.endpoint not in probes:
            told = (response.name, response.detail) if isinstance(response, ProblemResponse) else (None, "")
            note_refusal(response.status_code, *told)
        return response


def note_refusal(status: int, rule: str | None, detail: str) -> None:
    """Have the answer to the current request noted, if it is a refusal.

    Args:
        status: of the answer, or what it would be in ``/v1``.
        rule: the name of the problem's type; None: it was told in another form.
        detail: the problem's own words.
    """
    if status in REFUSALS or (status in _REFUSALS_OF_CHANGES and request.method not in _READING):
        services().audit.refusal(
            g.get("caller") or Caller("", address=client_address(request), route=route(request)),
            status=status,
            rule=rule,
            detail=detail,
            job=(request.view_args or {}).get("job_id"),
        )
