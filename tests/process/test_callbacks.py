"""Callbacks from the end of a job to a real receiver, whatever that does and whoever dies on the way."""

import base64
import errno
import json
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from jobrunner.callbacks.delivery import Deliverer
from jobrunner.callbacks.sending import Sender
from jobrunner.clock import Now, utc_now
from jobrunner.config_values import Secret, rules
from jobrunner.domain.callback import Attempt, Callback, CallbackState, Message, Teller
from jobrunner.domain.job import Job
from jobrunner.hints import Hints
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.store import callbacks as store
from jobrunner.workforce import make_tellers
from tests.conftest import Mount
from tests.factories import CALLER, argv, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import Clock, ExecutorProcess, wait
from tests.receivers import Answer, Receiver, drip, hang, status
from tests.service import eventually, free_port

AT_ONCE = (0.0, 0.05, 0.05, 0.05)
"""A schedule for tests."""


class NoHints(Hints):
    """Every hint to who sends callbacks is lost."""

    def wake_deliverer(self) -> None:
        pass


def make_deliverer(
    house: House,
    *,
    now: Now = utc_now,
    hints: Hints | None = None,
    tellers: Mapping[str, Teller] | None = None,
    sender: Sender | None = None,
    directory: Path | None = None,
) -> Deliverer:
    """Make one with a clock, hints, tellers, a sender or a directory of one's own."""
    settings = house.config.callbacks
    return Deliverer(
        secrets.token_hex(8),
        house.database,
        hints or house.hints,
        sender or Sender(settings.policy, now),
        tellers or make_tellers(house),
        settings,
        directory or house.data_dir / "run",
        now=now,
        luck=lambda: 0.0,
    )


@contextmanager
def delivering(house: House, **arguments: Any) -> Iterator[Deliverer]:
    """Send callbacks meanwhile."""
    deliverer = make_deliverer(house, **arguments)
    deliverer.start()
    try:
        yield deliverer
    finally:
        deliverer.stop()


def make_owed(house: House, url: str) -> Job:
    """Make a job that has ended and owes a callback: canceled before it ran."""
    job = make_job(house, argv("true", callback_url=url))
    return house.jobs.cancel(job.id, CALLER, CancelAsked())


def callback_of(house: House, job: Job) -> Callback:
    (found,) = house.callbacks.list(job.id, CALLER)
    return found


def settled(house: House, job: Job) -> Callback:
    """Wait until no further attempt will be made."""
    assert eventually(lambda: callback_of(house, job).state is not CallbackState.PENDING, within=20)
    return callback_of(house, job)


def statuses(callback: Callback) -> list[int | None]:
    return [attempt.status for attempt in callback.attempts]


@pytest.fixture
def house(new_house: NewHouse) -> House:
    """A house that is not patient."""
    return new_house(callbacks={"schedule": AT_ONCE, "timeout": 10.0})


# ── what is told ──


def test_the_end_of_a_job_is_told_with_its_output(house: House) -> None:
    with Receiver() as receiver, running_executor(house), delivering(house):
        job = wait(house, make_job(house, shell("echo out; echo err >&2; exit 3", callback_url=receiver.url)))
        (received,) = receiver.wait()
        callback = settled(house, job)

    event = received.json()
    assert event["type"] == "job.failed"
    assert event["timestamp"] == event["data"]["finished_at"]
    data = event["data"]
    assert (data["id"], data["state"], data["exit_code"], data["callback_url"]) == (job.id, "failed", 3, receiver.url)
    assert (data["stdout"]["text"], data["stderr"]["text"]) == ("out\n", "err\n")
    assert received.path == "/done"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["webhook-id"] == callback.id == job.id
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
    assert "webhook-signature" not in received.headers
    assert (callback.state, statuses(callback), callback.next_at) == (CallbackState.DELIVERED, [204], None)


def test_of_much_output_the_tail_is_told(house: House) -> None:
    with Receiver() as receiver, running_executor(house), delivering(house):
        make_job(house, shell("head -c 200000 /dev/zero | tr '\\0' a; echo end", callback_url=receiver.url))
        stdout = receiver.wait()[0].json()["data"]["stdout"]

    assert (stdout["bytes"], stdout["text_offset"], len(stdout["text"])) == (200004, 200004 - 65536, 65536)
    assert stdout["text"].endswith("aend\n")


def test_a_job_that_is_canceled_in_the_queue_is_told_of_too(house: House) -> None:
    with Receiver() as receiver, delivering(house):
        job = make_owed(house, receiver.url)
        (received,) = receiver.wait()

    assert received.json()["type"] == "job.canceled"
    assert received.json()["data"]["id"] == job.id
    assert received.json()["data"]["stdout"]["text"] == ""


def test_a_job_without_callback_tells_nobody(house: House) -> None:
    with running_executor(house), delivering(house):
        wait(house, make_job(house))

    assert house.callbacks.list("1", CALLER) == ()


def test_a_lost_hint_only_costs_time(house: House) -> None:
    hints = NoHints(house.data_dir / "run")
    with Receiver() as receiver, delivering(house, hints=hints):
        socket = house.data_dir / "run" / "callbacks.sock"
        assert eventually(socket.exists)
        socket.unlink()
        make_owed(house, receiver.url)
        receiver.wait()
    hints.close()


# ── signatures ──

OLD, NEW = (f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}" for number in (1, 2))


def test_who_knows_any_of_the_secrets_can_verify(new_house: NewHouse) -> None:
    house = new_house(callbacks={"secret": (Secret(NEW), Secret(OLD))})
    with Receiver() as receiver, delivering(house):
        make_owed(house, receiver.url)
        (received,) = receiver.wait()

    for secret in (OLD, NEW):
        assert Webhook(secret).verify(received.body, dict(received.headers)) == received.json()
    assert received.headers["webhook-signature"].count(" ") == 1
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{base64.b64encode(bytes(32)).decode()}").verify(received.body, dict(received.headers))
    with pytest.raises(WebhookVerificationError):
        Webhook(NEW).verify(received.body + b" ", dict(received.headers))


def test_every_attempt_is_signed_anew_and_has_the_same_id(new_house: NewHouse) -> None:
    house = new_house(callbacks={"secret": (Secret(NEW),), "schedule": (0.0, 1.1)})
    with Receiver(status(500), status(204)) as receiver, delivering(house):
        job = make_owed(house, receiver.url)
        first, second = receiver.wait(2)

    assert receiver.ids() == [job.id] * 2
    assert first.body == second.body
    assert first.headers["webhook-timestamp"] < second.headers["webhook-timestamp"]
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    for received in (first, second):
        Webhook(NEW).verify(received.body, dict(received.headers))


# ── who tells ──


def test_each_api_tells_in_its_own_words(house: House) -> None:
    def tell(job: Job) -> Message:
        return Message([b"job ", str(job.number).encode()], {"Content-Type": "text/plain", "X-Notify": "ä"})

    with Receiver() as receiver, delivering(house, tellers={"v1": tell}):
        make_owed(house, receiver.url)
        (received,) = receiver.wait()

    assert (received.body, received.headers["content-type"], received.headers["x-notify"]) == (
        b"job 1",
        "text/plain",
        "ä",
    )
    assert received.headers["webhook-id"]


def test_what_is_long_is_signed_and_sent_as_a_whole(new_house: NewHouse) -> None:
    house = new_house(callbacks={"secret": (Secret(NEW), Secret(OLD))})
    piece = b'"' + b"x" * 99_998 + b'"'

    def tell(_: Job) -> Message:
        return Message(data for count in range(30) for data in (b"," if count else b"[", piece, b"]" * (count == 29)))

    with Receiver() as receiver, delivering(house, tellers={"v1": tell}):
        make_owed(house, receiver.url)
        (received,) = receiver.wait()

    assert received.headers["content-length"] == str(len(received.body)) == "3000031"
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(received.body, dict(received.headers)) == ["x" * 99_998] * 30


def test_what_can_not_be_read_or_kept_is_an_attempt_that_has_failed(house: House) -> None:
    def tell(_: Job) -> Message:
        def pieces() -> Iterator[bytes]:
            yield b"begin"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Message(pieces())

    with Receiver() as receiver, delivering(house, tellers={"v1": tell}):
        job = make_owed(house, receiver.url)
        assert eventually(lambda: callback_of(house, job).attempts)
        attempt = callback_of(house, job).attempts[0]
    assert (attempt.status, attempt.error) == (None, "not sent: No space left on device")
    assert not receiver.received


@pytest.mark.parametrize("size", [100_000, 300], ids=["at once", "only when it is flushed"])
def test_what_a_full_disk_does_not_take_is_an_attempt_that_has_failed(house: House, mount: Mount, size: int) -> None:
    """What is small stays in a buffer for a while: the last of it is refused when that is written."""
    disk = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")

    def tell(_: Job) -> Message:
        return Message(b"x" * size for _ in range((1 << 20) // size + 2))

    with Receiver() as receiver, delivering(house, tellers={"v1": tell}, directory=disk):
        job = make_owed(house, receiver.url)
        assert eventually(lambda: callback_of(house, job).attempts)
        attempt = callback_of(house, job).attempts[0]
    assert (attempt.status, attempt.error) == (None, "not sent: No space left on device")
    assert not receiver.received


@pytest.mark.parametrize("what", ["none", "broken"])
def test_a_teller_that_is_missing_or_broken_is_told_in_the_attempts(new_house: NewHouse, what: str) -> None:
    def fail(_job: Job) -> Message:
        raise ZeroDivisionError

    house = new_house(callbacks={"schedule": (0.0, 0.05)})
    with Receiver() as receiver, delivering(house, tellers={"broken": fail} if what == "none" else {"v1": fail}):
        callback = settled(house, make_owed(house, receiver.url))

    assert callback.state is CallbackState.FAILED
    assert statuses(callback) == [None, None]
    assert ("nobody here" if what == "none" else "ZeroDivisionError") in str(callback.attempts[0].error)
    assert receiver.received == []


# ── again, and no more ──


def test_it_is_sent_until_it_is_taken(house: House) -> None:
    with Receiver(status(500), status(404), status(200)) as receiver, delivering(house):
        callback = settled(house, make_owed(house, receiver.url))

    assert (callback.state, statuses(callback)) == (CallbackState.DELIVERED, [500, 404, 200])
    assert [attempt.error for attempt in callback.attempts] == ["answered 500", "answered 404", None]


def test_at_the_end_of_the_schedule_it_has_failed(house: House) -> None:
    with Receiver(status(503)) as receiver, delivering(house):
        callback = settled(house, make_owed(house, receiver.url))

        assert (callback.state, statuses(callback)) == (CallbackState.FAILED, [503] * len(AT_ONCE))
        assert len(receiver.received) == len(AT_ONCE)


def test_a_receiver_that_wants_no_more_gets_no_more(house: House) -> None:
    with Receiver(status(500), status(410)) as receiver, delivering(house):
        callback = settled(house, make_owed(house, receiver.url))

    assert (callback.state, statuses(callback)) == (CallbackState.STOPPED, [500, 410])


def test_a_redirect_is_a_failure(house: House) -> None:
    with Receiver() as elsewhere, Receiver(status(302, location=elsewhere.url), status(200)) as receiver:
        with delivering(house):
            callback = settled(house, make_owed(house, receiver.url))

        assert elsewhere.connections == 0
    assert statuses(callback) == [302, 200]
    assert "redirects are not followed" in str(callback.attempts[0].error)


@pytest.mark.parametrize(
    ("retry_after", "least", "most"), [("3600", 3600, 3700), ("1", 100, 110), ("9999999", 86400, 86500)]
)
def test_the_next_attempt_is_at_the_later_of_schedule_and_retry_after(
    new_house: NewHouse, retry_after: str, least: float, most: float
) -> None:
    house = new_house(callbacks={"schedule": (0.0, 100.0)})
    with Receiver(status(429, retry_after=retry_after)) as receiver, delivering(house):
        job = make_owed(house, receiver.url)
        assert eventually(lambda: callback_of(house, job).attempts)

    callback = callback_of(house, job)
    assert callback.next_at is not None
    assert least <= (callback.next_at - callback.attempts[0].at).total_seconds() < most


def test_the_first_attempt_waits_if_the_schedule_says_so(new_house: NewHouse) -> None:
    house = new_house(callbacks={"schedule": (1000.0,)})
    clock = Clock()
    with Receiver() as receiver, delivering(house, now=clock):
        job = make_owed(house, receiver.url)
        due_at = job.finished_at + timedelta(seconds=1000) if job.finished_at else None
        assert eventually(lambda: callback_of(house, job).next_at == due_at)
        assert receiver.connections == 0

        clock.ahead = timedelta(seconds=1001)
        receiver.wait()
        assert statuses(settled(house, job)) == [204]


def test_what_is_refused_by_policy_never_leaves(new_house: NewHouse) -> None:
    """A literal address is refused at submission; here policy has changed since, and names are judged only now."""
    lax, strict = (new_house(callbacks={"schedule": (0.0,), "deny": deny}) for deny in ((), rules("127.0.0.0/8, ::1")))
    with Receiver() as receiver:
        jobs = [make_owed(lax, f"http://{host}:{receiver.port}/") for host in ("127.0.0.1", "localhost")]
        with delivering(strict):
            callbacks = [settled(strict, job) for job in jobs]

        assert receiver.connections == 0
    assert [callback.state for callback in callbacks] == [CallbackState.FAILED] * 2
    assert all("not allowed" in str(callback.attempts[0].error) for callback in callbacks)


def test_one_that_is_over_can_be_sent_again(new_house: NewHouse) -> None:
    house = new_house(callbacks={"schedule": (0.0, 0.05)})
    with Receiver(status(500), status(500), status(500), status(204)) as receiver, delivering(house):
        job = make_owed(house, receiver.url)
        assert settled(house, job).state is CallbackState.FAILED

        assert house.callbacks.send_again(job.id, CALLER)[0].state is CallbackState.PENDING
        callback = settled(house, job)

    assert (callback.state, statuses(callback)) == (CallbackState.DELIVERED, [500, 500, 500, 204])
    assert receiver.ids() == [job.id] * 4


def test_a_deleted_job_tells_nobody(house: House) -> None:
    with Receiver() as receiver:
        job = make_owed(house, receiver.url)
        house.jobs.delete(job.id, CALLER, force=False, patience=0)
        with delivering(house):
            make_owed(house, receiver.url)
            receiver.wait()

    assert job.id not in receiver.ids()


# ── one receiver is not in the way of the others, nor of the jobs ──


def test_a_hanging_receiver_holds_no_job(new_house: NewHouse) -> None:
    house = new_house(executor={"max_running": 1})
    with Receiver(hang) as receiver, running_executor(house), delivering(house):
        make_job(house, argv("true", callback_url=receiver.url))
        receiver.wait()
        later = [make_job(house, argv("true", callback_url=receiver.url)) for _ in range(10)]
        assert [wait(house, job).state.is_ended for job in later] == [True] * 10
        receiver.closing.set()


@pytest.mark.parametrize("answer", [hang, drip(b"HTTP/1.1 200 OK\r\nX: y")], ids=["hangs", "drips"])
def test_a_receiver_that_takes_all_its_time_delays_no_other(new_house: NewHouse, answer: Answer) -> None:
    """200 callbacks to one that takes for ever were there first; 200 to another are all taken, the former are not."""
    house = new_house(callbacks={"timeout": 60.0, "max_sending": 8, "max_per_receiver": 4})
    with Receiver(answer) as dead, Receiver() as live:
        for _ in range(200):
            make_owed(house, dead.url)
        expected = [make_owed(house, live.url).id for _ in range(200)]
        with delivering(house):
            live.wait(200, within=60)
            assert len(dead.received) <= 4
            dead.closing.set()

    assert sorted(live.ids()) == sorted(expected)


def test_many_hanging_receivers_delay_no_other_for_long(new_house: NewHouse) -> None:
    """Each of them gets places until it is known to be slow; then half of the places are left for others."""
    house = new_house(callbacks={"timeout": 0.5, "max_sending": 4, "max_per_receiver": 4, "schedule": (0.0, 3600.0)})
    dead = [Receiver(hang) for _ in range(6)]
    for receiver in dead:
        receiver.__enter__()
    with Receiver() as live:
        for receiver in dead:
            for _ in range(30):
                make_owed(house, receiver.url)
        with delivering(house):
            assert eventually(lambda: all(receiver.received for receiver in dead), within=30)
            for _ in range(50):
                make_owed(house, live.url)
            live.wait(50, within=20)
            assert sum(len(receiver.received) for receiver in dead) < 180
            for receiver in dead:
                receiver.closing.set()
    for receiver in dead:
        receiver.__exit__(None, None, None)


def test_no_more_than_allowed_are_under_way(new_house: NewHouse) -> None:
    house = new_house(callbacks={"max_sending": 5, "max_per_receiver": 2})
    now, most, lock = Counter[int](), Counter[int](), threading.Lock()

    def count(receiver: Receiver, handler: Any) -> None:
        with lock:
            now[receiver.port] += 1
            most[receiver.port] = max(most[receiver.port], now[receiver.port])
            most[0] = max(most[0], now.total())
        time.sleep(0.02)
        with lock:
            now[receiver.port] -= 1
        status(204)(receiver, handler)

    with Receiver(count) as first, Receiver(count) as second, Receiver(count) as third:
        receivers = (first, second, third)
        for number in range(60):
            make_owed(house, receivers[number % 3].url)
        with delivering(house):
            for receiver in receivers:
                receiver.wait(20)

    assert all(most[receiver.port] <= 2 for receiver in receivers)
    assert 2 < most[0] <= 5


def test_several_who_send_send_each_callback_once(new_house: NewHouse) -> None:
    houses = [new_house() for _ in range(3)]
    with Receiver() as receiver:
        expected = [make_owed(houses[0], receiver.url).id for _ in range(100)]
        with delivering(houses[0]), delivering(houses[1]), delivering(houses[2]):
            receiver.wait(100, within=60)
            assert eventually(lambda: not owed(houses[0]))

    assert sorted(receiver.ids()) == sorted(expected)


def owed(house: House) -> list[store.Waiting]:
    with house.database.read() as connection:
        return store.list_waiting(connection)


# ── who sends it dies, or stops ──


def test_what_a_dead_one_has_taken_is_sent_when_its_lease_has_run_out(house: House) -> None:
    clock = Clock()
    with Receiver() as receiver:
        job = make_owed(house, receiver.url)
        with house.database.write() as connection:
            (claim,) = store.claim_callbacks(
                connection, f"127.0.0.1:{receiver.port}", "dead", now=utc_now(),
                until=utc_now() + timedelta(seconds=1000), limit=1,
            )  # fmt: skip
        with delivering(house, now=clock):
            other = make_owed(house, receiver.url)
            settled(house, other)
            assert callback_of(house, job).attempts == ()

            clock.ahead = timedelta(seconds=1001)
            assert settled(house, job).state is CallbackState.DELIVERED

    assert receiver.ids() == [other.id, job.id]
    assert claim.number == job.number


def test_what_can_not_be_finished_in_time_is_left_to_the_next_one(new_house: NewHouse) -> None:
    house = new_house(callbacks={"timeout": 30.0})
    with Receiver(hang, status(204)) as receiver:
        with delivering(house):
            job = make_owed(house, receiver.url)
            receiver.wait()
        assert callback_of(house, job).next_at is not None, "the lease was given back"

        with delivering(house):
            callback = settled(house, job)
        receiver.closing.set()

    assert statuses(callback) == [204]
    assert receiver.ids() == [job.id] * 2


def test_a_callback_outlives_a_kill_between_the_end_of_its_job_and_the_sending(new_house: NewHouse) -> None:
    house = new_house()
    settings = {"JOBRUNNER_CALLBACKS_SCHEDULE": "5, 1, 1"}
    with Receiver() as receiver:
        with ExecutorProcess(house, environment=settings) as executor:
            jobs = [make_job(house, argv("true", callback_url=receiver.url)) for _ in range(5)]
            assert eventually(lambda: all(has_next(house, job) for job in jobs))
            executor.crash()
        assert receiver.received == [], "the crash was too late"

        with ExecutorProcess(house, environment=settings):
            receiver.wait(5)
            assert [settled(house, job).state for job in jobs] == [CallbackState.DELIVERED] * 5

    assert sorted(receiver.ids()) == sorted(job.id for job in jobs)


def test_a_receiver_that_is_down_is_told_when_it_is_up(new_house: NewHouse) -> None:
    house = new_house(callbacks={"schedule": (0.0, *[0.2] * 100)})
    port = free_port()
    with running_executor(house), delivering(house):
        job = make_job(house, argv("true", callback_url=f"http://127.0.0.1:{port}/"))
        assert eventually(lambda: [attempt.error for attempt in attempts(house, job)][:1] == ["Connection refused"])

        with Receiver(port=port) as receiver:
            (received,) = receiver.wait()
            assert json.loads(received.body)["data"]["id"] == job.id


def attempts(house: House, job: Job) -> list[Attempt]:
    return [attempt for callback in house.callbacks.list(job.id, CALLER) for attempt in callback.attempts]


def has_next(house: House, job: Job) -> bool:
    return any(callback.next_at is not None for callback in house.callbacks.list(job.id, CALLER))
