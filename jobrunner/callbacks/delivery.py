"""Works the outbox off: what is due is taken, sent, and written down.

One thread (`Deliverer.start`) looks for what is due; each attempt (`Courier`) has
a thread of its own. A hint wakes the first; without one it looks every `TICK`
seconds.

At least once: who dies between sending and writing down leaves a lease that
runs out, and then it is sent again, with the same ``webhook-id``.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from jobrunner import log
from jobrunner.callbacks.courier import RETRY_PAUSE, Courier
from jobrunner.callbacks.places import Places
from jobrunner.callbacks.sending import Sender
from jobrunner.clock import Now
from jobrunner.config import Callbacks
from jobrunner.domain.callback import Teller
from jobrunner.domain.errors import StorageError
from jobrunner.hints import Hints, Inbox
from jobrunner.store import callbacks as store
from jobrunner.store.callbacks import Claim
from jobrunner.store.engine import Connection, Database

logger = logging.getLogger("jobrunner.callbacks")

T = TypeVar("T")

TICK = 1.0
"""Seconds after which a lost hint is made up for."""

LEASE_MARGIN = 15.0
"""Seconds that a lease outlasts an attempt: to read the job's output before, and to write down what came of it."""

_STOP_PATIENCE = 2.0
"""Seconds that attempts may take to their end when the service stops; what is left is sent again by the next one."""


class Deliverer:
    """Sends the callbacks of one data directory. Several over one directory send each callback once.

    Args:
        identity: names this one in the rows it has taken; never used twice.
        database: has the outbox.
        hints: wake it.
        sender: sends.
        tellers: what is sent about a job, by the `api` that it came through.
        settings: when, how long, and how many at a time.
        directory: for what is too long to be in memory.
        now: the clock.
        luck: returns a number from 0 to 1, at random.
    """

    def __init__(
        self,
        identity: str,
        database: Database,
        hints: Hints,
        sender: Sender,
        tellers: Mapping[str, Teller],
        settings: Callbacks,
        directory: Path,
        *,
        now: Now,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._identity = identity
        self._database = database
        self._hints = hints
        self._settings = settings
        self._now = now
        self._courier = Courier(
            identity,
            database,
            sender,
            tellers,
            settings,
            directory,
            now=now,
            luck=luck,
            is_stopping=lambda: self._stopping,
        )
        self._changed = threading.Condition()  # guards the next two
        self._places = Places(settings.max_sending, settings.max_per_receiver)
        self._under_way: set[Claim] = set()
        self._stopping = False
        self._inbox: Inbox | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to work."""
        self._thread = threading.Thread(target=self._run, name="callbacks", daemon=True)
        self._thread.start()

    def stop(self, *, work_off: bool = False) -> None:
        """Return when no more is sent, but for attempts that take too long: their claims are given back.

        Args:
            work_off: first make an attempt of all that is due, if it does not take too long.
        """
        if self._thread is None:
            return
        if work_off:
            self._wait_until(self._is_worked_off, self._settings.timeout + _STOP_PATIENCE)
        self._stopping = True
        if self._inbox is not None:
            self._inbox.interrupt()
        self._thread.join()
        self._wait_until(lambda: not self._under_way, _STOP_PATIENCE)
        self._put_back(list(self._under_way))
        if self._inbox is not None:
            self._inbox.close()

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition() and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.1))

    def _is_worked_off(self) -> bool:
        if self._under_way:
            return False
        now = self._now()
        try:
            with self._database.read() as connection:
                return all(waiting.due_at > now for waiting in store.list_waiting(connection))
        except StorageError:
            return False

    def _put_back(self, claims: list[Claim]) -> None:
        def write(connection: Connection) -> None:
            for claim in claims:
                store.put_back(connection, claim, self._identity, self._now())

        if claims:
            try:
                self._database.write_together(write)
            except StorageError as error:
                logger.debug("leases are left to run out: %s", error)

    # ── what is due ──

    def _run(self) -> None:
        while not self._stopping:
            begun = time.thread_time()
            try:
                if self._inbox is None:
                    self._inbox = self._hints.open_deliverer_inbox()
                pause = self._look()
            except (StorageError, OSError) as error:
                logger.debug("can't look for callbacks: %s", error)
                pause = RETRY_PAUSE
            except Exception:
                logger.exception("a look for callbacks has failed")
                pause = RETRY_PAUSE
            # A look costs the more, the more receivers are owed something;
            # however often we are woken, it takes a tenth of our time at most.
            time.sleep(min(9 * (time.thread_time() - begun), TICK))
            if self._inbox is not None:
                self._inbox.wait(pause)
            else:
                time.sleep(pause)

    def _look(self) -> float:
        """Start what is due; return the seconds until there is more to do, should nobody wake us."""
        now = self._now()
        with self._database.read() as connection:
            waiting = sorted(store.list_waiting(connection), key=lambda waiting: waiting.due_at)
        if not waiting:
            return TICK
        with self._changed:
            self._places.forget_all_but(one.receiver for one in waiting)
            shares = self._places.share([one.receiver for one in waiting if one.due_at <= now])
        claims = self._claim(shares, now) if shares else []
        for claim in claims:
            self._start(claim)
        if claims:
            return 0.0  # who has come away empty-handed may find a place now
        soon = (seconds for one in waiting if (seconds := (one.due_at - now).total_seconds()) > 0)
        return min(next(soon, TICK), TICK)

    def _claim(self, shares: Mapping[str, int], now: datetime) -> list[Claim]:
        until = now + timedelta(seconds=self._settings.timeout + LEASE_MARGIN)

        def write(connection: Connection) -> list[Claim]:
            return [
                claim
                for receiver, share in shares.items()
                for claim in store.claim_callbacks(
                    connection, receiver, self._identity, now=now, until=until, limit=share
                )
            ]

        # Durable, and with it all that was committed before: nobody is told of
        # an end that a power cut could take back.
        return self._database.write_together(write, durable=True)

    def _start(self, claim: Claim) -> None:
        with self._changed:
            self._places.take(claim.receiver)
            self._under_way.add(claim)
        # A daemon: an attempt must not keep a process from ending; its lease runs out.
        thread = threading.Thread(target=self._work, args=(claim,), name=f"callback-{claim.number}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is to be had
            logger.warning("can't send the callback of job %d, trying again: %s", claim.number, error)
            self._end(claim, is_slow=None)

    def _end(self, claim: Claim, *, is_slow: bool | None) -> None:
        with self._changed:
            self._places.give(claim.receiver, is_slow=is_slow)
            self._under_way.discard(claim)
            self._changed.notify_all()
        self._hints.wake_deliverer()

    def _work(self, claim: Claim) -> None:
        """Make an attempt. The main function of its thread."""
        log.JOB.set(claim.number)
        is_slow = None
        try:
            is_slow = self._courier.deliver(claim)
        except StorageError as error:
            logger.warning("can't read the job to send its callback, trying again: %s", error)
        finally:
            self._end(claim, is_slow=is_slow)
