"""What makes new jobs: to submit one, to run one again, to ask what would be run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobrunner.clock import Now
from jobrunner.domain.access import Caller, Scope
from jobrunner.domain.ids import make_job_id
from jobrunner.domain.job import DialectNumber, IdempotencyKey, Job, NewJob
from jobrunner.domain.spec import Input, JobSpec, Step
from jobrunner.hints import Hint, Hints
from jobrunner.service.access import Access
from jobrunner.service.admission import Admission
from jobrunner.service.audit import Audit
from jobrunner.service.commands import LoadInputs
from jobrunner.service.jobs import JobService
from jobrunner.service.submission import SpecMaker, StepAsked, Submission
from jobrunner.service.waiting import Waiters
from jobrunner.store import jobs as store
from jobrunner.store.engine import Connection, Database, one_moment


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


class SubmissionService:
    """What makes new jobs. One object serves all threads of a process.

    Args:
        database, hints, access, waiters, audit: as the use cases of jobs have them.
        specs: applies configuration and policy.
        admission: has room for the job, or has not.
        jobs: the use cases of those that are there; when they are limited to a dialect's, that counts its jobs.
        api: what the new ones come through.
        now: the clock.
    """

    def __init__(
        self,
        database: Database,
        hints: Hints,
        access: Access,
        waiters: Waiters,
        specs: SpecMaker,
        admission: Admission,
        audit: Audit,
        jobs: JobService,
        *,
        api: str,
        now: Now,
    ) -> None:
        self._database = database
        self._hints = hints
        self._access = access
        self._waiters = waiters
        self._specs = specs
        self._admission = admission
        self._audit = audit
        self._jobs = jobs
        self._api = api
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
        self, reference: str | DialectNumber, caller: Caller, *, wait: float = 0, key: IdempotencyKey | None = None
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
        """Let those pass who may submit today what is a job already; for the rest see `SpecMaker.check`.

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
            self._admission.check(connection, spec, caller, self._jobs.only_api)
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
            is_numbered=self._jobs.only_api is not None,
        )
        if wait <= 0:
            return self._store(action, new, inputs, caller, key)
        self._access.require(caller, Scope.READ)
        # The seat comes first: a client that was refused for want of one must
        # not have started anything.
        with self._waiters.listen(new.id, caller) as listener:
            accepted = self._store(action, new, inputs, caller, key)
            if not accepted.is_repeat:
                return Accepted(self._jobs.wait_heard(listener, accepted.job, caller, wait))
        return Accepted(self._jobs.wait(accepted.job, caller, wait), is_repeat=True)

    def _store(
        self, action: str, new: NewJob, inputs: list[Input], caller: Caller, key: IdempotencyKey | None
    ) -> Accepted:
        def add(connection: Connection) -> Accepted:
            if key is not None:
                number = self._admission.find_repeated(connection, caller.name, key)
                if number is not None:
                    return Accepted(self._job_for(connection, str(number), caller, Scope.RUN), is_repeat=True)
            self._admission.check(connection, new.spec, caller, self._jobs.only_api)
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

    def _job_for(self, connection: Connection, reference: str | DialectNumber, caller: Caller, scope: Scope) -> Job:
        return self._access.job_for(connection, reference, caller, scope, api=self._jobs.only_api)
