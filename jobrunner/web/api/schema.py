"""The models of requests: what they are validated by, and what ``/openapi.json`` is made of.

They check types and shapes. Rules that hold for every API (NUL bytes, names,
ranges) are in `jobrunner.domain.spec` and ``service``; here, and for single
members in `jobrunner.web.api.fields`, they are only described.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from jobrunner.domain.spec import FILES_MAX, LABELS_MAX, STEPS_MAX, StepKind
from jobrunner.domain.states import JobState, Priority
from jobrunner.service.submission import StepAsked
from jobrunner.service.submission import Submission as Asked
from jobrunner.web.api.fields import (
    Argument,
    CallbackUrl,
    Command,
    Content,
    Directory,
    Environment,
    FileName,
    Flag,
    Include,
    LabelKey,
    LabelValue,
    Name,
    Seconds,
    SignalName,
    Text,
    Time,
    Wait,
    Words,
)

_NULL: dict[str, JsonValue] = {"type": "null"}


def _exactly_one(*names: str) -> JsonValue:
    """Describe that exactly one of these members is given, and `args` with `script` only."""
    return [
        {
            "required": [name],
            "properties": {
                **dict.fromkeys(names, _NULL),
                **({} if name == StepKind.SCRIPT else {"args": _NULL}),
                name: {"not": _NULL},
            },
        }
        for name in names
    ]


class Body(BaseModel):
    """A request body: members are exactly those named, of exactly these types."""

    # Bytes are written as base64 for the fingerprint of an idempotency key.
    model_config = ConfigDict(extra="forbid", strict=True, ser_json_bytes="base64")


class Query(BaseModel):
    """A query: its values are text, so types are read from it."""

    model_config = ConfigDict(extra="forbid")


class NoQuery(Query):
    """A query without parameters."""


class What(Body):
    """What one process runs, and with what around it."""

    _kinds: ClassVar[tuple[str, ...]] = tuple(StepKind)

    command: Command | None = Field(None, description="one string, run by `/bin/sh -c`")
    argv: Words | None = Field(None, description="a program and its arguments, executed directly")
    script: Text | None = Field(None, description="a file of the catalogue, executed directly")
    args: list[Argument] | None = Field(None, description="arguments of `script`")
    source: str | None = Field(
        None, description="text of a script; its `#!` line names the interpreter, else `/bin/sh`"
    )
    env: Environment = Field({}, description="added to the base environment")
    cwd: Directory | None = Field(None, description="relative paths start in the job's scratch directory, the default")
    timeout: Seconds | None = Field(
        None, description="seconds the job may run", json_schema_extra={"exclusiveMinimum": 0}
    )
    name: Name | None = Field(None, description="for people")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in self._kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            *most, last = self._kinds
            found = " and ".join(given) or "none of them"
            raise ValueError(f"must have exactly one of {', '.join(most)} and {last}, has {found}")
        if self.args is not None and self.script is None:
            raise ValueError("has args without script; the arguments of a program go into argv")
        return self

    def kind_and_words(self) -> tuple[StepKind, tuple[str, ...], bytes]:
        """Return in which way it says what to run; the words of that; the text of a source."""
        if self.command is not None:
            return StepKind.COMMAND, (self.command,), b""
        if self.argv is not None:
            return StepKind.ARGV, tuple(self.argv), b""
        if self.script is not None:
            return StepKind.SCRIPT, (self.script, *(self.args or [])), b""
        return StepKind.SOURCE, (), (self.source or "").encode()


class Step(What):
    """One of several steps. Exactly one of `command`, `argv`, `script` and `source` says what it runs."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _exactly_one(*StepKind)})

    env: Environment = Field({}, description="added to the job's own")
    cwd: Directory | None = Field(None, description="in the place of the job's")
    timeout: Seconds | None = Field(
        None,
        description="seconds the step may run; default: as long as the job",
        json_schema_extra={"exclusiveMinimum": 0},
    )

    def to_domain(self) -> StepAsked:
        """Translate to the words of the service."""
        return StepAsked(*self.kind_and_words(), env=self.env, cwd=self.cwd, timeout=self.timeout, name=self.name)


class Submission(What):
    """A job to run. Exactly one of `command`, `argv`, `script`, `source` and `steps` says what."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _exactly_one(*StepKind, "steps")})

    _kinds: ClassVar[tuple[str, ...]] = (*StepKind, "steps")

    steps: list[Step] | None = Field(
        None,
        description="run in this order; the first that fails ends the job",
        json_schema_extra={"minItems": 1, "maxItems": STEPS_MAX},
    )
    stdin: Content = Field(b"", description="fed to the first step")
    files: dict[FileName, Content] = Field(
        {},
        description="written into the scratch directory before the start",
        json_schema_extra={"maxProperties": FILES_MAX},
    )
    stderr: Literal["separate", "stdout"] = Field("separate", description="`stdout` merges it in the kernel's order")
    grace: Seconds | None = Field(None, description="seconds between SIGTERM and SIGKILL")
    exclusive: bool = Field(False, description="409 while a job of this name is queued or running")
    priority: Literal["low", "normal", "high"] = Field(
        "normal", description="strict order; first in, first out within one"
    )
    labels: dict[LabelKey, LabelValue] = Field(
        {}, description="for filtering", json_schema_extra={"maxProperties": LABELS_MAX}
    )
    callback_url: CallbackUrl | None = Field(None, description="told when the job ends")

    def to_domain(self) -> Asked:
        """Translate to the words of the service."""
        if self.steps is not None:
            steps = tuple(step.to_domain() for step in self.steps)
        else:
            steps = (StepAsked(*self.kind_and_words()),)
        return Asked(
            steps,
            is_sequence=self.steps is not None,
            env=self.env,
            cwd=self.cwd,
            stdin=self.stdin,
            files=self.files,
            merge_stderr=self.stderr == "stdout",
            timeout=self.timeout,
            grace=self.grace,
            name=self.name,
            exclusive=self.exclusive,
            priority=Priority(self.priority),
            labels=self.labels,
            callback_url=self.callback_url,
        )


class Cancel(Body):
    """How to end a job; all of it is optional."""

    signal: SignalName | None = Field(None, description="sent first; default SIGTERM")
    grace: Seconds | None = Field(None, description="seconds until SIGKILL; 0 escalates now; default: the job's own")


class Signal(Body):
    """A signal for a running job."""

    signal: SignalName = Field(description="like SIGUSR1")


class JobPath(BaseModel):
    """Which job: its uuid or its number."""

    job_id: str = Field(description="the job's uuid or number")


class StreamPath(JobPath):
    """Which stream of which job."""

    stream: Literal["stdout", "stderr"]


class FilePath(JobPath):
    """Which file of which job."""

    file: str = Field(description="from the scratch directory; as the `href` of the list has it")


class RerunQuery(Query):
    """Options of a repetition."""

    wait: Wait = None


class SubmitQuery(RerunQuery):
    """Options of a submission."""

    dry_run: bool = Field(False, description="only say what would be run; nothing is stored")


class JobQuery(Query):
    """Options of a look-up."""

    wait: Wait = None
    include: Include = None


class DeleteQuery(Query):
    """Options of a deletion."""

    force: bool = Field(False, description="kill it first if it has not ended")


class FileQuery(Query):
    """Options of a download."""

    download: Flag = Field(False, description="have a browser save it")


class OutputQuery(FileQuery):
    """Options of the download of a stream."""

    follow: Flag = Field(False, description="go on with what comes, until the job has ended")
    offset: int | None = Field(None, ge=0, lt=1 << 63, description="with `follow`: where to begin; default 0")
    tail: Annotated[int | None, Field(ge=0, description="only so many bytes from the end")] = None


class EventsQuery(Query):
    """Options of the events."""

    signature: str | None = Field(None, description="in the place of a token; `stream-url` makes it")


class ListQuery(Query):
    """Filters of a list; everything given must hold."""

    state: list[Literal[*(state.value for state in JobState), "active", "ended"]] = Field(  # type: ignore[valid-type]
        [], description="one of these; `active` is queued or running, `ended` all others"
    )
    name: str | None = None
    label: list[Annotated[str, Field(pattern=r"^[^:]+:")]] = Field(
        [], description="`key:value`; all of these", json_schema_extra={"maxItems": LABELS_MAX}
    )
    owner: str | None = None
    since: Time | None = Field(None, description="created at or after")
    until: Time | None = Field(None, description="created at or before")
    q: str | None = Field(None, description="a substring of name or command", max_length=200)
    limit: int = Field(50, ge=1, le=1000)
    cursor: str | None = Field(None, description="from `next` of the page before")
