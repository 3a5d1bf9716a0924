"""One command of a job, and the rules that hold for it whoever asks."""

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from jobrunner.domain.arguments import (
    PATH_MAX,
    RESERVED_ENV_PREFIX,
    VARIABLES_MAX,
    argument_problem,
    count_bytes,
    variable_problem,
)
from jobrunner.domain.errors import Problem

COOKIE = f"{RESERVED_ENV_PREFIX}ID"
"""The environment variable that tells, of any process, which job it belongs to."""

STEP_COOKIE = f"{RESERVED_ENV_PREFIX}STEP"
"""The environment variable that tells which step of it, by index."""

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


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a job.

    Attributes:
        kind: how `argv` came about.
        argv: what is executed. For ``source`` the file is written when the
            job starts, so that its path is put in front then: see `command_line`.
        env: added to the job's own.
        cwd: in the place of the job's; None: that.
        timeout: seconds that it may run; None: as long as the job may.
        name: for people.
        executable: the absolute path of the file that is executed, with `argv` as it is; None: what the first word
            of `argv` leads to when the step starts.
    """

    kind: StepKind
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    timeout: float | None = None
    name: str | None = None
    executable: str | None = None

    def command_line(self, source_path: str) -> tuple[str, ...]:
        """Return the exact argv of the process.

        Args:
            source_path: where the text of a ``source`` is, or will be, written.
        """
        if self.kind is not StepKind.SOURCE:
            return self.argv
        return (*self.argv, source_path)

    @property
    def summary(self) -> str:
        """The command for people and for searching."""
        return self.argv[-1] if self.kind is StepKind.COMMAND else " ".join(self.argv)

    def problems(self, at: str) -> Iterator[Problem]:
        """Name what is wrong with it.

        Args:
            at: a pointer to where the client wrote it.
        """
        for index, argument in enumerate(self.argv):
            yield from unicode_problems(_argv_pointer(at, self.kind, index), argument)
        yield from _argv_problems(at, self.kind, self.argv)
        yield from env_problems(f"{at}/env", self.env)
        yield from cwd_problems(f"{at}/cwd", self.cwd)
        yield from name_problems(f"{at}/name", self.name)

    def to_json(self) -> dict[str, Any]:
        """Return what the database keeps; `from_json` turns it back. What says nothing is left out."""
        members = {
            "env": dict(self.env),
            "cwd": self.cwd,
            "timeout": self.timeout,
            "name": self.name,
            "executable": self.executable,
        }
        said = {member: value for member, value in members.items() if value not in ({}, None)}
        return {"kind": self.kind.value, "argv": list(self.argv), **said}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Turn stored JSON back."""
        return cls(
            kind=StepKind(data["kind"]),
            argv=tuple(data["argv"]),
            env=data.get("env", {}),
            cwd=data.get("cwd"),
            timeout=data.get("timeout"),
            name=data.get("name"),
            executable=data.get("executable"),
        )


def source_interpreter(source: bytes) -> tuple[str, ...]:
    """Return what goes in front of the file of a ``source``: nothing when its ``#!`` line names the interpreter."""
    return () if source.startswith(b"#!") else (SHELL,)


# ── rules that hold for a job as for a step ──────────────────────────────────

NAME_MAX = 128


def escape_pointer(key: str) -> str:
    """Escape an object's key for a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def leaves_scratch(cwd: str) -> bool:
    """Tell whether a relative path leaves the directory it starts in, by its words alone."""
    normal = posixpath.normpath(cwd)
    return normal == ".." or normal.startswith("../")


def has_control(text: str) -> bool:
    """Tell whether a text holds control characters (ASCII)."""
    return any(character < " " or character == "\x7f" for character in text)


def unicode_problems(pointer: str, text: str) -> Iterator[Problem]:
    """Name what is wrong with a text that can't be UTF-8, as the database, a process and an answer need it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        yield Problem(pointer, "must be Unicode: half of a surrogate pair is no character")


def env_problems(at: str, env: Mapping[str, str]) -> Iterator[Problem]:
    """Name what is wrong with variables that are to be added to an environment."""
    for name, value in env.items():
        pointer = f"{at}/{escape_pointer(name)}"
        yield from unicode_problems(pointer, name + value)
        if problem := variable_problem(name, value):
            yield Problem(pointer, problem)
    if len(env) > VARIABLES_MAX:
        yield Problem(at, f"at most {VARIABLES_MAX:,} variables, has {len(env):,}")


def cwd_problems(at: str, cwd: str | None) -> Iterator[Problem]:
    """Name what is wrong with a working directory."""
    if cwd is None:
        return
    yield from unicode_problems(at, cwd)
    if not cwd or "\0" in cwd:
        yield Problem(at, "must be a path, without NUL")
    elif count_bytes(cwd) > PATH_MAX:
        yield Problem(at, f"must have at most {PATH_MAX:,} bytes: the system knows no longer path")
    elif not cwd.startswith("/") and leaves_scratch(cwd):
        yield Problem(at, "a relative path starts in the job's scratch directory and must not leave it")


def name_problems(at: str, name: str | None) -> Iterator[Problem]:
    """Name what is wrong with a name."""
    if name is None:
        return
    yield from unicode_problems(at, name)
    if not 1 <= len(name) <= NAME_MAX:
        yield Problem(at, f"must have 1 to {NAME_MAX} characters")
    if has_control(name):
        yield Problem(at, "must not hold control characters")


def _argv_pointer(at: str, kind: StepKind, index: int) -> str:
    """Return where the client wrote a word of the command line."""
    if kind is StepKind.COMMAND:
        return f"{at}/command"
    if kind is StepKind.SCRIPT:
        return f"{at}/args/{index - 1}" if index else f"{at}/script"
    return f"{at}/argv/{index}"


def _argv_problems(at: str, kind: StepKind, argv: tuple[str, ...]) -> Iterator[Problem]:
    if kind is StepKind.SOURCE:
        return
    member = "command" if kind is StepKind.COMMAND else "argv"
    if not argv or not argv[0]:
        yield Problem(f"{at}/{member}", "must name a program to run")
    elif kind is StepKind.COMMAND and not argv[-1].strip():
        yield Problem(f"{at}/command", "must not be empty")
    for index, argument in enumerate(argv):
        if problem := argument_problem(argument):
            yield Problem(_argv_pointer(at, kind, index), problem)
