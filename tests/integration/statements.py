"""Watches what SQLite is given to execute, whoever gives it: SQLAlchemy, or the store past it."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

Look = Callable[[str, Any], None]
"""Is told of a statement and its parameters before it is executed."""

_looks: list[Look] = []


def _tell(statement: str, parameters: Any) -> None:
    for look in tuple(_looks):
        look(statement, parameters)


class _Cursor(sqlite3.Cursor):
    def execute(self, statement: str, parameters: Any = ()) -> "_Cursor":
        _tell(statement, parameters)
        super().execute(statement, parameters)
        return self

    def executemany(self, statement: str, parameters: Any) -> "_Cursor":
        _tell(statement, parameters[0])
        super().executemany(statement, parameters)
        return self


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        """Make what tells."""
        return super().cursor(factory)

    def execute(self, statement: str, parameters: Any = ()) -> Any:
        """Execute, and tell."""
        _tell(statement, parameters)
        return super().execute(statement, parameters)


def _connect(_dialect: object, _record: object, arguments: Any, named: Any) -> sqlite3.Connection:
    return sqlite3.connect(*arguments, factory=_Connection, **named)


@contextmanager
def connections_watched() -> Iterator[None]:
    """Have connections that are made meanwhile tell what they execute."""
    event.listen(Engine, "do_connect", _connect)
    try:
        yield
    finally:
        event.remove(Engine, "do_connect", _connect)


@contextmanager
def told(look: Look) -> Iterator[None]:
    """Be told of all statements that are executed meanwhile."""
    _looks.append(look)
    try:
        yield
    finally:
        _looks.remove(look)
