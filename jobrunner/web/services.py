"""What the web layer works with; the composition root makes it."""

from dataclasses import dataclass
from typing import cast

from flask import Request, current_app, g, request

from jobrunner.config import Server
from jobrunner.domain.access import Caller
from jobrunner.service.access import Access
from jobrunner.service.audit import Audit
from jobrunner.service.callbacks import CallbackService
from jobrunner.service.catalogue import Catalogue
from jobrunner.service.failures import Failures
from jobrunner.service.files import FileService
from jobrunner.service.health import HealthService
from jobrunner.service.jobs import JobService
from jobrunner.service.output import OutputService
from jobrunner.service.submitting import SubmissionService
from jobrunner.service.waiting import Waiters

EXTENSION = "jobrunner"


@dataclass(frozen=True)
class Services:
    """The use cases, and the settings that are about HTTP."""

    jobs: JobService
    submissions: SubmissionService
    output: OutputService
    files: FileService
    callbacks: CallbackService
    access: Access
    audit: Audit
    failures: Failures
    catalogue: Catalogue
    health: HealthService
    waiters: Waiters
    followers: Waiters
    settings: Server

    def close(self) -> None:
        """Have everyone return who waits for something. From a signal handler too."""
        self.waiters.close()
        self.followers.close()


def services() -> Services:
    """Return the services of the current application."""
    return cast("Services", current_app.extensions[EXTENSION])


def current_request() -> Request:
    """Return the current request itself; Flask's `request` looks for it anew whenever it is touched."""
    return request._get_current_object()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001 documented


def caller() -> Caller:
    """Return who asks the current request; `web.guard` has found out."""
    return cast("Caller", g.caller)
