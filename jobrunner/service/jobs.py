"""The use cases of jobs. The same methods stand behind HTTP and the command line."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from jobrunner.clock import Now
from jobrunner.domain.access import Caller, Scope
from jobrunner.domain.errors import InvalidRequest, JobNotEnded, JobNotFound, JobNotRunning
from jobrunner.domain.exitstatus import parse_signal, signal_name
from jobrunner.domain.ids import make_job_id
from jobrunner.domain.job import CancelRequest, FaceNumber, IdempotencyKey, Job, JobFilter, JobPage, NewJob
from jobrunner.domain.spec import Input, JobSpec, Step
from jobrunner.domain.states import JobState
from jobrunner.hints import Hint, Hints
from jobrunner.service.access import Access
from jobrunner.service.admission import Admission
from jobrunner.service.audit import Audit
from jobrunner.service.commands import LoadInputs
from jobrunner.service.submission import SpecMaker, StepAsked, Submission
from jobrunner.service.waiting import Listener, Waiters
from jobrunner.spool import Spool
from jobrunner.store import jobs as store
from jobrunner.store.engine import Connection, Database, one_moment
from jobrunner.store.listing import list_jobs


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """How a caller wants a job to end; None takes SIGTERM and the job's own grace period."""

    signal: str | None = None
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a submission.

    Attributes:
        is_repeat: nothing was started; the job is the one that the first submission with this key has made.
    """

    job: Job
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a submission would run, within which limits, and the rules that allow its steps."""

    spec: JobSpec
    limits: Mapping[str, int | str]
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SignedStream:
    """Who has this signature may read the events of this job until then."""

    job: Job
    signature: str = field(repr=False)
    expires_at: datetime


class JobService:
    """What can be done with jobs. One object serves all threads of a process.

    ``api`` names the face that these jobs come through. One that is a dialect
    (``is_dialect``) counts its jobs, and sees no others.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        hints: Hints,
        access: Access,
        waiters: Waiters,
        specs: SpecMaker,
        admission: Admission,
        audit: Audit,
        *,
        api: str,
        is_dialect: bool = False,
        now: Now,
    ) -> None:
        self._database = database
        self._spool = spool
        self._hints = hints
        self._access = access
        self._waiters = waiters
        self._specs = specs
        self._api = api
        self._is_dialect = is_dialect
        self._admission = admission
        self._audit = audit
        self._now = now

    @property
    def longest(self) -> Mapping[str, float]:
        """Most seconds that a ``timeout`` and a ``grace`` period may have."""
        return self._specs.longest

    def submit(
        self,
        asked: Submission,
        caller: Caller,
        *,
        wait: float = 0,
        key: IdempotencyKey | None = None,
        job_id: str | None = None,
    ) -> Accepted:
        """Queue a job; it is durable when this returns.

        Args:
            asked: what to run.
            caller: who asks; the job will be theirs.
            wait: seconds to wait for its end.
            key: a repeat with the same key starts nothing, and is answered with the job of the first.
            job_id: of `make_id`, when somebody listens to the job already; None: a new one.

        Raises:
            InvalidRequest: with everything that is wrong.
            Forbidden: policy or the caller's token refuses.
            NameInUse: it is exclusive, and another job has its name.
            TooBusy: too many wait already, the queue is full, or the service is drained; nothing was stored.
            StorageError: nothing was stored.
        """
        self._require(caller, asked, [step.script for step in asked.steps])
        spec, inputs = self._specs.make(asked, caller)
        return self._add("submit", spec, inputs, caller, wait, key, job_id)

    def make_id(self) -> str:
        """Make the id of a job that is to be submitted now."""
        return make_job_id(int(self._now().timestamp() * 1000))

    def rerun(
        self, reference: str | FaceNumber, caller: Caller, *, wait: float = 0, key: IdempotencyKey | None = None
    ) -> Accepted:
        """Queue a new job with the specification and inputs of another; as `submit`.

        Raises:
            JobNotFound: there is none to see.
            InvalidRequest, Forbidden: it would not be accepted today, or not of this caller.
            NameInUse, TooBusy, StorageError: nothing was stored.
        """
        with self._database.read() as connection, one_moment(connection):
            # Who may run something has to see it, to know what it is.
            job = self._job_for(connection, reference, caller, Scope.READ)
            inputs = store.load_inputs(connection, job.number)
        spec = self.require_again(job.spec, caller, lambda: inputs)
        return self._add("rerun", spec, inputs, caller, wait, key)

    def require_again(self, spec: JobSpec, caller: Caller, load_inputs: LoadInputs) -> JobSpec:
        """Let those pass who may submit today what is a job already.

        Args:
            spec: of the job.
            caller: who would submit it again.
            load_inputs: returns what came with it; called only if that matters.

        Returns:
            What would be run today.

        Raises:
            InvalidRequest, Forbidden: it would not be accepted, or not of this caller.
        """
        self._require(caller, spec, [self._specs.script(step) for step in spec.steps])
        return self._specs.check(spec, caller, load_inputs)

    def plan(self, asked: Submission, caller: Caller) -> Plan:
        """Say what a submission would run, or refuse it as `submit` would; nothing is stored.

        Raises:
            InvalidRequest, Forbidden, NameInUse, TooBusy, StorageError: as `submit`.
        """
        self._require(caller, asked, [step.script for step in asked.steps])
        spec, _ = self._specs.make(asked, caller)
        with self._database.read() as connection:
            self._admission.check(connection, spec, caller, self._own_api)
        return Plan(spec, self._specs.limits(), tuple(self._specs.rule(step, caller) for step in spec.steps))

    def _require(self, caller: Caller, asked: Submission | JobSpec, scripts: Sequence[str | None]) -> None:
        """Judge what each step asks for; ``scripts`` are the names of those that are catalogued."""
        if not asked.steps:
            self._access.require(caller, Scope.EXEC)  # what is wrong with that is for who may submit anything
        steps: Sequence[Step | StepAsked] = asked.steps
        for step, script in zip(steps, scripts, strict=True):
            is_placed = asked.cwd is not None and not (isinstance(asked, Submission) and asked.is_cwd_ours)
            surroundings = any((asked.env, is_placed, step.env, step.cwd is not None))
            self._access.require_submission(caller, script, changes_surroundings=surroundings)
        if asked.callback_url is not None:
            self._access.require(caller, Scope.READ)  # a callback has the job's output

    def _add(
        self,
        action: str,
        spec: JobSpec,
        inputs: list[Input],
        caller: Caller,
        wait: float,
        key: IdempotencyKey | None,
        job_id: str | None = None,
    ) -> Accepted:
        now = self._now()
        new = NewJob(
            id=job_id or self.make_id(),
            owner=caller.name,
            api=self._api,
            created_at=now,
            spec=spec,
            is_numbered=self._is_dialect,
        )
        if wait <= 0:
            return self._store(action, new, inputs, caller, key)
        self._access.require(caller, Scope.READ)
        # The seat comes first: a client that was refused for want of one must
        # not have started anything.
        with self._waiters.listen(new.id, caller) as listener:
            accepted = self._store(action, new, inputs, caller, key)
            if not accepted.is_repeat:
                return Accepted(self._await(listener, accepted.job, caller, wait))
        return Accepted(self.wait(accepted.job, caller, wait), is_repeat=True)

    def _store(
        self, action: str, new: NewJob, inputs: list[Input], caller: Caller, key: IdempotencyKey | None
    ) -> Accepted:
        def add(connection: Connection) -> Accepted:
            if key is not None:
                number = self._admission.find_repeated(connection, caller.name, key)
                if number is not None:
                    return Accepted(self._job_for(connection, str(number), caller, Scope.RUN), is_repeat=True)
            self._admission.check(connection, new.spec, caller, self._own_api)
            job = store.add_job(connection, new, inputs)
            if key is not None:
                self._admission.remember(connection, caller.name, key, job.number)
            return Accepted(job)

        accepted = self._database.write_together(add, durable=True)
        if not accepted.is_repeat:
            self._hints.wake_executor(Hint.QUEUED)
        rules = dict.fromkeys(self._specs.rule(step, caller) for step in accepted.job.spec.steps)
        self._audit.submission(action, caller, accepted.job, rule=", ".join(rules), is_repeat=accepted.is_repeat)
        return accepted

    def _job_for(self, connection: Connection, reference: str | FaceNumber, caller: Caller, scope: Scope) -> Job:
        return self._access.job_for(connection, reference, caller, scope, api=self._own_api)

    @property
    def _own_api(self) -> str | None:
        """The face to whose jobs everything here is limited; None: to none."""
        return self._api if self._is_dialect else None

    def get(self, reference: str | FaceNumber, caller: Caller, scope: Scope = Scope.READ) -> Job:
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
            return self._await(listener, self.get(job.id, caller), caller, seconds)

    def _await(self, listener: Listener, job: Job, caller: Caller, seconds: float, scope: Scope = Scope.READ) -> Job:
        deadline = time.monotonic() + seconds
        more = True
        while more and not job.state.is_ended:
            more = listener.wait(deadline)
            job = self.get(job.id, caller, scope)
        return job

    def cancel(self, reference: str | FaceNumber, caller: Caller, asked: CancelAsked) -> Job:
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
            grace=self._specs.checked_grace(asked.grace),
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

    def signal(self, reference: str | FaceNumber, caller: Caller, name: str) -> Job:
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

    def delete(self, reference: str | FaceNumber, caller: Caller, *, force: bool, patience: float) -> None:
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
                job = self._await(listener, job, caller, patience, Scope.CANCEL)

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
