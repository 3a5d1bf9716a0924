"""The models of answers: for ``/openapi.json`` only. A test holds real answers against them."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, RootModel

from jobrunner.domain.callback import CallbackState
from jobrunner.domain.job import ErrorCode
from jobrunner.domain.spec import StepKind
from jobrunner.domain.states import JobState, StepState
from jobrunner.scratch import EntryType


class Document(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="forbid")


class ProblemDetail(Document):
    """What is wrong with one member of a request."""

    pointer: str
    detail: str


class ProblemDocument(Document):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[ProblemDetail] | None = None
    retry_after: int | None = None
    checks: dict[str, str | None] | None = None
    job_id: str | None = None


class LimitsDocument(Document):
    """What the service sets to every job."""

    output_bytes: int
    on_output_limit: Literal["drop-middle", "kill"]


class PlannedDocument(Document):
    """One command of a job; `env_names` are those that it has besides the job's."""

    index: int
    name: str | None
    kind: StepKind
    argv: list[str]
    cwd: str | None
    env_names: list[str]
    timeout: float | None


class PlannedStepDocument(PlannedDocument):
    """One command of a job that might be."""

    rule: str


class PlanDocument(Document):
    """What a submission would run: the answer to a dry run."""

    argv: list[str]
    cwd: str | None
    env_names: list[str]
    timeout: float
    grace: float
    limits: LimitsDocument
    rule: str
    steps: list[PlannedStepDocument]


class ErrorDocument(Document):
    """What went wrong around a job, with the system's own words."""

    code: ErrorCode
    detail: str


class StepDocument(PlannedDocument):
    """One command of a job, and what has become of it."""

    state: StepState
    exit_code: int | None
    signal: str | None
    error: ErrorDocument | None
    started_at: datetime | None
    finished_at: datetime | None


class StreamDocument(Document):
    """An output stream; `text` only with `include=output`."""

    bytes: int
    dropped_bytes: int
    href: str
    text: str | None = None
    text_offset: int | None = None


class SizeDocument(Document):
    """The size of what came with a job."""

    bytes: int


class FileDocument(SizeDocument):
    """A file that came with a job."""

    name: str


class EntryDocument(Document):
    """An entry of a scratch directory; `path` is for people, `href` is null for all but files."""

    path: str
    type: EntryType
    bytes: int | None
    modified_at: datetime | None
    href: str | None


class FileListDocument(Document):
    """What is in a scratch directory."""

    files: list[EntryDocument]
    truncated: bool


class SentSignalDocument(Document):
    """A signal that a job was sent."""

    signal: str
    at: datetime


class CancelDocument(Document):
    """Who wanted a job to end, and what was done."""

    by: str
    at: datetime
    signals: list[SentSignalDocument]
    escalated: bool


class JobDocument(Document):
    """A job and what became of it."""

    id: str
    number: int
    name: str | None
    owner: str
    labels: dict[str, str]
    api: str
    state: JobState
    priority: Literal["low", "normal", "high"]
    exclusive: bool
    steps: list[StepDocument]
    exit_code: int | None
    signal: str | None
    error: ErrorDocument | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    duration: float | None
    timeout: float
    grace: float
    callback_url: str | None
    env_names: list[str]
    stdin: SizeDocument
    files: list[FileDocument]
    stdout: StreamDocument
    stderr: StreamDocument
    cancel: CancelDocument | None


class SubmittedDocument(RootModel[JobDocument | PlanDocument]):
    """What has become of a submission; what would, if it was a dry run."""


class JobListDocument(Document):
    """A page of jobs, newest first."""

    jobs: list[JobDocument]
    next: str | None


class AttemptDocument(Document):
    """A try to send a callback."""

    at: datetime
    status: int | None
    error: str | None


class CallbackDocument(Document):
    """What became of a callback; `id` is the `webhook-id` of all its attempts."""

    id: str
    url: str
    state: CallbackState
    next_attempt_at: datetime | None
    attempts: list[AttemptDocument]


class CallbackListDocument(Document):
    """The callbacks of a job."""

    callbacks: list[CallbackDocument]


class StreamUrlDocument(Document):
    """A URL of a job's events that needs no token."""

    url: str
    expires_at: datetime


class ScriptDocument(Document):
    """A catalogued script."""

    name: str
    description: str
    bytes: int
    modified_at: datetime


class ScriptListDocument(Document):
    """The catalogue."""

    scripts: list[ScriptDocument]


class StatsDocument(Document):
    """How much there is to do, and how much is kept."""

    queued: int
    running: int
    slots: int
    states: dict[JobState, int]
    waiters: int
    followers: int
    spool_bytes: int
    free_bytes: int


class HealthDocument(Document):
    """The process answers."""

    status: Literal["ok"]
