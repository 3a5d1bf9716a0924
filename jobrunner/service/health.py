"""Whether the service can do its work, and how much of it there is."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobrunner.domain.errors import Draining, StorageError, StorageFull
from jobrunner.domain.states import JobState
from jobrunner.drain import Drain
from jobrunner.locks import is_locked
from jobrunner.store import jobs as store
from jobrunner.store.engine import Database

CHECK_SECONDS = 1.0
"""How long a look at the database holds good."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How much there is to do, and how much is kept.

    Attributes:
        spool_bytes: disk blocks of ended jobs, as they were when they ended.
        free_bytes: what the file system of the data directory has left for this user.
    """

    states: dict[JobState, int]
    slots: int
    spool_bytes: int
    free_bytes: int


class HealthService:
    """Looks at the parts of the service."""

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        executor_lock: Path,
        drain: Drain,
        *,
        min_free_bytes: int,
        slots: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._drain = drain
        self._data_dir = data_dir
        self._executor_lock = executor_lock
        self._min_free_bytes = min_free_bytes
        self._slots = slots
        self._monotonic = monotonic
        self._looking = threading.Lock()
        self._seen: str | None = None
        self._seen_at = float("-inf")

    def check_space(self) -> None:
        """Refuse when the disk is nearly full: what runs needs what is left.

        Raises:
            StorageFull: less than ``min_free_bytes`` are free.
        """
        free = self._free_bytes()
        if free < self._min_free_bytes:
            least = self._min_free_bytes
            raise StorageFull(
                f"{free} bytes are free in the data directory, less than [storage] min_free_bytes = {least}"
            )

    def check(self) -> dict[str, str | None]:
        """Look at everything that is needed; None is well, a text says what is not."""
        alive = is_locked(self._executor_lock)
        return {
            "database": self._check_database(),
            "disk": _words(self.check_space),
            "executor": None if alive else "no executor holds the lock of the data directory",
            "drain": str(Draining()) if self._drain.is_on else None,
        }

    def _check_database(self) -> str | None:
        """Look at most once in `CHECK_SECONDS`: it takes the writers' lock, and who asks needs no token."""
        with self._looking:
            now = self._monotonic()
            if now - self._seen_at >= CHECK_SECONDS:
                self._seen = _words(self._database.check_writable)
                self._seen_at = now
            return self._seen

    def stats(self, owner: str | None = None) -> Stats:
        """Count the jobs of an owner; None: of all."""
        with self._database.read() as connection:
            states, spool_bytes = store.count_states(connection, owner)
        return Stats(states, self._slots, spool_bytes, self._free_bytes())

    def _free_bytes(self) -> int:
        status = os.statvfs(self._data_dir)
        return status.f_bavail * status.f_frsize


def _words(check: Callable[[], None]) -> str | None:
    try:
        check()
    except StorageError as error:
        return str(error)
    return None
