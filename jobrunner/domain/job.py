"""A job: one submission and what became of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, Self

from jobrunner.domain.errors import InvalidRequest
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.spec import LABELS_MAX, JobSpec
from jobrunner.domain.states import JobState, StepState
from jobrunner.domain.streams import Hole, Stream


class ErrorCode(StrEnum):
    """What went wrong around a job: why it could not be started, was told to end, or has no exit status."""

    NOT_FOUND = "not-found"
    PERMISSION_DENIED = "permission-denied"
    BAD_CWD = "bad-cwd"
    EXEC_FORMAT = "exec-format"
    ARGUMENTS_TOO_LONG = "arguments-too-long"
    NO_SPACE = "no-space"
    SPAWN_FAILED = "spawn-failed"
    WORKER_LOST = "worker-lost"
    HOST_REBOOTED = "host-rebooted"
    OUTPUT_LIMIT = "output-limit"
    STEP_TIMEOUT = "step-timeout"


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What a client has given a submission so that a repeat starts nothing.

    Attributes:
        text: the key; each owner has keys of their own.
        fingerprint: the same for two submissions that ask for the same.
    """

    text: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class JobError:
    """What went wrong around a job, with the system's own words."""

    code: ErrorCode
    detail: str


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """A person's wish that a job should end.

    Attributes:
        by: the name of the token, or ``service`` when the service stops with ``on_stop = kill``.
        at: when it was asked; None until the store has taken it.
        signal: what is sent first; a number.
        grace: seconds until SIGKILL; None: the job's own.
    """

    by: str
    at: datetime
    signal: int
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class SentSignal:
    """A signal that the executor has sent to a job, and when."""

    signal: int
    at: datetime

    def to_json(self) -> list[Any]:
        """Return what the database keeps."""
        return [self.signal, self.at.isoformat()]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Self:
        """Turn stored JSON back."""
        return cls(signal=data[0], at=datetime.fromisoformat(data[1]))


class DialectNumber(NamedTuple):
    """What a dialect calls one of its jobs."""

    api: str
    number: int


@dataclass(frozen=True, slots=True)
class StepSpan:
    """When a step has run; ``finished_at`` is None for the one that is on."""

    started_at: datetime
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What has become of a step.

    Attributes:
        status: None while it has not ended, when nothing ran, or when it could not be learnt.
        error: what went wrong around it, if it is the one that has decided the job's end, or is about to.
    """

    state: StepState
    started_at: datetime | None = None
    finished_at: datetime | None = None
    status: ExitStatus | None = None
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is stored of a submission at first.

    Attributes:
        is_numbered: it came through a dialect, which counts its jobs.
    """

    id: str
    owner: str
    api: str
    created_at: datetime
    spec: JobSpec
    is_numbered: bool = False


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job ended: everything that the last row update says.

    Attributes:
        status: the exit status as seen, or None when nothing ran or it could not be learnt.
        stdout_bytes, stderr_bytes: length of the streams at the end.
        disk_bytes: disk blocks held by the job's files at the end.
    """

    state: JobState
    finished_at: datetime
    status: ExitStatus | None = None
    error: JobError | None = None
    signals: tuple[SentSignal, ...] = ()
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A row of the store, as it was when it was read.

    Attributes:
        number: counts up from 1 and is never given twice.
        status: the exit status as seen; None while active, when nothing ran, or when it could not be learnt.
        error: what went wrong around it; of a job that still runs, why it was told to end.
        executor: who runs or ran it; None while queued.
        signals: what the executor has sent it so far.
        ending: the state that it will end in because it was told to end; None when it was not.
        spans: of the steps that have ended well, and of the one after them; empty while that is the first.
        stdout_bytes, stderr_bytes: length of the streams at the end; 0 while active (ask the spool).
        holes: what is no longer kept of the streams; it grows while the job writes on.
        dialect_number: counts the jobs of a dialect, from 0; None: it came through none.
    """

    number: int
    id: str
    owner: str
    api: str
    spec: JobSpec
    state: JobState
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    status: ExitStatus | None = None
    error: JobError | None = None
    cancel: CancelRequest | None = None
    signals: tuple[SentSignal, ...] = ()
    executor: str | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    holes: Mapping[Stream, Hole] = field(default_factory=dict)
    ending: JobState | None = None
    spans: tuple[StepSpan, ...] = ()
    dialect_number: int | None = None

    @property
    def deadline_at(self) -> datetime | None:
        """When the timeout strikes; None while queued. An instant: a restart gives a job no more time."""
        return self.started_at + timedelta(seconds=self.spec.timeout) if self.started_at is not None else None

    def step_results(self) -> tuple[StepResult, ...]:
        """Return what has become of each step.

        Only the last one that began says more than that it went well: it is what the job itself says.
        """
        rest = StepState.SKIPPED if self.state.is_ended else StepState.QUEUED
        results: list[StepResult] = []
        if self.started_at is not None:
            *before, last = self.spans or (StepSpan(self.started_at),)
            good = ExitStatus(code=0)
            results += [StepResult(StepState.SUCCEEDED, span.started_at, span.finished_at, good) for span in before]
            results.append(
                StepResult(StepState(self.state.value), last.started_at, self.finished_at, self.status, self.error)
            )
        return (*results, *[StepResult(rest)] * (len(self.spec.steps) - len(results)))


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows; everything given must hold.

    Attributes:
        states: one of these; empty is all.
        labels: all of these.
        since, until: bounds of created_at, both included.
        text: a substring of name or command, letters compared without case (ASCII).
    """

    states: frozenset[JobState] = frozenset()
    name: str | None = None
    owner: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None


def parse_label_filters(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Make the labels of a filter of what somebody wants to see.

    Raises:
        InvalidRequest: no job can have these.
    """
    labels: dict[str, str] = {}
    for key, value in pairs:
        if labels.setdefault(key, value) != value:
            raise InvalidRequest.at("?label", f"no job has two values for {key!r}")
        if len(labels) > LABELS_MAX:
            raise InvalidRequest.at("?label", f"no job has more than {LABELS_MAX} labels; ask for at most {LABELS_MAX}")
    return labels


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of a list, newest first.

    Attributes:
        before: where the next page begins (numbers below this one); None when there is no more.
    """

    jobs: tuple[Job, ...]
    before: int | None
