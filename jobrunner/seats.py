"""A few seats, and a queue of those who wait for one."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Seats(Generic[T]):
    """Lets so many do something at a time, in the order in which they came. For any thread.

    Args:
        most: seats.
        seconds: how long somebody may wait.
        begin: called with whoever gets a seat.
    """

    def __init__(self, most: int, seconds: float, begin: Callable[[T], None]) -> None:
        self.most = most
        self._seconds = seconds
        self._begin = begin
        self._taken = 0
        self._queue: deque[tuple[float, T]] = deque()
        self._lock = threading.Lock()

    def enter(self, who: T, now: float) -> None:
        """Take a seat, or wait for one."""
        with self._lock:
            if self._taken >= self.most:
                self._queue.append((now + self._seconds, who))
                return
            self._taken += 1
        self._begin(who)

    def leave(self) -> None:
        """Give a seat to the next one."""
        with self._lock:
            if not self._queue:
                self._taken -= 1
                return
            _, following = self._queue.popleft()
        self._begin(following)

    def expired(self, now: float) -> list[T]:
        """Send those away who have waited for too long; return them."""
        found = []
        with self._lock:
            while self._queue and now >= self._queue[0][0]:
                found.append(self._queue.popleft()[1])
        return found
