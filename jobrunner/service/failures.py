"""Who has sent wrong tokens lately, so that they get short answers.

What is saved is work, not the secret: a token has 256 random bits, which nobody
finds by trying, but each one that is not known costs a look into the database.
So a token that is right is taken all the same: clients that share an address
(behind a router, or a proxy that is not trusted to name them) can't be locked
out by one of them. And since every other one is refused, whatever it resembles,
the answers tell no more than before.

Each worker counts for itself.
"""

import logging
import threading
from dataclasses import dataclass

logger = logging.getLogger("jobrunner.access")

MOST_CLIENTS = 10_000
"""Clients that are remembered; the one that began first is forgotten for the next."""


@dataclass(slots=True)
class _Count:
    until: float
    failures: int = 0


class Failures:
    """Counts wrong tokens by client. For any thread.

    Args:
        most: so many may one client send in a window; then it has to wait until that is over.
        window: seconds, from the first of them.
    """

    def __init__(self, most: int, window: float) -> None:
        self._most = most
        self._window = window
        self._counts: dict[str | None, _Count] = {}  # the oldest first
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether anybody has failed lately."""
        return bool(self._counts)

    def waiting_time(self, client: str | None, now: float) -> float | None:
        """Return how many seconds a client has to wait; None: it need not.

        Args:
            client: its network; None: that is not known, as for others.
            now: of the monotonic clock.
        """
        with self._lock:
            self._forget(now)
            count = self._counts.get(client)
            return count.until - now if count is not None and count.failures >= self._most else None

    def add(self, client: str | None, now: float) -> None:
        """Count a wrong token."""
        with self._lock:
            self._forget(now)
            count = self._counts.get(client)
            if count is None:
                if len(self._counts) >= MOST_CLIENTS:
                    del self._counts[next(iter(self._counts))]
                count = self._counts[client] = _Count(now + self._window)
            count.failures += 1
            is_last = count.failures == self._most
        if is_last:
            logger.warning("%s has sent %d wrong tokens", client or "somebody", self._most)

    def _forget(self, now: float) -> None:
        while self._counts:
            client = next(iter(self._counts))
            if now < self._counts[client].until:
                return
            del self._counts[client]
