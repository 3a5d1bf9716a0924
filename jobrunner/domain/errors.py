"""What can go wrong, in the words of the domain.

    JobrunnerError
    ├── ConfigError              the configuration is wrong; names every problem
    ├── InvalidRequest           what was asked can't be done as written; points at each member
    ├── Forbidden                policy or the caller's token refuses it
    │   ├── ShellNotAllowed
    │   └── CommandNotAllowed
    ├── Unauthenticated          no token, or not a known one
    ├── NotFound
    │   ├── JobNotFound
    │   ├── FileNotInJob
    │   ├── OutputNotFound
    │   └── TokenNotFound
    ├── Conflict                 right in itself, but not in this state
    │   ├── JobNotEnded
    │   ├── JobNotRunning
    │   ├── NameInUse
    │   ├── NoCallback
    │   └── TokenExists
    ├── TooBusy                  a bound is reached; try again later
    │   ├── TooManyFailures
    │   ├── QueueFull
    │   └── Draining
    ├── Unreachable              for a client: nobody answers at the URL
    └── StorageError             the database or the disk refuses
        ├── StorageFull
        ├── StorageReadOnly
        └── SchemaTooNew         the database was written by a later version

HTTP statuses are given in ``web/errors.py``, exit codes in ``cli``, and
nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class JobrunnerError(Exception):
    """Anything jobrunner refuses or can't do, with a message for people."""


class ConfigError(JobrunnerError):
    """The configuration is wrong.

    Attributes:
        problems: one line each, with file, section and key.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request.

    Attributes:
        pointer: a JSON pointer as URI fragment (``#/env/PATH``); ``#`` is the whole.
        detail: what is wrong and what would be right.
    """

    pointer: str
    detail: str


class InvalidRequest(JobrunnerError):
    """What was asked can't be done as written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{problem.pointer}: {problem.detail}" for problem in problems))
        self.problems = tuple(problems)

    @classmethod
    def at(cls, pointer: str, detail: str) -> "InvalidRequest":
        """Refuse one member."""
        return cls([Problem(pointer, detail)])


class Forbidden(JobrunnerError):
    """Policy or the caller's token refuses it."""


class ShellNotAllowed(Forbidden):
    """``[policy] allow_shell = no``, and the job asks for a shell."""

    def __init__(self) -> None:
        super().__init__("shells are not allowed here ([policy] allow_shell = no); use argv or a catalogued script")


class CommandNotAllowed(Forbidden):
    """``[policy] allow_commands``, or the caller's token, is not for the program that a job would run."""


class Unauthenticated(JobrunnerError):
    """No token was given, or not a known one."""


class NotFound(JobrunnerError):
    """There is no such thing, or it is not the caller's to see."""


class JobNotFound(NotFound):
    """No job has this id, or it is not the caller's to see: the same words for both."""

    def __init__(self) -> None:
        super().__init__("no job has this id")


class OutputNotFound(NotFound):
    """A stream was asked for that no job has."""


class FileNotInJob(NotFound):
    """A file was asked for that a job does not have, or that is none to be sent."""


class TokenNotFound(NotFound):
    """No token has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no token is named {name!r}")


class Conflict(JobrunnerError):
    """Right in itself, but not in this state."""


class JobNotEnded(Conflict):
    """The job must end first."""

    def __init__(self) -> None:
        super().__init__("the job has not ended; cancel it first, or use force")


class JobNotRunning(Conflict):
    """Only a running job can take a signal."""

    def __init__(self, state: str) -> None:
        super().__init__(f"the job is not running, it is {state}")


class NameInUse(Conflict):
    """The job wants its name for itself, and another one has it.

    Attributes:
        job_id: the other's; None when the caller may not see it.
    """

    def __init__(self, name: str, job_id: str | None) -> None:
        super().__init__(f"a job named {name!r} is queued or running, and this one is exclusive")
        self.job_id = job_id


class NoCallback(Conflict):
    """Nobody is to be told of this job."""

    def __init__(self) -> None:
        super().__init__("the job has no callback_url")


class TokenExists(Conflict):
    """A token of this name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a token named {name!r} exists; revoke it first")


class TooBusy(JobrunnerError):
    """A bound is reached.

    Attributes:
        retry_after: seconds after which another try makes sense.
    """

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyFailures(TooBusy):
    """A client has sent many wrong tokens, and this one is wrong as well."""


class QueueFull(TooBusy):
    """As many jobs wait as may."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} jobs wait already ([executor] max_queued)", retry_after=5)


class Draining(TooBusy):
    """The service runs what it has, and takes nothing more."""

    def __init__(self) -> None:
        super().__init__("the service is being drained: it takes no new jobs", retry_after=30)


class Unreachable(JobrunnerError):
    """Nobody answers at the URL of the service."""


class StorageError(JobrunnerError):
    """The database or the disk refuses; the message has the system's words."""


class StorageFull(StorageError):
    """No space is left."""


class StorageReadOnly(StorageError):
    """The database can't be written."""


class SchemaTooNew(StorageError):
    """The database was written by a later version of jobrunner."""

    def __init__(self, found: str, known: str) -> None:
        super().__init__(
            f"the database has schema {found}, this jobrunner knows schemas up to {known}; "
            "install the version of jobrunner that wrote it, or a later one"
        )
