"""The outbox: who is owed a callback. Every function takes a connection; its caller began the transaction.

A row is made by `end_job`, in the transaction in which its job ends, and in no
other way. Whoever is to send it takes it for a while: when this lease has run
out, for one that died, another may.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, UpdateBase, and_, bindparam, exists, func, insert, select, update

from jobrunner.domain.callback import ATTEMPTS_MAX, Attempt, Callback, CallbackState, parse_url
from jobrunner.store.models import PENDING, CallbackRow, JobRow
from jobrunner.store.prepared import Prepared
from jobrunner.store.rows import to_text, to_time

# ── at the end of a job ──────────────────────────────────────────────────────

ENDED = (JobRow.number, JobRow.finished_at, JobRow.callback_url)
"""What a statement that ends a job returns, for `end_job`."""

_OWE = insert(CallbackRow)

IS_OWED = exists().where(CallbackRow.number == JobRow.number, CallbackRow.state == PENDING)
"""The condition on a job that its callback was not taken yet."""


def end_job(connection: Connection, ending: UpdateBase | Prepared, values: Mapping[str, Any] | None = None) -> bool:
    """End a job; from then on its callback is owed, if it has one. Every way of a job to its end goes through here.

    Args:
        connection: of the transaction.
        ending: the compare-and-set, which returns `ENDED`. So a job without a callback costs no statement more.
        values: its parameters.

    Returns:
        False when the state was another, or there is no such job.
    """
    if isinstance(ending, Prepared):
        ended = ending.find(connection, values or {})
    else:
        ended = connection.execute(ending, values).one_or_none()
    if ended is None:
        return False
    if ended.callback_url is not None:
        connection.execute(
            _OWE,
            {
                "number": ended.number,
                "url": ended.callback_url,
                "receiver": _receiver(ended.callback_url),
                "state": CallbackState.PENDING.value,
                "due_at": ended.finished_at,
            },
        )
    return True


def _receiver(url: str) -> str:
    try:
        return parse_url(url).key
    except ValueError:  # no longer a URL that we would take: the attempt will say so, and the job must end
        return url


# ── to be sent ───────────────────────────────────────────────────────────────


class Waiting(NamedTuple):
    """A receiver that is owed something, and when the first of it is due."""

    receiver: str
    due_at: datetime


class Claim(NamedTuple):
    """A callback that an owner has taken to send it.

    Attributes:
        number: of the job.
        until: when the lease runs out, as the row has it: nobody else's claim of this callback has the same.
    """

    number: int
    receiver: str
    url: str
    until: str


def _make_waiting() -> Any:
    # From one receiver to the next by the index, however much each of them is
    # owed: SQLite would read all of it for a DISTINCT or a GROUP BY.
    first = select(func.min(CallbackRow.receiver).label("receiver")).where(CallbackRow.state == PENDING)
    found = first.cte("found", recursive=True)
    following = (
        select(func.min(CallbackRow.receiver))
        .where(CallbackRow.state == PENDING, CallbackRow.receiver > found.c.receiver)
        .scalar_subquery()
    )
    found = found.union_all(select(following).where(found.c.receiver.is_not(None)))
    due_at = (
        select(func.min(CallbackRow.due_at))
        .where(CallbackRow.state == PENDING, CallbackRow.receiver == found.c.receiver)
        .scalar_subquery()
    )
    return select(found.c.receiver, due_at.label("due_at")).where(found.c.receiver.is_not(None))


_WAITING = _make_waiting()


def list_waiting(connection: Connection) -> list[Waiting]:
    """Return who is owed something. The cost grows with their number, not with what they are owed."""
    return [Waiting(row.receiver, datetime.fromisoformat(row.due_at)) for row in connection.execute(_WAITING)]


_DUE = (
    select(CallbackRow.number)
    .where(
        CallbackRow.state == PENDING,
        CallbackRow.receiver == bindparam("of_receiver"),
        CallbackRow.due_at <= bindparam("now"),
    )
    .order_by(CallbackRow.due_at)
    .limit(bindparam("limit"))
)
_CLAIM = (
    update(CallbackRow)
    .where(CallbackRow.number.in_(_DUE.scalar_subquery()))
    .values(owner=bindparam("claimed_by"), due_at=bindparam("until"))
    .returning(CallbackRow.number, CallbackRow.receiver, CallbackRow.url, CallbackRow.due_at)
)


def claim_callbacks(
    connection: Connection, receiver: str, owner: str, *, now: datetime, until: datetime, limit: int
) -> list[Claim]:
    """Take up to ``limit`` callbacks to one receiver that are due, and that nobody else has taken."""
    values = {
        "of_receiver": receiver, "claimed_by": owner, "now": to_text(now), "until": to_text(until), "limit": limit,
    }  # fmt: skip
    return [Claim(*row) for row in connection.execute(_CLAIM, values)]


def _still_claimed(claim: Claim, owner: str) -> Any:
    return and_(
        CallbackRow.number == claim.number,
        CallbackRow.state == PENDING,
        CallbackRow.owner == owner,
        CallbackRow.due_at == claim.until,
    )


class Next(NamedTuple):
    """What becomes of a callback after an attempt; ``due_at`` counts as long as it is pending."""

    state: CallbackState
    due_at: datetime


def record_attempt(
    connection: Connection, claim: Claim, owner: str, attempt: Attempt, decide: Callable[[int], Next]
) -> Next | None:
    """Write down what came of a claim, and give it back.

    Args:
        connection: of the transaction.
        claim: what was taken.
        owner: who has taken it.
        attempt: how it went.
        decide: returns what follows, given how often it was sent.

    Returns:
        What follows; None when the claim is no longer the owner's: its lease ran out, or the job is gone.
    """
    still = _still_claimed(claim, owner)
    row = connection.execute(select(CallbackRow.tries, CallbackRow.attempts).where(still)).one_or_none()
    if row is None:
        return None
    following = decide(row.tries + 1)
    attempts = [*json.loads(row.attempts), attempt.to_json()][-ATTEMPTS_MAX:]
    connection.execute(
        update(CallbackRow)
        .where(still)
        .values(
            state=following.state.value,
            due_at=to_text(following.due_at),
            owner=None,
            tries=row.tries + 1,
            attempts=json.dumps(attempts, separators=(",", ":")),
        )
    )
    return following


def put_back(connection: Connection, claim: Claim, owner: str, due_at: datetime) -> None:
    """Give a claim back without an attempt; it is due then."""
    connection.execute(
        update(CallbackRow).where(_still_claimed(claim, owner)).values(owner=None, due_at=to_text(due_at))
    )


# ── for people ───────────────────────────────────────────────────────────────


_CALLBACK = (
    select(JobRow.id, CallbackRow.url, CallbackRow.state, CallbackRow.due_at, CallbackRow.owner, CallbackRow.attempts)
    .join(JobRow, JobRow.number == CallbackRow.number)
    .where(CallbackRow.number == bindparam("number"))
)


def find_callback(connection: Connection, number: int) -> Callback | None:
    """Return the callback of a job; None when it has none, or has not ended."""
    row = connection.execute(_CALLBACK, {"number": number}).one_or_none()
    if row is None:
        return None
    state = CallbackState(row.state)
    is_planned = state is CallbackState.PENDING and row.owner is None
    return Callback(
        id=row.id,
        url=row.url,
        state=state,
        next_at=to_time(row.due_at) if is_planned else None,
        attempts=tuple(Attempt.from_json(attempt) for attempt in json.loads(row.attempts)),
    )


def send_again(connection: Connection, number: int, now: datetime) -> bool:
    """Have the callback of a job sent as if it had just ended. False when there is none.

    One that is being sent at the moment is not sent twice: this attempt is the first one then.
    """
    unclaimed = and_(CallbackRow.number == number, CallbackRow.owner.is_(None))
    connection.execute(update(CallbackRow).where(unclaimed).values(due_at=to_text(now)))
    done = connection.execute(
        update(CallbackRow).where(CallbackRow.number == number).values(state=CallbackState.PENDING.value, tries=0)
    )
    return done.rowcount == 1
