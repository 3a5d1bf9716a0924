"""Threads that wait for what becomes of a job: bounded in number, woken by hints."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from jobrunner.domain.access import Caller
from jobrunner.domain.errors import TooBusy
from jobrunner.hints import Hints, Inbox

PAUSE = 0.25
"""Seconds after which a waiter looks by itself, should its hint be lost."""

_REFUSAL = "too many requests wait for the end of a job; ask without waiting, or again later"


def _trust(_caller: Caller) -> None:
    pass


class Waiters:
    """The waiters of one process, at most ``limit`` at a time: those for the end of a job, or those for its output.

    Args:
        hints: tells of ends.
        limit: most seats.
        refusal: what a client is told when all seats are taken.
        confirm: raises `Unauthenticated` when a caller may wait no longer; asked with each look.
    """

    def __init__(
        self, hints: Hints, *, limit: int, refusal: str = _REFUSAL, confirm: Callable[[Caller], None] = _trust
    ) -> None:
        self._hints = hints
        self._refusal = refusal
        self._confirm = confirm
        self._limit = limit
        self._lock = threading.Lock()
        self._inboxes: set[Inbox] = set()
        self._count = 0
        self._closing = False

    @property
    def count(self) -> int:
        """How many wait now."""
        return self._count

    def limit_to(self, most: int) -> None:
        """Lower the bound: for a server with fewer threads than configured."""
        self._limit = min(self._limit, most)

    @contextmanager
    def seat(self) -> Iterator[None]:
        """Be one of those who wait; to be taken before anything is done that can't be taken back.

        Raises:
            TooBusy: too many wait already.
        """
        with self._lock:
            if self._count >= self._limit:
                raise TooBusy(self._refusal)
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    @contextmanager
    def listen(self, job_id: str, caller: Caller) -> Iterator["Listener"]:
        """Take a seat and hear hints about this job from now on; it need not exist yet.

        Args:
            job_id: of the job.
            caller: who waits; once they have closed their end, nobody waits any more.

        Raises:
            TooBusy: too many wait already.
        """
        with self.seat(), self._hints.open_job_inbox(job_id) as inbox:
            if caller.connection is not None:
                inbox.watch(caller.connection)
            self._inboxes.add(inbox)
            try:
                yield Listener(self, inbox, partial(self._confirm, caller))
            finally:
                self._inboxes.discard(inbox)

    @property
    def is_closing(self) -> bool:
        """Whether the process is about to stop."""
        return self._closing

    def close(self) -> None:
        """Have everyone return who waits, and everyone who will. From a signal handler too."""
        self._closing = True
        for inbox in tuple(self._inboxes):
            inbox.interrupt()


class Listener:
    """Waits for hints about one job, on one thread."""

    def __init__(self, waiters: Waiters, inbox: Inbox, confirm: Callable[[], None]) -> None:
        self._waiters = waiters
        self._inbox = inbox
        self._confirm = confirm

    def wait(self, deadline: float) -> bool:
        """Return when it is worth looking at the job again: after a hint, and every `PAUSE` in case one was lost.

        Args:
            deadline: of the monotonic clock.

        Returns:
            False when this look is the last: the time is up, or nobody waits any more.

        Raises:
            Unauthenticated: the caller's token was revoked, or has expired.
        """
        left = deadline - time.monotonic()
        if left > 0 and not self.is_over:
            self._inbox.wait(min(PAUSE, left))
        self._confirm()
        return time.monotonic() < deadline and not self.is_over

    def pause(self, seconds: float) -> bool:
        """Pause for so long at most; return whether a hint has come.

        Raises:
            Unauthenticated: the caller's token was revoked, or has expired.
        """
        has_come = bool(self._inbox.wait(seconds))
        self._confirm()
        return has_come

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more: the process is about to stop, or the client has gone."""
        return self._waiters.is_closing or self._inbox.is_deserted
