"""Trying again what has failed for a reason that may pass: a restart, a broken line, too much to do."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from jobrunner.client.transport import NeverSent, ServiceError
from jobrunner.domain.errors import JobrunnerError, TooBusy, Unreachable

SECONDS = 120.0
"""How long a service may be away: longer than a restart takes."""

_SHORTEST, _LONGEST, _GROWTH = 0.1, 5.0, 2.0
"""Seconds between two tries."""


Pause = Callable[[float, JobrunnerError], object]

T = TypeVar("T")


class Patience:
    """How long something is tried again, and the pauses in between.

    Who has never been there is not waited for: more likely the address is wrong.
    """

    def __init__(self, seconds: float = SECONDS, *, pause: Pause | None = None) -> None:
        """Begin patient.

        Args:
            seconds: from the first failure on, until `endure` gives up; 0 tries nothing again.
            pause: how to wait for so many seconds, for this error to pass; what it raises ends the trying.
        """
        self._seconds = seconds
        self._pause = pause or (lambda seconds, _: time.sleep(seconds))
        self._since: float | None = None
        self._next = _SHORTEST
        self._was_there = False

    def insist(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer, and return it.

        Raises:
            JobrunnerError: as `endure`.
        """
        while True:
            try:
                answer = ask()
            except JobrunnerError as error:
                self.endure(error)
            else:
                self.renew()
                return answer

    def renew(self) -> None:
        """All is well (again)."""
        self._since = None
        self._next = _SHORTEST
        self._was_there = True

    def endure(self, error: JobrunnerError) -> None:
        """Wait before another try, longer each time and at least as long as the service wishes.

        Raises:
            JobrunnerError: this error, when it does not pass by itself, or has not passed for too long.
        """
        if isinstance(error, NeverSent) and not self._was_there:
            raise error
        self._was_there = True
        now = time.monotonic()
        if self._since is None:
            self._since = now
        # Not all who have lost the same service come back at the same time.
        pause = self._next * random.uniform(0.5, 1.0)  # noqa: S311 no secret
        if isinstance(error, TooBusy):
            pause = max(pause, error.retry_after)
        if not passes(error) or now + pause > self._since + self._seconds:
            raise error
        self._next = min(self._next * _GROWTH, _LONGEST)
        self._pause(pause, error)


def passes(error: JobrunnerError) -> bool:
    """Tell whether the same request may succeed later. 502 and 504 are a gateway's, while the service is away."""
    return isinstance(error, Unreachable | TooBusy) or (isinstance(error, ServiceError) and error.status in {502, 504})
