"""Statements that every job and every look-up needs: put into SQL once, and given to the driver as they are.

SQLAlchemy looks for the words of a statement each time, and makes a result of
its own of the rows. For one row that is several times the work of SQLite.
"""

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, ReturnsRows
from sqlalchemy.dialects import sqlite

_DIALECT = sqlite.dialect(paramstyle="named")


class Prepared:
    """A statement that returns rows, with its parameters by name.

    Args:
        statement: what it says; its values are `bindparam`.
    """

    def __init__(self, statement: ReturnsRows) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self.text = str(compiled)
        self._fixed = {name: value for name, value in compiled.params.items() if value is not None}
        self._row: Any = namedtuple("Row", map(str, statement.exported_columns.keys()))  # type: ignore[misc]

    def all(self, connection: Connection, values: Mapping[str, Any]) -> list[Any]:
        """Return all rows, whose columns are attributes."""
        driver = connection.connection.driver_connection
        assert driver is not None
        # All of them at once: a statement that is not at its end keeps the transaction open.
        return list(map(self._row._make, driver.execute(self.text, {**self._fixed, **values}).fetchall()))

    def find(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """Return the one row, or None."""
        rows = self.all(connection, values)
        assert len(rows) <= 1, self.text
        return rows[0] if rows else None
