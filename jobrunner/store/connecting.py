"""Connections to SQLite: in WAL mode, and a transaction that writes takes its place at its begin."""

import sqlite3
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

OUTSIDER_TIMEOUT = 10.0
"""Seconds to wait for a writer that does not queue with us: a shell, a backup tool."""


def make_engine(path: Path, *, writes: bool) -> Engine:
    """Return what opens connections to this file, for readers or for the one writer at a time."""
    engine = create_engine(
        f"sqlite:///{path}",
        hide_parameters=True,  # of errors: what jobs are given is for no log
        poolclass=QueuePool,
        # Writers queue on our lock, so one connection is enough for them.
        pool_size=1 if writes else 8,
        max_overflow=-1,
        # There is never a transaction left over: read connections have
        # none, write connections end theirs with the block.
        pool_reset_on_return=None,
        connect_args={"timeout": OUTSIDER_TIMEOUT, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN, not the driver
        _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    if writes:

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # A deferred BEGIN that reads first and then writes fails at
            # once, whatever the timeout, when another has written meanwhile.
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            driver.execute("BEGIN IMMEDIATE")

    return engine


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Set the journal mode, which the file then keeps. SQLite does not wait here for others that do the same."""
    deadline = time.monotonic() + OUTSIDER_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
