"""Idempotency keys: which job a repeated submission is about. Every function takes a connection."""

from typing import NamedTuple

from sqlalchemy import Connection, bindparam, insert, select

from jobrunner.store.models import IdempotencyKeyRow


class Known(NamedTuple):
    """A key that was used before."""

    fingerprint: str
    number: int


_KEY = select(IdempotencyKeyRow.fingerprint, IdempotencyKeyRow.number).where(
    IdempotencyKeyRow.owner == bindparam("owner"), IdempotencyKeyRow.key == bindparam("key")
)


def find_key(connection: Connection, owner: str, key: str) -> Known | None:
    """Look a key of this owner up."""
    row = connection.execute(_KEY, {"owner": owner, "key": key}).one_or_none()
    return Known(row.fingerprint, row.number) if row is not None else None


def add_key(connection: Connection, owner: str, key: str, known: Known) -> None:
    """Remember a key for as long as its job is there."""
    connection.execute(insert(IdempotencyKeyRow), {"owner": owner, "key": key, **known._asdict()})
