"""The rows of tokens: names and hashes."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select

from jobrunner.store.models import TokenRow
from jobrunner.store.rows import to_text


class Token(NamedTuple):
    """A token as it is stored: its text itself is not."""

    name: str
    sha256: str
    created_at: datetime


def list_tokens(connection: Connection) -> list[Token]:
    """Return all tokens by name."""
    rows = connection.execute(select(TokenRow.name, TokenRow.sha256, TokenRow.created_at).order_by(TokenRow.name))
    return [Token(row.name, row.sha256, datetime.fromisoformat(row.created_at)) for row in rows]


def has_token(connection: Connection, name: str) -> bool:
    """Tell whether a token of this name exists."""
    return connection.execute(select(TokenRow.name).where(TokenRow.name == name)).first() is not None


def add_token(connection: Connection, token: Token) -> None:
    """Store a token; the caller has checked that the name is free."""
    connection.execute(
        insert(TokenRow).values(name=token.name, sha256=token.sha256, created_at=to_text(token.created_at))
    )


def remove_token(connection: Connection, name: str) -> bool:
    """Forget a token. False when there is none of this name."""
    return connection.execute(delete(TokenRow).where(TokenRow.name == name)).rowcount == 1
