"""Callbacks, as people see them; and what is told by one about a job of ``/v1``."""

import json

from jobrunner.clock import Now
from jobrunner.domain.access import Caller, Scope
from jobrunner.domain.callback import Callback, Message
from jobrunner.domain.errors import JobNotEnded, NoCallback
from jobrunner.domain.job import Job
from jobrunner.hints import Hints
from jobrunner.service.access import Access
from jobrunner.service.audit import Audit
from jobrunner.service.document import render_job, render_time
from jobrunner.service.output import OutputService
from jobrunner.service.submitting import SubmissionService
from jobrunner.store import callbacks as store
from jobrunner.store.engine import Connection, Database
from jobrunner.store.jobs import load_inputs

TEXT_MOST = 65536
"""Most bytes of a stream that a callback includes: its tail, if it is longer. Receivers want small bodies."""


class CallbackService:
    """What can be done with callbacks. One object serves all threads of a process."""

    def __init__(
        self,
        database: Database,
        hints: Hints,
        access: Access,
        submissions: SubmissionService,
        audit: Audit,
        now: Now,
    ) -> None:
        self._database = database
        self._hints = hints
        self._access = access
        self._submissions = submissions
        self._audit = audit
        self._now = now

    def list(self, reference: str, caller: Caller) -> tuple[Callback, ...]:
        """Return the callback of a job, if it has one and has ended.

        Raises:
            Forbidden: the caller's token is not for looking.
            JobNotFound: there is none to see.
        """
        with self._database.read() as connection:
            job = self._access.job_for(connection, reference, caller, Scope.READ)
            return self._find(connection, job)

    def send_again(self, reference: str, caller: Caller) -> tuple[Callback, ...]:
        """Have the callback of an ended job sent once more, and again by the schedule, whatever became of it.

        Raises:
            InvalidRequest, Forbidden: the job would not be accepted today, or not of this caller.
            JobNotFound: there is none to see.
            NoCallback: it has none.
            JobNotEnded: there is nothing to tell yet.
        """

        def write(connection: Connection) -> tuple[Job, tuple[Callback, ...]]:
            job = self._access.job_for(connection, reference, caller, Scope.READ)
            self._submissions.require_again(job.spec, caller, lambda: load_inputs(connection, job.number))
            if job.spec.callback_url is None:
                raise NoCallback
            if not store.send_again(connection, job.number, self._now()):
                raise JobNotEnded
            return job, self._find(connection, job)

        job, found = self._database.write_together(write)
        self._hints.wake_deliverer()
        self._audit.job("callback-retry", caller, job)
        return found

    def _find(self, connection: Connection, job: Job) -> tuple[Callback, ...]:
        callback = store.find_callback(connection, job.number)
        return (callback,) if callback is not None else ()


def render_message(job: Job, output: OutputService) -> Message:
    """Make what is sent about a job of ``/v1``: a Standard Webhooks event with the job's document."""
    event = {
        "type": f"job.{job.state.value}",
        "timestamp": render_time(job.finished_at),
        "data": render_job(job, output, include_output=True, text_most=TEXT_MOST),
    }
    return Message([json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()])
