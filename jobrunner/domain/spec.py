"""What a job is asked to do.

An API (``/v1``, a dialect) translates what it was sent to a `JobSpec`;
`JobSpec.problems` holds the rules that are the same for all of them. Rules that
depend on the configuration are in ``service``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self

from jobrunner.domain.arguments import together_problem
from jobrunner.domain.errors import Problem
from jobrunner.domain.states import Priority
from jobrunner.domain.step import (
    COOKIE,
    NAME_MAX,
    SHELL,
    STEP_COOKIE,
    Step,
    StepKind,
    cwd_problems,
    env_problems,
    escape_pointer,
    has_control,
    leaves_scratch,
    name_problems,
    source_interpreter,
    unicode_problems,
)

__all__ = [
    "COOKIE",
    "NAME_MAX",
    "SHELL",
    "STEP_COOKIE",
    "Holder",
    "Input",
    "InputInfo",
    "InputKind",
    "JobSpec",
    "Step",
    "StepKind",
    "escape_pointer",
    "leaves_scratch",
    "plain_name_problem",
    "source_interpreter",
]

FILES_MAX = 1000
LABELS_MAX = 32
LABEL_MAX = 256
STEPS_MAX = 100
SUMMARY_MAX = 1000


class InputKind(StrEnum):
    """What a text or file that came with a submission is for."""

    STDIN = "stdin"
    FILE = "file"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes that came with a submission; ``name`` is that of a file, or says of which step, see `source_name`."""

    kind: InputKind
    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class InputInfo:
    """An `Input` without its content."""

    kind: InputKind
    name: str
    size: int


class Holder(NamedTuple):
    """A process of this boot of the machine: a pid alone is no identity."""

    pid: int
    start_ticks: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One submission, without the content of its inputs.

    Attributes:
        steps: what is run, one after the other; the first that fails ends the job.
        env: added to the base environment, for all steps.
        bare_env: nothing of the base environment is there; its ``PATH`` is still where programs are looked up.
        cwd: of the steps that have none of their own. None is the job's scratch directory; a relative path starts
            there.
        make_cwd: the directory that a relative path names is made if it is missing.
        exclusive: not accepted while another job of its name is queued or running.
        merge_stderr: one stream for both, in the kernel's order.
        timeout: seconds that the job may run.
        grace: seconds between SIGTERM and SIGKILL.
        inputs: what came with it; the content is stored beside the row.
        callback_url: who is told of its end; None: nobody.
        paths: variables that hold paths, which start in the job's scratch directory.
        result: the name of a file there, empty at first, that is kept for itself.
        drops_scratch: the scratch directory is removed at the end, whatever ``[storage] keep_scratch`` says.
        doom: why nothing of it is ever started: it ends with that. None: it is as any job.
        holder: who has the connection of its client, and kills it when the client goes; it ends with that process, too.
            None: nobody, it is as any job.
    """

    steps: tuple[Step, ...]
    timeout: float
    grace: float
    env: Mapping[str, str] = field(default_factory=dict)
    bare_env: bool = False
    cwd: str | None = None
    make_cwd: bool = False
    merge_stderr: bool = False
    name: str | None = None
    exclusive: bool = False
    priority: Priority = Priority.NORMAL
    labels: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[InputInfo, ...] = ()
    callback_url: str | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    result: str | None = None
    drops_scratch: bool = False
    doom: str | None = None
    holder: Holder | None = None

    def cwd_of(self, step: Step) -> str | None:
        """Return where a step starts; None is the job's scratch directory."""
        return step.cwd if step.cwd is not None else self.cwd

    def environment_of(self, step: Step, base: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that a step's process gets, but for those that the service adds.

        Args:
            step: of this job.
            base: the base environment of jobs.
        """
        return {**({} if self.bare_env else base), **self.env, **step.env}

    def search_path_of(self, step: Step, base: Mapping[str, str]) -> str | None:
        """Return the ``PATH`` in which a step's program is looked up; None: there is none. Arguments as above."""
        return (base if self.bare_env else self.environment_of(step, base)).get("PATH")

    @property
    def environments(self) -> tuple[Mapping[str, str], ...]:
        """Every set of variables that it adds: the job's, and those of the steps."""
        return (self.env, *(step.env for step in self.steps))

    def input_info(self, kind: InputKind) -> list[InputInfo]:
        """Return what came with the job for this purpose, in the order given."""
        return [info for info in self.inputs if info.kind is kind]

    @property
    def summary(self) -> str:
        """The commands for people and for searching, on at most 1,000 characters."""
        return "; ".join(step.summary for step in self.steps)[:SUMMARY_MAX]

    def problems(self, *, is_sequence: bool = False) -> Iterator[Problem]:
        """Name what is wrong with it, whoever asked.

        Args:
            is_sequence: the client has written an array of steps, and not the one step as the job.
        """
        if not 1 <= len(self.steps) <= STEPS_MAX:
            yield Problem("#/steps", f"must have 1 to {STEPS_MAX} steps")
        for index, step in enumerate(self.steps):
            at = step_pointer(index, is_sequence=is_sequence)
            yield from step.problems(at)
            if problem := together_problem(step.argv, {**self.env, **step.env}):
                yield Problem(f"{at}/{step.kind.value}", problem)
        yield from env_problems("#/env", self.env)
        yield from cwd_problems("#/cwd", self.cwd)
        yield from _label_problems(self.labels)
        yield from name_problems("#/name", self.name)
        if self.exclusive and self.name is None:
            yield Problem("#/exclusive", "needs a name: it is the name that is exclusive")
        files = self.input_info(InputKind.FILE)
        if len(files) > FILES_MAX:
            yield Problem("#/files", f"at most {FILES_MAX:,} files, has {len(files):,}; send an archive")
        for info in files:
            pointer = f"#/files/{escape_pointer(info.name)}"
            yield from unicode_problems(pointer, info.name)
            # Of a job that is never started none is written.
            if self.doom is None and (reason := plain_name_problem(info.name)):
                yield Problem(pointer, reason)

    def to_json(self) -> dict[str, Any]:
        """Return what the database keeps; `from_json` turns it back."""
        rare = {
            "paths": dict(self.paths),
            "result": self.result,
            "drops_scratch": self.drops_scratch,
            "doom": self.doom,
            "holder": self.holder,
        }
        return {
            **{member: value for member, value in rare.items() if value not in ({}, None, False)},
            "steps": [step.to_json() for step in self.steps],
            "timeout": self.timeout,
            "grace": self.grace,
            "env": dict(self.env),
            "bare_env": self.bare_env,
            "cwd": self.cwd,
            "make_cwd": self.make_cwd,
            "merge_stderr": self.merge_stderr,
            "exclusive": self.exclusive,
            "labels": dict(self.labels),
            "inputs": [[info.kind.value, info.name, info.size] for info in self.inputs],
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], *, name: str | None, priority: Priority, callback_url: str | None = None
    ) -> Self:
        """Turn stored JSON back; name, priority and callback have columns of their own."""
        return cls(
            # Rows of before there were sequences have the one step in the place of the job.
            steps=tuple(map(Step.from_json, data["steps"])) if "steps" in data else (_first_step(data),),
            timeout=data["timeout"],
            grace=data["grace"],
            env=data["env"],
            # With `get`: a row may be older than the member.
            bare_env=data.get("bare_env", False),
            cwd=data["cwd"],
            make_cwd=data.get("make_cwd", False),
            merge_stderr=data["merge_stderr"],
            exclusive=data.get("exclusive", False),
            name=name,
            priority=priority,
            labels=data["labels"],
            inputs=tuple(InputInfo(InputKind(kind), name, size) for kind, name, size in data["inputs"]),
            callback_url=callback_url,
            paths=data.get("paths", {}),
            result=data.get("result"),
            drops_scratch=data.get("drops_scratch", False),
            doom=data.get("doom"),
            holder=Holder(*data["holder"]) if "holder" in data else None,
        )


def step_pointer(index: int, *, is_sequence: bool) -> str:
    """Return where the client wrote a step: in an array, or as the job."""
    return f"#/steps/{index}" if is_sequence else "#"


def source_name(index: int) -> str:
    """Return the name of the `Input` that is the text of a ``source`` step; that of the first one is empty."""
    return str(index) if index else ""


def plain_name_problem(name: str) -> str | None:
    """Say why this can't be the name of a file directly in a job's scratch directory, or return None."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        return "must be a plain file name, without / and not . or .."
    if len(name.encode(errors="surrogatepass")) > 255:
        return "must have at most 255 bytes"
    return None


def _first_step(data: Mapping[str, Any]) -> Step:
    return Step(StepKind(data["kind"]), tuple(data["argv"]))


def _label_problems(labels: Mapping[str, str]) -> Iterator[Problem]:
    if len(labels) > LABELS_MAX:
        yield Problem("#/labels", f"at most {LABELS_MAX} labels")
    for key, value in labels.items():
        pointer = f"#/labels/{escape_pointer(key)}"
        yield from unicode_problems(pointer, key + value)
        if not key or ":" in key or len(key) > LABEL_MAX or has_control(key):
            yield Problem(pointer, f"a key has 1 to {LABEL_MAX} characters, no colon and no control characters")
        if len(value) > LABEL_MAX or has_control(value):
            yield Problem(pointer, f"a value has at most {LABEL_MAX} characters and no control characters")
