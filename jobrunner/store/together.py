"""Group commit: writes of several threads that come at the same time share a transaction.

A commit costs a wait for the disk and a turn at the lock that all writers of
all processes queue for. While one thread commits, others come; the first of
these then writes for all of them.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from sqlalchemy import Connection

from jobrunner.domain.errors import StorageFull

T = TypeVar("T")
Begin = Callable[[], AbstractContextManager[Connection]]
"""Begins a transaction, which is committed at the end of the block."""

Sync = Callable[[], None]
"""Has all that is committed survive a power cut."""


class _Write:
    """What one thread wants written, and what came of it."""

    def __init__(self, work: Callable[[Connection], Any], durable: bool) -> None:
        self.work = work
        self.durable = durable
        self.result: Any = None
        self.error: BaseException | None = None
        self.leads = False
        self._ready = threading.Lock()
        self._ready.acquire()

    def wait(self) -> None:
        self._ready.acquire()

    def wake(self) -> None:
        self._ready.release()


class GroupCommit:
    """Runs writes on the thread of one of those who want them."""

    def __init__(self, begin: Begin, sync: Sync) -> None:
        self._begin = begin
        self._sync = sync
        self._lock = threading.Lock()
        self._waiting: list[_Write] = []
        self._busy = False

    def write(self, work: Callable[[Connection], T], *, durable: bool) -> T:
        """Run this in a transaction, perhaps together with others and on another thread; return when it is committed.

        Args:
            work: may be called twice, if the first time was rolled back.
            durable: whether the commit must survive a power cut.

        Raises:
            Exception: what ``work``, or the commit, has raised; nothing of it was written then.
        """
        mine = _Write(work, durable)
        with self._lock:
            self._waiting.append(mine)
            mine.leads, self._busy = not self._busy, True
        if not mine.leads:
            mine.wait()
        if mine.leads:
            self._lead()
        if mine.error is not None:
            raise mine.error
        result: T = mine.result
        return result

    def _lead(self) -> None:
        """Write for all who wait; then the first who has come meanwhile leads."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            self._commit(batch)
        finally:
            with self._lock:
                self._busy = bool(self._waiting)
                following = self._waiting[0] if self._waiting else None
            if following is not None:
                following.leads = True
                following.wake()
            # The next batch is written while this one waits for the disk.
            self._make_durable([write for write in batch if write.durable and write.error is None])
            for write in batch:
                if not write.leads:
                    write.wake()

    def _commit(self, batch: list[_Write]) -> None:
        at_work = False
        try:
            with self._begin() as connection:
                at_work = True
                for write in batch:
                    write.result = write.work(connection)
                at_work = False
        except BaseException as error:  # noqa: BLE001 handed to its thread
            if len(batch) > 1 and (at_work or isinstance(error, StorageFull)):
                # One of them is at fault, or too large, not the others: each by itself.
                for write in batch:
                    self._commit([write])
                return
            for write in batch:
                write.error = error

    def _make_durable(self, writes: list[_Write]) -> None:
        if not writes:
            return
        try:
            self._sync()
        except BaseException as error:  # noqa: BLE001 handed to their threads
            for write in writes:
                write.error = error
