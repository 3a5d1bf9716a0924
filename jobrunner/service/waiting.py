"""Threads that wait for the end of a job: bounded in number, woken by hints."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobrunner.domain.errors import TooBusy
from jobrunner.hints import Hints, Inbox

PAUSE = 0.25
"""Seconds after which a waiter looks by itself, should its hint be lost."""


class Waiters:
    """The waiters of one process, at most ``limit`` at a time."""

    def __init__(self, hints: Hints, *, limit: int) -> None:
        self._hints = hints
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
                raise TooBusy("too many requests wait for the end of a job; ask without waiting, or again later")
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    def wait(self, job_id: str, has_ended: Callable[[], bool], seconds: float) -> None:
        """Return when the job has ended, or the time is up, or the process is about to stop. The caller has a seat.

        Args:
            job_id: whose hints to listen for.
            has_ended: looks at the job; called now and then, from this thread.
            seconds: how long to wait at most.
        """
        deadline = time.monotonic() + seconds
        with self._hints.open_job_inbox(job_id) as inbox:
            self._wait(inbox, has_ended, deadline)

    def close(self) -> None:
        """Have everyone return who waits, and everyone who will. From a signal handler too."""
        self._closing = True
        for inbox in tuple(self._inboxes):
            inbox.interrupt()

    def _wait(self, inbox: Inbox, has_ended: Callable[[], bool], deadline: float) -> None:
        self._inboxes.add(inbox)
        try:
            # Only now that hints are heard: a job that ends from here on wakes us.
            while not has_ended() and not self._closing and (left := deadline - time.monotonic()) > 0:
                inbox.wait(min(PAUSE, left))
        finally:
            self._inboxes.discard(inbox)
