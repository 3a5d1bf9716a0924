"""What clients of go-jobrunner ask for: one command or several, checked in the original's order and words."""

import uuid
from dataclasses import dataclass
from typing import Any, TypeVar

from jobrunner.domain.errors import InvalidRequest, Problem
from jobrunner.domain.spec import StepKind, leaves_scratch
from jobrunner.service.submission import StepAsked, Submission
from jobrunner.web.dialects.go import Members, parse_json

SHELL = "bash"

_NOTHING = ":"
"""The command that does nothing."""

T = TypeVar("T")


class Wrong(InvalidRequest):
    """It can't be done as written; told in exactly these words."""

    def __init__(self, text: str) -> None:
        super().__init__([Problem("#", text)])
        self.args = (text,)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for.

    Attributes:
        commands: how many; None: it was written as the one that is the job.
        images: of containers that commands are to run in.
    """

    submission: Submission
    commands: int | None
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Command:
    """A member of ``Commands``; what is missing is None, as is what is empty of what must not be."""

    kind: str | None
    line: str | None
    env: dict[str, str] | None
    cwd: str | None
    image: str | None


def parse_submission(body: bytes) -> Asked:
    """Read what is to be run.

    Raises:
        Wrong: it is nothing that could be.
    """
    try:
        members = _object(parse_json(body), "the body")
    except ValueError as error:
        raise Wrong(f"the body is not JSON: {error}") from None
    # As in Go, types come before anything that is missing, wherever they are.
    line = _member(members, "CommandLine", str)
    env = _variables(members)
    cwd = _member(members, "WorkingDir", str)
    listed = _member(members, "Commands", list)
    commands = [_command(value) for value in listed] if listed is not None else None
    if commands is None:
        if not line:
            raise Wrong("Missing CommandLine key.")
        if env is None:
            raise Wrong("Missing Environment key.")
        submission = Submission((_step(line),), env=env, bare_env=True, merge_stderr=True)
        return Asked(submission, None)
    steps = tuple(map(_checked_step, commands))
    # A job has a step: one without commands has one that does nothing, and so ends at once.
    submission = Submission(
        steps or (_step(_NOTHING),),
        is_sequence=True,
        bare_env=True,
        cwd=_checked_cwd(cwd),
        make_cwd=True,
        merge_stderr=True,
    )
    images = [command.image for command in commands if command.kind == "docker" and command.image is not None]
    return Asked(submission, len(steps), tuple(images))


def command_ids(job_id: str, count: int) -> list[str]:
    """Name the commands of a job: always the same for the same job."""
    return [str(uuid.uuid5(uuid.UUID(job_id), str(index))) for index in range(count)]


def _command(value: Any) -> _Command:
    members = _object(value, "a member of Commands")
    registry, repository, tag = (_member(members, name, str) for name in ("Registry", "Repository", "Tag"))
    return _Command(
        kind=_member(members, "Kind", str) or None,
        line=_member(members, "CommandLine", str) or None,
        env=_variables(members),
        cwd=_member(members, "WorkingDir", str),
        image=(f"{registry}/" if registry else "") + repository + (f":{tag}" if tag else "") if repository else None,
    )


def _checked_step(command: _Command) -> StepAsked:
    if command.kind is None:
        raise Wrong("Missing Kind from command.")
    if command.kind not in {"bash", "docker"}:
        raise Wrong(f"Missing invalid kind of command: {command.kind}")
    if command.line is None:
        raise Wrong("Missing CommandLine from command.")
    if command.env is None:
        raise Wrong("Missing Environment from command.")
    if command.kind == "docker" and command.image is None:
        raise Wrong("Missing docker repository from command.")
    return _step(command.line, command.env, _checked_cwd(command.cwd))


def _step(line: str, env: dict[str, str] | None = None, cwd: str | None = None) -> StepAsked:
    # Nothing but white space, which no other API takes, does nothing in a shell either.
    line = line if line.strip(" \t\n") else _NOTHING
    return StepAsked(StepKind.COMMAND, (line,), shell=SHELL, env=env or {}, cwd=cwd)


def _checked_cwd(cwd: str | None) -> str | None:
    if cwd and (cwd.startswith("/") or leaves_scratch(cwd)):
        raise Wrong(f"The WorkingDir must be relative, and must not leave the job's directory: {cwd}")
    return cwd or None


def _object(value: Any, what: str) -> Members:
    """Return an object; null is one without members."""
    if value is not None and not isinstance(value, Members):
        raise Wrong(f"json: {what} must be an object")
    return value or Members()


def _member(members: Members, name: str, kind: type[T]) -> T | None:
    value = members.find(name)
    if value is not None and not isinstance(value, kind):
        raise Wrong(f"json: {name} must be {'a string' if kind is str else 'an array'}")
    return value


def _variables(members: Members) -> dict[str, str] | None:
    value = members.find("Environment")
    if value is None:
        return None
    if not isinstance(value, Members):
        raise Wrong("json: Environment must be an object")
    found = {name: "" if text is None else text for name, text in value.items()}
    if not all(isinstance(text, str) for text in found.values()):
        raise Wrong("json: the values in Environment must be strings")
    return found
