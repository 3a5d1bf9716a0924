"""How long jobs may run, and how long they may take to end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from jobrunner.config import Executor
from jobrunner.domain.errors import InvalidRequest, Problem
from jobrunner.domain.spec import step_pointer


class _TimedStep(Protocol):
    @property
    def timeout(self) -> float | None: ...


class _Timed(_TimedStep, Protocol):
    """What is submitted, or was."""

    @property
    def grace(self) -> float | None: ...

    @property
    def steps(self) -> Sequence[_TimedStep]: ...


class TimeLimits:
    """Holds what is asked for against the configuration. Times are seconds."""

    def __init__(self, settings: Executor) -> None:
        self._settings = settings

    @property
    def longest(self) -> Mapping[str, float]:
        """The most that a ``timeout`` and a ``grace`` period may be."""
        return {"timeout": self._settings.max_timeout, "grace": self._settings.max_grace}

    @property
    def default_timeout(self) -> float:
        """How long a job may run that does not say it."""
        return self._settings.default_timeout

    @property
    def default_grace(self) -> float:
        """The grace period of a job that has none of its own."""
        return self._settings.grace

    def problems(self, asked: _Timed) -> list[Problem]:
        """Name what is out of range."""
        problems = list(self._timeout_problems("#/timeout", asked.timeout))
        for index, step in enumerate(asked.steps):
            problems.extend(self._timeout_problems(f"{step_pointer(index, is_sequence=True)}/timeout", step.timeout))
        problems.extend(self._grace_problems(asked.grace))
        return problems

    def checked_grace(self, grace: float | None) -> float | None:
        """Return a grace period as it was given.

        Raises:
            InvalidRequest: it is out of range.
        """
        if problems := list(self._grace_problems(grace)):
            raise InvalidRequest(problems)
        return grace

    def _timeout_problems(self, at: str, timeout: float | None) -> Iterator[Problem]:
        most = self._settings.max_timeout
        if timeout is not None and not 0 < timeout <= most:
            yield Problem(at, f"must be more than 0 and at most {most:.15g} seconds ([executor] max_timeout)")

    def _grace_problems(self, grace: float | None) -> Iterator[Problem]:
        most = self._settings.max_grace
        if grace is not None and not 0 <= grace <= most:
            yield Problem("#/grace", f"must be from 0 to {most:.15g} seconds ([executor] max_grace)")
