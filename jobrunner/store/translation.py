"""What SQLite and the system say, in the domain's words."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError

from jobrunner.domain.errors import StorageError, StorageFull, StorageReadOnly


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raise the domain's exception for what SQLite has failed with; a mistake in a statement stays what it is."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, sqlite3.DatabaseError) and not isinstance(
            cause, (sqlite3.IntegrityError, sqlite3.ProgrammingError)
        ):
            raise translate(cause) from error
        raise


def translate(error: Any) -> StorageError:
    """Put the system's words into the domain's exception."""
    words = str(error)
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull(words)
    if primary == sqlite3.SQLITE_READONLY or getattr(error, "errno", None) == errno.EROFS:
        return StorageReadOnly(words)
    return StorageError(words)
