"""Ended jobs, as gc sees them. Every function takes a connection; its caller began the transaction."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from jobrunner.store.callbacks import IS_OWED
from jobrunner.store.models import JobRow


class Ended(NamedTuple):
    """What gc needs to know of an ended job.

    Attributes:
        disk_bytes: blocks, as they were at its end, or when gc has cleared.
        is_owed: its callback was not taken yet.
        drops_scratch: as its specification has it.
    """

    number: int
    id: str
    finished_at: datetime
    disk_bytes: int
    is_owed: bool
    drops_scratch: bool


def list_ended(connection: Connection, *, before: int, limit: int) -> list[Ended]:
    """Page through ended jobs, newest first, below this number."""
    rows = connection.execute(
        select(
            JobRow.number,
            JobRow.id,
            JobRow.finished_at,
            JobRow.disk_bytes,
            IS_OWED.label("is_owed"),
            func.json_extract(JobRow.spec, "$.drops_scratch").label("drops_scratch"),
        )
        .where(JobRow.number < before, JobRow.finished_at.is_not(None))
        .order_by(JobRow.number.desc())
        .limit(limit)
    )
    return [
        Ended(
            row.number,
            row.id,
            datetime.fromisoformat(row.finished_at),
            row.disk_bytes,
            row.is_owed,
            bool(row.drops_scratch),
        )
        for row in rows
    ]


def purge_job(connection: Connection, number: int) -> bool:
    """Forget an ended job with everything that belongs to it. False when it is gone, or owes a callback by now."""
    done = connection.execute(delete(JobRow).where(JobRow.number == number, JobRow.finished_at.is_not(None), ~IS_OWED))
    return done.rowcount == 1


def set_disk_bytes(connection: Connection, sizes: Mapping[int, int]) -> None:
    """Write down what the files of ended jobs hold by now, in bytes by number."""
    for number, size in sizes.items():
        connection.execute(
            update(JobRow).where(JobRow.number == number, JobRow.finished_at.is_not(None)).values(disk_bytes=size)
        )


def existing_ids(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return which of these jobs there are."""
    return set(connection.execute(select(JobRow.id).where(JobRow.id.in_(ids))).scalars())
