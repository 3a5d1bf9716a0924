"""What a job is asked to do.

A face of the service (the HTTP API, the command line) translates what it was
sent to a `JobSpec`; `JobSpec.problems` holds the rules that are the same for
all of them. Rules that depend on the configuration are in ``service``.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from jobrunner.domain.errors import Problem
from jobrunner.domain.states import Priority

NAME_MAX = 128
LABELS_MAX = 32
LABEL_MAX = 256
RESERVED_ENV_PREFIX = "JOBRUNNER_JOB_"
"""Names the service itself puts into a job's environment."""

COOKIE = f"{RESERVED_ENV_PREFIX}ID"
"""The environment variable that tells, of any process, which job it belongs to."""

SHELL = "/bin/sh"


class StepKind(StrEnum):
    """In which of the four ways a step says what to run."""

    COMMAND = "command"
    ARGV = "argv"
    SCRIPT = "script"
    SOURCE = "source"

    @property
    def needs_shell(self) -> bool:
        """Whether policy may refuse it for being a shell's."""
        return self in {StepKind.COMMAND, StepKind.SOURCE}


class InputKind(StrEnum):
    """What a text or file that came with a submission is for."""

    STDIN = "stdin"
    FILE = "file"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Input:
    """Bytes that came with a submission; ``name`` is empty but for files."""

    kind: InputKind
    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class InputInfo:
    """An `Input` without its content."""

    kind: InputKind
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One submission, without the content of its inputs.

    Attributes:
        kind: how `argv` came about.
        argv: what is executed. For ``source`` the file is written when the
            job starts, so that its path is put in front then: see `command_line`.
        env: added to the base environment.
        cwd: None is the job's scratch directory; a relative path starts there.
        exclusive: not accepted while another job of its name is queued or running.
        merge_stderr: one stream for both, in the kernel's order.
        timeout: seconds that the job may run.
        grace: seconds between SIGTERM and SIGKILL.
        inputs: what came with it; the content is stored beside the row.
        callback_url: who is told of its end; None: nobody.
    """

    kind: StepKind
    argv: tuple[str, ...]
    timeout: float
    grace: float
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    merge_stderr: bool = False
    name: str | None = None
    exclusive: bool = False
    priority: Priority = Priority.NORMAL
    labels: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[InputInfo, ...] = ()
    callback_url: str | None = None

    def command_line(self, source_path: str) -> tuple[str, ...]:
        """Return the exact argv of the process.

        Args:
            source_path: where the text of a ``source`` job is, or will be, written.
        """
        if self.kind is not StepKind.SOURCE:
            return self.argv
        return (*self.argv, source_path)

    def input_info(self, kind: InputKind) -> list[InputInfo]:
        """Return what came with the job for this purpose, in the order given."""
        return [info for info in self.inputs if info.kind is kind]

    @property
    def summary(self) -> str:
        """The command for people and for searching, on at most 1,000 characters."""
        text = self.argv[-1] if self.kind is StepKind.COMMAND else " ".join(self.argv)
        return text[:1000]

    def problems(self) -> Iterator[Problem]:
        """Name what is wrong with it, whoever asked."""
        for pointer, text in self._texts():
            if not _is_unicode(text):
                yield Problem(pointer, "must be Unicode: half of a surrogate pair is no character")
        yield from _argv_problems(self.kind, self.argv)
        yield from _env_problems(self.env)
        yield from _cwd_problems(self.cwd)
        yield from _label_problems(self.labels)
        if self.exclusive and self.name is None:
            yield Problem("#/exclusive", "needs a name: it is the name that is exclusive")
        if self.name is not None and not 1 <= len(self.name) <= NAME_MAX:
            yield Problem("#/name", f"must have 1 to {NAME_MAX} characters")
        if self.name is not None and _has_control(self.name):
            yield Problem("#/name", "must not hold control characters")
        for info in self.input_info(InputKind.FILE):
            if reason := plain_name_problem(info.name):
                yield Problem(f"#/files/{escape_pointer(info.name)}", reason)

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Name every text with the place where the client wrote it."""
        for index, argument in enumerate(self.argv):
            yield _argv_pointer(self.kind, index), argument
        for member, pairs in (("env", self.env), ("labels", self.labels)):
            for key, value in pairs.items():
                yield f"#/{member}/{escape_pointer(key)}", key + value
        yield "#/cwd", self.cwd or ""
        yield "#/name", self.name or ""
        for info in self.input_info(InputKind.FILE):
            yield f"#/files/{escape_pointer(info.name)}", info.name

    def to_json(self) -> dict[str, Any]:
        """Return what the database keeps; `from_json` turns it back."""
        return {
            "kind": self.kind.value,
            "argv": list(self.argv),
            "timeout": self.timeout,
            "grace": self.grace,
            "env": dict(self.env),
            "cwd": self.cwd,
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
            kind=StepKind(data["kind"]),
            argv=tuple(data["argv"]),
            timeout=data["timeout"],
            grace=data["grace"],
            env=data["env"],
            cwd=data["cwd"],
            merge_stderr=data["merge_stderr"],
            exclusive=data.get("exclusive", False),  # not in rows of 0.1
            name=name,
            priority=priority,
            labels=data["labels"],
            inputs=tuple(InputInfo(InputKind(kind), name, size) for kind, name, size in data["inputs"]),
            callback_url=callback_url,
        )


def source_interpreter(source: bytes) -> tuple[str, ...]:
    """Return what goes in front of the file of a ``source``: nothing when its ``#!`` line names the interpreter."""
    return () if source.startswith(b"#!") else (SHELL,)


def plain_name_problem(name: str) -> str | None:
    """Say why this can't be the name of a file directly in a job's scratch directory, or return None."""
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        return "must be a plain file name, without / and not . or .."
    if len(name.encode(errors="surrogatepass")) > 255:
        return "must have at most 255 bytes"
    return None


def escape_pointer(key: str) -> str:
    """Escape an object's key for a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def leaves_scratch(cwd: str) -> bool:
    """Tell whether a relative path leaves the directory it starts in, by its words alone."""
    normal = posixpath.normpath(cwd)
    return normal == ".." or normal.startswith("../")


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _has_control(text: str) -> bool:
    return _CONTROL.search(text) is not None


def _is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8, as the database, a process and an answer need it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _argv_pointer(kind: StepKind, index: int) -> str:
    """Return where the client wrote a word of the command line."""
    if kind is StepKind.COMMAND:
        return "#/command"
    if kind is StepKind.SCRIPT:
        return f"#/args/{index - 1}" if index else "#/script"
    return f"#/argv/{index}"


def _argv_problems(kind: StepKind, argv: tuple[str, ...]) -> Iterator[Problem]:
    if kind is StepKind.SOURCE:
        return
    member = "command" if kind is StepKind.COMMAND else "argv"
    if not argv or not argv[0]:
        yield Problem(f"#/{member}", "must name a program to run")
    elif kind is StepKind.COMMAND and not argv[-1].strip():
        yield Problem("#/command", "must not be empty")
    for index, argument in enumerate(argv):
        if "\0" in argument:
            yield Problem(_argv_pointer(kind, index), "must not hold the NUL character: no program can be given one")


def _env_problems(env: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in env.items():
        pointer = f"#/env/{escape_pointer(name)}"
        if not name or "=" in name or "\0" in name:
            yield Problem(pointer, "a name must not be empty and must not hold = or NUL")
        elif name.startswith(RESERVED_ENV_PREFIX):
            yield Problem(pointer, f"names that begin with {RESERVED_ENV_PREFIX} are the service's own")
        if "\0" in value:
            yield Problem(pointer, "must not hold the NUL character")


def _cwd_problems(cwd: str | None) -> Iterator[Problem]:
    if cwd is None:
        return
    if not cwd or "\0" in cwd:
        yield Problem("#/cwd", "must be a path, without NUL")
    elif not cwd.startswith("/") and leaves_scratch(cwd):
        yield Problem("#/cwd", "a relative path starts in the job's scratch directory and must not leave it")


def _label_problems(labels: Mapping[str, str]) -> Iterator[Problem]:
    if len(labels) > LABELS_MAX:
        yield Problem("#/labels", f"at most {LABELS_MAX} labels")
    for key, value in labels.items():
        pointer = f"#/labels/{escape_pointer(key)}"
        if not key or ":" in key or len(key) > LABEL_MAX or _has_control(key):
            yield Problem(pointer, f"a key has 1 to {LABEL_MAX} characters, no colon and no control characters")
        if len(value) > LABEL_MAX or _has_control(value):
            yield Problem(pointer, f"a value has at most {LABEL_MAX} characters and no control characters")
