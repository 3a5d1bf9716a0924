"""Waiting for the end of a job: bounded, woken at once, and given up in order."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobrunner.domain.errors import TooBusy
from jobrunner.domain.ids import make_job_id
from jobrunner.hints import Hints
from jobrunner.service.waiting import PAUSE, Waiters
from tests.factories import CALLER
from tests.service import eventually


@pytest.fixture
def hints(tmp_path: Path) -> Iterator[Hints]:
    """The hints of a data directory."""
    made = Hints(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that wait."""
    with ThreadPoolExecutor(40) as made:
        yield made


@pytest.fixture
def job_id() -> str:
    """The id of a job that nobody else waits for."""
    return make_job_id(int(time.time() * 1000))


def never() -> bool:
    return False


def wait(waiters: Waiters, job_id: str, has_ended: Callable[[], bool], seconds: float) -> float:
    """Take a seat and wait; return the seconds that it took."""
    begun = time.monotonic()
    with waiters.listen(job_id, CALLER) as listener:
        more = True
        while more and not has_ended():
            more = listener.wait(begun + seconds)
    return time.monotonic() - begun


def listen(waiters: Waiters, size: int) -> bool:
    """Tell whether so many are waiting, so that a hint reaches all of them."""
    return eventually(lambda: len(waiters._inboxes) == size)


def test_a_hint_wakes_a_waiter_before_it_looks_by_itself(hints: Hints, pool: ThreadPoolExecutor, job_id: str) -> None:
    waiters = Waiters(hints, limit=1)
    took = []
    for _ in range(10):
        ended = threading.Event()
        waiting = pool.submit(wait, waiters, job_id, ended.is_set, 30)
        assert listen(waiters, 1)
        begun = time.monotonic()
        ended.set()
        hints.job_ended(job_id)
        waiting.result(timeout=5)
        took.append(time.monotonic() - begun)

    assert sorted(took)[5] < PAUSE / 5


def test_a_lost_hint_delays_a_waiter_by_a_pause_only(hints: Hints, pool: ThreadPoolExecutor, job_id: str) -> None:
    waiters = Waiters(hints, limit=1)
    ended = threading.Event()
    waiting = pool.submit(wait, waiters, job_id, ended.is_set, 30)
    assert listen(waiters, 1)

    ended.set()

    assert waiting.result(timeout=10) < 5


def test_a_job_that_has_ended_already_is_not_waited_for(hints: Hints, job_id: str) -> None:
    assert wait(Waiters(hints, limit=1), job_id, lambda: True, 30) < 1


def test_a_waiter_gives_up_when_its_time_is_up(hints: Hints, job_id: str) -> None:
    assert 0.29 <= wait(Waiters(hints, limit=1), job_id, never, 0.3) < 2


def test_a_hint_that_is_not_true_ends_no_wait(hints: Hints, pool: ThreadPoolExecutor, job_id: str) -> None:
    """A hint carries no state, and anybody on this machine can send one: the waiter has to look."""
    waiters = Waiters(hints, limit=1)
    waiting = pool.submit(wait, waiters, job_id, never, 0.6)
    assert listen(waiters, 1)

    hints.job_ended(job_id)

    assert waiting.result(timeout=5) >= 0.59


def test_everyone_who_waits_for_the_same_job_is_woken(hints: Hints, pool: ThreadPoolExecutor, job_id: str) -> None:
    waiters = Waiters(hints, limit=20)
    ended = threading.Event()
    waiting = [pool.submit(wait, waiters, job_id, ended.is_set, 30) for _ in range(20)]
    assert listen(waiters, 20)

    ended.set()
    hints.job_ended(job_id)

    assert all(waiter.result(timeout=5) < 5 for waiter in waiting)
    assert waiters.count == 0


# ── bounds ──


def test_no_more_wait_than_there_are_seats(hints: Hints, pool: ThreadPoolExecutor, job_id: str) -> None:
    waiters = Waiters(hints, limit=3)
    ended = threading.Event()
    waiting = [pool.submit(wait, waiters, job_id, ended.is_set, 30) for _ in range(3)]
    assert eventually(lambda: waiters.count == 3)

    with pytest.raises(TooBusy) as refusal:
        wait(waiters, job_id, never, 30)

    assert refusal.value.retry_after >= 1
    assert waiters.count == 3
    ended.set()
    hints.job_ended(job_id)
    for waiter in waiting:
        waiter.result(timeout=5)
    assert wait(waiters, job_id, lambda: True, 30) < 1


def test_of_many_at_once_exactly_as_many_as_there_are_seats_wait(
    hints: Hints, pool: ThreadPoolExecutor, job_id: str
) -> None:
    waiters = Waiters(hints, limit=7)
    together, ended = threading.Barrier(40), threading.Event()

    def come() -> bool:
        together.wait()
        try:
            wait(waiters, job_id, ended.is_set, 30)
        except TooBusy:
            return False
        return True

    comers: list[Future[bool]] = [pool.submit(come) for _ in range(40)]
    assert eventually(lambda: sum(comer.done() for comer in comers) == 33)
    ended.set()
    hints.job_ended(job_id)

    assert sum(comer.result(timeout=5) for comer in comers) == 7
    assert waiters.count == 0


def test_a_seat_is_free_again_whatever_happened_on_it(hints: Hints, job_id: str) -> None:
    waiters = Waiters(hints, limit=1)

    def fail() -> bool:
        raise KeyError("of the look")

    for _ in range(3):
        with pytest.raises(KeyError, match="of the look"):
            wait(waiters, job_id, fail, 30)

    assert waiters.count == 0


def test_without_seats_nobody_waits(hints: Hints, job_id: str) -> None:
    with pytest.raises(TooBusy):
        wait(Waiters(hints, limit=0), job_id, lambda: True, 30)


def test_the_bound_can_be_lowered_and_not_raised(hints: Hints) -> None:
    waiters = Waiters(hints, limit=3)
    waiters.limit_to(10)
    waiters.limit_to(2)

    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(waiters.seat())
        with pytest.raises(TooBusy), waiters.seat():
            pass


# ── the end of the process ──


def test_closing_returns_everyone_who_waits(hints: Hints, pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(hints, limit=20)
    waiting = [pool.submit(wait, waiters, make_job_id(number), never, 60) for number in range(20)]
    assert listen(waiters, 20)

    begun = time.monotonic()
    waiters.close()

    assert all(waiter.result(timeout=5) < 60 for waiter in waiting)
    assert time.monotonic() - begun < 5
    assert waiters.count == 0


def test_nobody_waits_any_more_after_closing(hints: Hints, job_id: str) -> None:
    waiters = Waiters(hints, limit=1)
    waiters.close()

    assert wait(waiters, job_id, never, 30) < 1


def test_closing_while_others_come_and_go_returns_all(hints: Hints, pool: ThreadPoolExecutor) -> None:
    waiters = Waiters(hints, limit=40)
    waiting = [
        pool.submit(wait, waiters, make_job_id(number), never, (number % 5) * 0.01 or 60) for number in range(40)
    ]

    assert eventually(lambda: waiters.count > 0)
    waiters.close()

    for waiter in waiting:
        assert waiter.result(timeout=10) < 60
