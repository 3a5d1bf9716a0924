"""One attempt to tell of a job's end: the job is read, the receiver told, and what came of it written down."""

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import TypeVar

from jobrunner.callbacks.sending import Answer, NoAnswer, Sender
from jobrunner.callbacks.signing import webhook_headers
from jobrunner.clock import Now
from jobrunner.config import Callbacks
from jobrunner.domain.callback import Attempt, CallbackState, Schedule, Teller, parse_url
from jobrunner.domain.errors import StorageError
from jobrunner.domain.job import Job
from jobrunner.store import callbacks as store
from jobrunner.store.callbacks import Claim, Next
from jobrunner.store.engine import Connection, Database
from jobrunner.store.jobs import find_job

logger = logging.getLogger("jobrunner.callbacks")

T = TypeVar("T")

SHORT = 1 << 20
"""Bytes of a callback that are kept in memory; a longer one is in a file meanwhile, which has no name."""

RETRY_PAUSE = 1.0
"""Seconds between two tries to write to a storage that refuses; the executor beside us says so."""


class Courier:
    """Makes attempts. One object serves all threads of a process.

    Args:
        identity: names who has taken the claims.
        database: has the jobs and the outbox.
        sender: sends.
        tellers: what is sent about a job, by the `api` that it came through.
        settings: when, and how long.
        directory: for what is too long to be in memory.
        now: the clock.
        luck: returns a number from 0 to 1, at random.
        is_stopping: tells whether nothing is to be waited for any more.
    """

    def __init__(
        self,
        identity: str,
        database: Database,
        sender: Sender,
        tellers: Mapping[str, Teller],
        settings: Callbacks,
        directory: Path,
        *,
        now: Now,
        luck: Callable[[], float],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._identity = identity
        self._database = database
        self._sender = sender
        self._tellers = tellers
        self._settings = settings
        self._directory = directory
        self._schedule = Schedule(settings.schedule)
        self._now = now
        self._luck = luck
        self._is_stopping = is_stopping

    def deliver(self, claim: Claim) -> bool | None:
        """Make an attempt; return whether the receiver did not answer in time, or None when there was no attempt."""
        with self._database.read() as connection:
            job = find_job(connection, claim.number)
        if job is None or job.finished_at is None:
            return None
        now = self._now()
        first_at = job.finished_at + timedelta(seconds=self._schedule.first)
        if now < first_at:
            self._write(lambda connection: store.put_back(connection, claim, self._identity, first_at))
            return None
        try:
            answer, error, is_slow = self._send(job, claim, now), None, False
        except NoAnswer as refusal:
            answer, error, is_slow = None, str(refusal), refusal.is_slow
        except Exception as mistake:
            # Ours; it must not be tried for ever.
            logger.exception("the callback can't be sent")
            answer, error, is_slow = None, f"internal error: {mistake!r}", False
        self._record(claim, now, answer, error)
        return is_slow

    def _send(self, job: Job, claim: Claim, now: datetime) -> Answer:
        tell = self._tellers.get(job.api)
        if tell is None:
            raise NoAnswer(f"not sent: nobody here knows how to tell of a job of {job.api}")
        message = tell(job)
        headers = {"Content-Type": "application/json", **message.headers}
        try:
            # A disk that is full may say so with the last of it, or once more when the file is closed.
            with SpooledTemporaryFile(SHORT, dir=str(self._directory)) as body:
                for piece in message.body:
                    body.write(piece)
                headers.update(webhook_headers(self._settings.secret, job.id, now, body))
                return self._sender.post(parse_url(claim.url), headers, body, self._settings.timeout)
        except OSError as error:
            raise NoAnswer(f"not sent: {error.strerror}") from error

    def _record(self, claim: Claim, began_at: datetime, answer: Answer | None, error: str | None) -> None:
        status = answer.status if answer is not None else None
        attempt = Attempt(began_at, status, error if answer is None else _complaint(answer.status))
        decide = partial(self._decide, answer)
        following = self._write(
            lambda connection: store.record_attempt(connection, claim, self._identity, attempt, decide)
        )
        if following is None:
            return
        words = attempt.error or f"answered {status}"
        if following.state is CallbackState.PENDING:
            logger.info("callback to %s: %s; again at %s", claim.receiver, words, following.due_at.isoformat())
        else:
            level = logging.INFO if following.state is CallbackState.DELIVERED else logging.WARNING
            logger.log(level, "callback to %s %s: %s", claim.receiver, following.state.value, words)

    def _decide(self, answer: Answer | None, tried: int) -> Next:
        now = self._now()
        if answer is not None and _complaint(answer.status) is None:
            return Next(CallbackState.DELIVERED, now)
        if answer is not None and answer.status == 410:
            return Next(CallbackState.STOPPED, now)
        retry_after = answer.retry_after if answer is not None else None
        pause = self._schedule.pause(tried, retry_after=retry_after, luck=self._luck())
        if pause is None:
            return Next(CallbackState.FAILED, now)
        return Next(CallbackState.PENDING, now + timedelta(seconds=pause))

    def _write(self, write: Callable[[Connection], T]) -> T | None:
        """Write, and try again until the storage takes it; None when we were stopped before."""
        while True:
            try:
                return self._database.write_together(write)
            except StorageError as error:
                logger.debug("can't write what became of the callback, trying again: %s", error)
                if self._is_stopping():
                    return None
                time.sleep(RETRY_PAUSE)


def _complaint(status: int) -> str | None:
    """Say why a status is no success; None: it is one."""
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"answered {status}; redirects are not followed"
    return f"answered {status}"
