"""The database: one for reading, one writer at a time, whoever the processes are."""

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from jobrunner.domain.errors import StorageError, StorageFull
from jobrunner.store.connecting import make_engine
from jobrunner.store.reserve import Reserve
from jobrunner.store.together import GroupCommit
from jobrunner.store.translation import storage_errors, translate
from jobrunner.store.writelock import WriteLock

__all__ = ["Connection", "Database", "one_moment"]

T = TypeVar("T")


class Database:
    """A SQLite file in WAL mode.

    Readers never wait. Writers of all threads and processes queue on a lock
    file of ours before they begin: SQLite's own busy handler sleeps and tries
    again, which starves a writer for seconds when others commit in a row.

    One object serves all threads of a process. It opens its files when they
    are first needed; call `close` before a fork.
    """

    def __init__(self, path: Path, *, synchronous: str = "full") -> None:
        """Remember where the database is.

        Args:
            path: the database file; its directory must exist.
            synchronous: ``full`` or ``normal``: whether durable transactions are.
        """
        self.path = path
        self._syncs = synchronous == "full"
        self._reader = make_engine(path, writes=False)
        self._writer = make_engine(path, writes=True)
        self._writing: Connection | None = None  # guarded by the write lock
        self._group = GroupCommit(self.write, self._sync)
        self.reserve = Reserve(path.parent)
        self._is_distrusted = False
        self._wal: int | None = None
        self._opening_wal = threading.Lock()
        self._lock = WriteLock(path.with_name(path.name + ".write-lock"))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Look at the database; each statement sees the newest commit.

        Raises:
            StorageError: the database can't be read.
        """
        with storage_errors(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[Connection]:
        """Begin a transaction; commit it at the end of the block, roll it back on an exception.

        Nothing slow belongs inside: every other writer waits meanwhile.

        Args:
            durable: whether the commit must survive a power cut once it returns.

        Raises:
            StorageFull, StorageReadOnly, StorageError: nothing was written.
        """
        try:
            with self._lock, storage_errors():
                if self._writing is None:
                    # Kept: to check one out of the pool for each transaction costs as much as the transaction.
                    self._writing = self._writer.connect()
                with _whole(self._writing):
                    if self._syncs and self._wal is None:
                        self._open_wal()  # before the commit: afterwards it is too late to refuse
                    yield self._writing
        except StorageFull:
            self.checkpoint()
            raise
        if durable:
            self._sync()

    def write_together(self, work: Callable[[Connection], T], *, durable: bool = False) -> T:
        """Run this in a transaction that other threads' writes may share; return when it is committed.

        For what many threads do at once. ``work`` may run on another thread,
        and once more if it was rolled back because of a neighbour.

        Raises:
            StorageFull, StorageReadOnly, StorageError: nothing of it was written.
        """
        return self._group.write(work, durable=durable)

    def insist(self, work: Callable[[Connection], T], *, durable: bool = False, leave: int = 0) -> T:
        """Write as `write_together` does, on a full disk with what was kept for it.

        For what makes space in the end: the ends of jobs, and the wish that one should end or be forgotten.

        Args:
            work: see `write_together`.
            durable: whether the commit must survive a power cut.
            leave: so many pieces of the reserve are left for others.

        Raises:
            StorageFull, StorageReadOnly, StorageError: nothing of it was written.
        """
        while True:
            try:
                return self.write_together(work, durable=durable)
            except StorageFull:
                if not self.reserve.release(leave=leave):
                    raise

    def check_writable(self) -> None:
        """Commit a write that changes nothing.

        Raises:
            StorageError: the database can't be written.
        """
        with self.write() as connection:
            # Only the commit tells: to begin succeeds on a full disk and on a
            # read-only one. We have no use for this number in the file's head.
            connection.exec_driver_sql("PRAGMA user_version = 0")

    def backup(self, target: Path) -> None:
        """Copy the database to a new file while it is in use, with SQLite's online backup.

        Raises:
            StorageError: there is such a file, or it can't be written.
        """
        try:
            # SQLite would make it readable to others, and it holds what jobs were given.
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise translate(error) from error
        with storage_errors(), self._reader.connect() as connection:
            source = connection.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            try:
                copy = sqlite3.connect(target)
                try:
                    source.backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")
                finally:
                    copy.close()
            except sqlite3.Error as error:
                raise translate(error) from error

    def close(self) -> None:
        """Close every connection; the object can be used again, also after a fork."""
        if self._writing is not None:
            with self._lock:
                self._writing.close()
                self._writing = None
        if self._wal is not None:
            os.close(self._wal)
            self._wal = None
        for engine in (self._reader, self._writer):
            engine.dispose()
        self._lock.close()

    def _sync(self) -> None:
        """Have everything that is committed by now survive a power cut.

        SQLite would do this inside the commit (``synchronous = FULL``), with
        the lock held: all writers of all processes would wait for the disk.

        Raises:
            StorageError: the disk can't be trusted.
        """
        if not self._syncs:
            return
        assert self._wal is not None
        try:
            if self._is_distrusted:
                self._rewrite()
            os.fdatasync(self._wal)
        except OSError as error:
            # The kernel tells this once; what it could not write is lost to it.
            self._is_distrusted = True
            raise StorageError(f"stored, but perhaps not for good: the disk says {error.strerror}") from error

    def _rewrite(self) -> None:
        """Write the whole log into the database, which SQLite syncs, so that nothing depends on the log any more."""
        with self._lock, storage_errors(), self._reader.connect() as connection:
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        if busy:
            raise OSError(errno.EIO, "the log could not be written back after an error of the disk")
        self._is_distrusted = False

    def _open_wal(self) -> None:
        # SQLite removes this file with its last connection, and this process
        # keeps one. (The database itself must not be opened like this: to
        # close it again would give up SQLite's locks on it, see fcntl(2).)
        with self._opening_wal:
            if self._wal is not None:
                return
            wal = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            # It may be new: then its name must get to the disk as well.
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
            self._wal = wal

    def checkpoint(self) -> None:
        """Write the write-ahead log back into the database and give its space back, as far as nobody needs it."""
        # On a full disk that may be the space to go on with; if there is none
        # even for this, the disk is as full as before, which the caller knows.
        with suppress(StorageError), self._lock, storage_errors(), self._reader.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def one_moment(connection: Connection) -> Iterator[None]:
    """Have all statements see the same commit, by a transaction that ends with the block.

    Else what is read first may be gone, or something else may have come, when the rest is read.
    """
    driver = connection.connection.driver_connection
    if driver is not None and driver.in_transaction:
        yield
        return
    connection.exec_driver_sql("BEGIN")
    try:
        yield
    finally:
        connection.rollback()  # harmless if an error has ended it already


@contextmanager
def _whole(connection: Connection) -> Iterator[None]:
    """Commit at the end, roll back on an error: also after a commit that failed, which SQLAlchemy takes for ended."""
    try:
        with connection.begin():
            yield
    except BaseException:
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection) and driver.in_transaction:
            with suppress(sqlite3.Error):
                driver.rollback()
        raise
