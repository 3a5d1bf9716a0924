"""The rows of tokens: names, hashes, and what they allow."""

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, or_, select, update

from jobrunner.domain.access import Grant, Scope
from jobrunner.store.models import TokenRow
from jobrunner.store.rows import to_text, to_time


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored: its text itself is not.

    Attributes:
        expires_at: from then on it is worthless; None: never.
        last_used_at: to the minute; None: never.
    """

    name: str
    sha256: str
    created_at: datetime
    grant: Grant
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


def list_tokens(connection: Connection) -> list[Token]:
    """Return all tokens by name, those too that have expired."""
    rows = connection.execute(select(TokenRow.__table__).order_by(TokenRow.name))
    return [
        Token(
            row.name,
            row.sha256,
            datetime.fromisoformat(row.created_at),
            Grant(
                frozenset(map(Scope, row.scopes.split())),
                row.all_jobs,
                tuple(json.loads(row.scripts)),
                tuple(json.loads(row.commands)),
                tuple(json.loads(row.images)),
            ),
            to_time(row.expires_at),
            to_time(row.last_used_at),
        )
        for row in rows
    ]


def has_token(connection: Connection, name: str) -> bool:
    """Tell whether a token of this name exists."""
    return connection.execute(select(TokenRow.name).where(TokenRow.name == name)).first() is not None


def add_token(connection: Connection, token: Token) -> None:
    """Store a token; the caller has checked that the name is free."""
    connection.execute(
        insert(TokenRow).values(
            name=token.name,
            sha256=token.sha256,
            created_at=to_text(token.created_at),
            scopes=" ".join(sorted(token.grant.scopes)),
            all_jobs=token.grant.all_jobs,
            scripts=json.dumps(token.grant.scripts),
            commands=json.dumps(token.grant.commands),
            images=json.dumps(token.grant.images),
            expires_at=to_text(token.expires_at) if token.expires_at is not None else None,
        )
    )


def record_use(connection: Connection, name: str, at: datetime) -> None:
    """Write down when a token was used, unless that is known already."""
    text = to_text(at)
    connection.execute(
        update(TokenRow)
        .where(TokenRow.name == name, or_(TokenRow.last_used_at.is_(None), TokenRow.last_used_at < text))
        .values(last_used_at=text)
    )


def remove_token(connection: Connection, name: str) -> bool:
    """Forget a token. False when there is none of this name."""
    return connection.execute(delete(TokenRow).where(TokenRow.name == name)).rowcount == 1
