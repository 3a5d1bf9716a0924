"""The use cases of jobs that are there: to look them up, to wait for them, to end and to forget them.

How there come to be some is in `jobrunner.service.submitting`. The same
methods stand behind HTTP and the command line.
"""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from jobrunner.clock import Now
from jobrunner.domain.access import Caller, Scope
from jobrunner.domain.errors import InvalidRequest, JobNotEnded, JobNotFound, JobNotRunning
from jobrunner.domain.exitstatus import parse_signal, signal_name
from jobrunner.domain.job import CancelRequest, DialectNumber, Job, JobFilter, JobPage
from jobrunner.domain.states import JobState
from jobrunner.hints import Hint, Hints
from jobrunner.service.access import Access
from jobrunner.service.audit import Audit
from jobrunner.service.timelimits import TimeLimits
from jobrunner.service.waiting import Listener, Waiters
from jobrunner.spool import Spool
from jobrunner.store import jobs as store
from jobrunner.store.engine import Connection, Database
from jobrunner.store.listing import list_jobs


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """How a caller wants a job to end; None takes SIGTERM and the job's own grace period."""

    signal: str | None = None
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class SignedStream:
    """Who has this signature may read the events of this job until then."""

    job: Job
    signature: str = field(repr=False)
    expires_at: datetime


class JobService:
    """What can be done with jobs. One object serves all threads of a process.

    Attributes:
        only_api: a dialect, to whose jobs everything here is limited; None: to none.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        hints: Hints,
        access: Access,
        waiters: Waiters,
        limits: TimeLimits,
        audit: Audit,
        *,
        only_api: str | None = None,
        now: Now,
    ) -> None:
        self._database = database
        self._spool = spool
        self._hints = hints
        self._access = access
        self._waiters = waiters
        self._limits = limits
        self._audit = audit
        self.only_api = only_api
        self._now = now

    def _job_for(self, connection: Connection, reference: str | DialectNumber, caller: Caller, scope: Scope) -> Job:
        return self._access.job_for(connection, reference, caller, scope, api=self.only_api)

    def get(self, reference: str | DialectNumber, caller: Caller, scope: Scope = Scope.READ) -> Job:
        """Look a job up, to do something with it that needs this scope.

        Raises:
            Forbidden: the caller's token has it not.
            JobNotFound: there is none to see.
        """
        with self._database.read() as connection:
            return self._job_for(connection, reference, caller, scope)

    def list(self, wanted: JobFilter, caller: Caller, *, limit: int, before: int | None = None) -> JobPage:
        """Return a page of the jobs that the caller may see, newest first.

        Raises:
            Forbidden: the caller's token is not for looking, or not for the jobs of this owner.
        """
        wanted = replace(wanted, owner=self._access.owner_for(caller, wanted.owner))
        with self._database.read() as connection:
            return list_jobs(connection, wanted, limit=limit, before=before)

    def wait(self, job: Job, caller: Caller, seconds: float) -> Job:
        """Return the job when it has ended, or after this many seconds as it is then.

        Raises:
            TooBusy: too many wait already.
            JobNotFound: it was deleted meanwhile.
            Unauthenticated: the caller's token was revoked meanwhile, or has expired.
        """
        if job.state.is_ended or seconds <= 0:
            return job
        with self._waiters.listen(job.id, caller) as listener:
            # Only now that hints are heard: it may have ended before.
            return self.wait_heard(listener, self.get(job.id, caller), caller, seconds)

    def wait_heard(
        self, listener: Listener, job: Job, caller: Caller, seconds: float, scope: Scope = Scope.READ
    ) -> Job:
        """Wait as `wait` does, on a seat that was taken already."""
        deadline = time.monotonic() + seconds
        more = True
        while more and not job.state.is_ended:
            more = listener.wait(deadline)
            job = self.get(job.id, caller, scope)
        return job

    def cancel(self, reference: str | DialectNumber, caller: Caller, asked: CancelAsked) -> Job:
        """Ask a job to end. Harmless to repeat; a running job may outlive the call by its grace period.

        Raises:
            InvalidRequest: there is no such signal, or the grace is out of range.
            Forbidden: the caller's token is not for this.
            JobNotFound: there is none to see.
        """
        request = CancelRequest(
            by=caller.name,
            at=self._now(),
            signal=_signal_number(asked.signal) if asked.signal is not None else signal.SIGTERM,
            grace=self._limits.checked_grace(asked.grace),
        )

        return self._cancel(
            lambda connection: self._job_for(connection, reference, caller, Scope.CANCEL), request, caller
        )

    def abandon(self, job: Job, caller: Caller) -> None:
        """Kill a job that was submitted to run as long as its client listens, who has gone.

        Needs no scope: to go is how they ask for it. Harmless when it has ended or was deleted.
        """

        def find(connection: Connection) -> Job:
            found = store.find_job(connection, job.id)
            if found is None:
                raise JobNotFound
            return found

        with suppress(JobNotFound):
            self._cancel(find, CancelRequest(caller.name, self._now(), signal.SIGKILL, grace=0), caller)

    def _cancel(self, find: Callable[[Connection], Job], request: CancelRequest, caller: Caller) -> Job:
        def write(connection: Connection) -> Job:
            job = find(connection)
            if not store.cancel_queued(connection, job.number, request):
                store.cancel_running(connection, job.number, request)
            return find(connection)

        job = self._database.insist(write, durable=True)
        # Only once the request is committed: the process may die at once, and
        # whoever reaps it must be able to read why.
        if job.state.is_ended:
            self._hints.job_ended(job.id, owes_callback=job.spec.callback_url is not None)
        else:
            self._hints.wake_executor(Hint.CONTROL)
        self._audit.job("cancel", caller, job, signal=signal_name(request.signal), grace=request.grace)
        return job

    def signal(self, reference: str | DialectNumber, caller: Caller, name: str) -> Job:
        """Send a signal to a running job's process group; it goes out soon after.

        Raises:
            InvalidRequest: there is no such signal.
            Forbidden: the caller's token is not for this.
            JobNotFound: there is none to see.
            JobNotRunning: it is queued or has ended.
        """
        number = _signal_number(name)

        def write(connection: Connection) -> Job:
            job = self._job_for(connection, reference, caller, Scope.CANCEL)
            if job.state is not JobState.RUNNING:
                raise JobNotRunning(job.state.value)
            store.add_signal(connection, job.number, number)
            return job

        job = self._database.insist(write)
        self._hints.wake_executor(Hint.CONTROL)
        self._audit.job("signal", caller, job, signal=signal_name(number))
        return job

    def delete(self, reference: str | DialectNumber, caller: Caller, *, force: bool, patience: float) -> None:
        """Forget a job and remove its files. Nobody is told of it any more, though a callback be owed.

        Args:
            reference: which job.
            caller: who is asking.
            force: kill it first if it has not ended.
            patience: seconds to wait for the end then.

        Raises:
            Forbidden: the caller's token is not for this.
            JobNotFound: there is none to see.
            JobNotEnded: it has not ended (any more than ``patience`` seconds after the kill).
            TooBusy: too many wait already.
        """
        job = self.get(reference, caller, Scope.CANCEL)
        if force and not job.state.is_ended:
            with self._waiters.listen(job.id, caller) as listener:  # before anything is killed
                job = self.cancel(job.id, caller, CancelAsked(signal="SIGKILL", grace=0))
                job = self.wait_heard(listener, job, caller, patience, Scope.CANCEL)

        def write(connection: Connection) -> None:
            if not store.delete_ended_job(connection, job.number):
                if store.find_state(connection, job.number) is None:
                    raise JobNotFound
                raise JobNotEnded

        self._database.insist(write, durable=True)
        self._audit.job("delete", caller, job, force=force)
        # After the row: a crash in between leaves a directory that gc removes.
        self._spool.remove(job.id)

    def sign_stream(self, reference: str, caller: Caller) -> SignedStream:
        """Make what stands for the caller's token in a URL of the events of a job, for a while.

        Raises:
            Forbidden: the caller's token is not for looking.
            JobNotFound: there is none to see.
        """
        job = self.get(reference, caller)
        signature, expires_at = self._access.sign_stream(job.id, caller)
        self._audit.job("stream-url", caller, job)
        return SignedStream(job, signature, expires_at)


def _signal_number(name: str) -> int:
    try:
        return parse_signal(name)
    except ValueError as error:
        raise InvalidRequest.at("#/signal", str(error)) from None
