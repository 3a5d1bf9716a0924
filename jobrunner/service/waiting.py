"""Threads that wait for the end of a job: bounded in number, woken by hints."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobrunner.domain.errors import TooBusy
from jobrunner.hints import Hints, Inbox

PAUSE = 0.25
"""Seconds after which a waiter looks by itself, should its hint be lost."""


class Waiters:
    """The waiters of one process. Its thread and its inbox come into being with the first of them."""

    def __init__(self, hints: Hints, *, limit: int) -> None:
        """Remember the bounds.

        Args:
            hints: where hints come from.
            limit: most threads that may wait at a time.
        """
        self._hints = hints
        self._limit = limit
        self._count = 0
        self._lock = threading.Lock()
        self._events: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._inbox: Inbox | None = None
        self._closing = False

    @property
    def count(self) -> int:
        """How many wait now."""
        return self._count

    def limit_to(self, most: int) -> None:
        """Lower the bound: for a server with fewer threads than configured."""
        self._limit = min(self._limit, most)

    def wait(self, job_id: str, has_ended: Callable[[], bool], seconds: float) -> None:
        """Return when the job has ended, or the time is up, or the process is about to stop.

        Args:
            job_id: whose hints to listen for.
            has_ended: looks at the job; called now and then, from this thread.
            seconds: how long to wait at most.

        Raises:
            TooBusy: too many wait already.
        """
        deadline = time.monotonic() + seconds
        with self._seat(), self._listening(job_id) as event:
            # Only now that hints are heard: a job that ends from here on wakes us.
            while not has_ended() and not self._closing and (left := deadline - time.monotonic()) > 0:
                event.wait(min(PAUSE, left))
                event.clear()

    def close(self) -> None:
        """Have everyone return who waits, and stop listening."""
        self._closing = True
        with self._lock:
            for event in self._all_events():
                event.set()
        if self._inbox is not None:
            self._inbox.interrupt()

    def _all_events(self) -> Iterator[threading.Event]:
        return (event for events in self._events.values() for event in events)

    @contextmanager
    def _seat(self) -> Iterator[None]:
        with self._lock:
            if self._count >= self._limit:
                raise TooBusy("too many requests wait for the end of a job; ask without waiting, or again later")
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    @contextmanager
    def _listening(self, job_id: str) -> Iterator[threading.Event]:
        event = threading.Event()
        with self._lock:
            if self._inbox is None and not self._closing:
                # Not before the first waiter: threads do not survive the fork of a server that loads first.
                self._inbox = self._hints.open_web_inbox()
                threading.Thread(target=self._listen, args=(self._inbox,), name="hints", daemon=True).start()
            self._events[job_id].add(event)
        try:
            yield event
        finally:
            with self._lock:
                self._events[job_id].discard(event)
                if not self._events[job_id]:
                    del self._events[job_id]

    def _listen(self, inbox: Inbox) -> None:
        while not self._closing:
            for job_id in inbox.wait(60.0):
                with self._lock:
                    for event in self._events.get(job_id.decode(), ()):
                        event.set()
        inbox.close()
