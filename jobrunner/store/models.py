"""The tables. Times are text, RFC 3339 in UTC with microseconds, so that they sort and can be read ad hoc."""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    and_,
    literal_column,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobrunner.domain.callback import CallbackState
from jobrunner.domain.states import JobState

QUEUED: Final[ColumnElement[str]] = literal_column(f"'{JobState.QUEUED.value}'")
RUNNING: Final[ColumnElement[str]] = literal_column(f"'{JobState.RUNNING.value}'")
PENDING: Final[ColumnElement[str]] = literal_column(f"'{CallbackState.PENDING.value}'")
"""States as literals: SQLite takes a partial index only for a condition that is spelled out."""


class Base(DeclarativeBase):
    """Constraint names are spelled out, so that a later migration can drop them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class JobRow(Base):
    """One job: what was asked, where it is, how it ended.

    ``number`` is AUTOINCREMENT: it counts up and never comes twice, even after
    deletion. ``summary`` is what a list's ``q`` searches. ``holes`` is JSON: what
    is no longer kept of the streams. ``ending`` is the state that a running job was
    told to end in. ``steps`` is JSON: begin and end of the steps that have ended well,
    and the begin of the one after them; null until the first of several has.
    ``dialect_number`` is what a dialect calls the job, if it came through one: they count
    up from 0 in each, in the order of ``number``. The deadline is not stored: it is
    ``started_at`` plus the timeout of ``spec``.
    """

    __tablename__ = "job"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    owner: Mapped[str]
    api: Mapped[str]
    name: Mapped[str | None]
    summary: Mapped[str]
    priority: Mapped[int]
    spec: Mapped[str]
    state: Mapped[str]
    executor: Mapped[str | None]
    created_at: Mapped[str]
    started_at: Mapped[str | None]
    finished_at: Mapped[str | None]
    exit_code: Mapped[int | None]
    exit_signal: Mapped[int | None]
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    cancel_by: Mapped[str | None]
    cancel_at: Mapped[str | None]
    cancel_signal: Mapped[int | None]
    cancel_grace: Mapped[float | None]
    signals: Mapped[str] = mapped_column(server_default="[]")
    stdout_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    stderr_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    disk_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    holes: Mapped[str] = mapped_column(server_default="{}")
    ending: Mapped[str | None]
    steps: Mapped[str | None]
    callback_url: Mapped[str | None]
    dialect_number: Mapped[int | None]

    __table_args__ = (
        CheckConstraint(f"state IN ({', '.join(repr(state.value) for state in JobState)})", name="state"),
        CheckConstraint("(state IN ('queued', 'running')) = (finished_at IS NULL)", name="ended"),
        {"sqlite_autoincrement": True},
    )


_JOB = JobRow.__table__.c


def _partial(name: str, *columns: ColumnElement[Any], where: ColumnElement[bool]) -> Index:
    return Index(name, *columns, sqlite_where=where)


# One index for each query of the executor and each filter of a list; all of
# them end with the number, which is the order of the queue and of every page.
# The state is in it once more so that SQLite, which has no statistics, prefers it to ix_job_state and need not sort.
_partial("ix_job_queue", _JOB.state, _JOB.priority, _JOB.number, where=_JOB.state == QUEUED)
Index("ix_job_state", _JOB.state, _JOB.number, _JOB.disk_bytes)
Index("ix_job_owner", _JOB.owner, _JOB.number)
Index("ix_job_created", _JOB.created_at, _JOB.number)
_partial("ix_job_name", _JOB.name, _JOB.number, where=_JOB.name.is_not(None))
# For exclusive names: at most as long as there are jobs that have not ended.
_partial("ix_job_active_name", _JOB.name, _JOB.number, where=and_(_JOB.name.is_not(None), _JOB.finished_at.is_(None)))
# What a dialect shows of its jobs: none of all the others.
Index("ix_job_dialect", _JOB.api, _JOB.dialect_number, unique=True, sqlite_where=_JOB.dialect_number.is_not(None))


class DialectRow(Base):
    """A dialect through which jobs came, and the ``dialect_number`` of the next one: none comes twice."""

    __tablename__ = "dialect"

    api: Mapped[str] = mapped_column(primary_key=True)
    next_number: Mapped[int]


class LabelRow(Base):
    """The labels of a job once more, for the filter of a list."""

    __tablename__ = "job_label"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(ForeignKey("job.number", ondelete="CASCADE"), primary_key=True, index=True)

    __table_args__ = ({"sqlite_with_rowid": False},)


class InputRow(Base):
    """What came with a submission; kept as long as the job, so that it can be run again."""

    __tablename__ = "job_input"

    number: Mapped[int] = mapped_column(ForeignKey("job.number", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class IdempotencyKeyRow(Base):
    """A key that a client has given a submission, so that a repeat starts nothing; gone with its job.

    ``fingerprint`` tells whether the repeat asks for the same.
    """

    __tablename__ = "idempotency_key"

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    number: Mapped[int] = mapped_column(ForeignKey("job.number", ondelete="CASCADE"), index=True)

    __table_args__ = ({"sqlite_with_rowid": False},)


class SignalRow(Base):
    """A signal that a person wants a running job to get; gone once it is sent."""

    __tablename__ = "job_signal"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(ForeignKey("job.number", ondelete="CASCADE"), index=True)
    signal: Mapped[int]


class CallbackRow(Base):
    """A callback, from the end of its job on: it is made in the transaction of the end.

    ``receiver`` is host and port of the URL. ``due_at`` is when somebody may
    take it: the next attempt is due, or the lease of the ``owner``, who is at
    it, has run out. ``tries`` counts since the end, or since a person has asked
    to send it again; ``attempts`` is JSON.
    """

    __tablename__ = "callback"

    number: Mapped[int] = mapped_column(ForeignKey("job.number", ondelete="CASCADE"), primary_key=True)
    url: Mapped[str]
    receiver: Mapped[str]
    state: Mapped[str]
    due_at: Mapped[str]
    owner: Mapped[str | None]
    tries: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[str] = mapped_column(server_default="[]")

    __table_args__ = (
        CheckConstraint(f"state IN ({', '.join(repr(state.value) for state in CallbackState)})", name="state"),
    )


_CALLBACK = CallbackRow.__table__.c
# By receiver first: what one of them has not taken must not be in the way of the others.
_partial("ix_callback_pending", _CALLBACK.receiver, _CALLBACK.due_at, where=_CALLBACK.state == PENDING)


class TokenRow(Base):
    """A token: only the SHA-256 of its text.

    ``scopes`` are words, ``scripts``, ``commands`` and ``images`` are JSON lists of patterns.
    """

    __tablename__ = "token"

    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    created_at: Mapped[str]
    scopes: Mapped[str] = mapped_column(server_default="admin")
    all_jobs: Mapped[bool] = mapped_column(server_default="0")
    scripts: Mapped[str] = mapped_column(server_default='["*"]')
    commands: Mapped[str] = mapped_column(server_default='["*"]')
    images: Mapped[str] = mapped_column(server_default='["*"]')
    expires_at: Mapped[str | None]
    last_used_at: Mapped[str | None]
