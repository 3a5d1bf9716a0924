"""Wake-ups between processes, any of which may be lost."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from jobrunner.domain.ids import make_job_id
from jobrunner.hints import Hint, Hints
from tests.service import ROOT, clean_environment, eventually


@pytest.fixture
def hints(tmp_path: Path) -> Iterator[Hints]:
    """The hints of a data directory."""
    made = Hints(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def job_id() -> str:
    """An id of its own for each test: a job's address is the same for all data directories."""
    return make_job_id(int(time.time() * 1000))


def test_the_executor_hears_what_it_should_look_for(hints: Hints) -> None:
    with hints.open_executor_inbox() as inbox:
        for _ in range(3):
            hints.wake_executor(Hint.QUEUED)
        hints.wake_executor(Hint.CONTROL)

        assert inbox.wait(5) == {Hint.QUEUED.value, Hint.CONTROL.value}
        assert inbox.wait(0) == set()


def test_a_hint_that_nobody_listens_to_is_lost_without_a_word(hints: Hints, job_id: str) -> None:
    hints.wake_executor(Hint.QUEUED)
    hints.job_ended(job_id)

    with hints.open_executor_inbox() as inbox, hints.open_job_inbox(job_id) as waiting:
        assert inbox.wait(0) == set()
        assert waiting.wait(0) == set()


def test_an_executor_that_does_not_listen_blocks_nobody(hints: Hints) -> None:
    with hints.open_executor_inbox() as inbox:
        begun = time.monotonic()
        for _ in range(5000):
            hints.wake_executor(Hint.QUEUED)
        assert time.monotonic() - begun < 5
        assert inbox.wait(0) == {Hint.QUEUED.value}


def test_the_next_executor_takes_the_place_of_one_that_died(hints: Hints, tmp_path: Path) -> None:
    dead = hints.open_executor_inbox()
    dead.close()
    assert (tmp_path / "run" / "executor.sock").exists()

    with hints.open_executor_inbox() as inbox:
        hints.wake_executor(Hint.QUEUED)
        assert inbox.wait(5)


def test_hints_go_from_one_process_to_another(hints: Hints, tmp_path: Path, job_id: str) -> None:
    program = (
        "import sys; from pathlib import Path; from jobrunner.hints import Hint, Hints\n"
        f"hints = Hints(Path({str(tmp_path / 'run')!r}))\n"
        f"hints.wake_executor(Hint.CONTROL); hints.job_ended({job_id!r})"
    )
    with hints.open_executor_inbox() as inbox, hints.open_job_inbox(job_id) as waiting:
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=clean_environment(), check=True)

        assert inbox.wait(0) == {Hint.CONTROL.value}
        assert waiting.wait(0)


def test_a_data_directory_may_have_a_path_longer_than_a_socket_s_address(tmp_path: Path) -> None:
    hints = Hints(tmp_path / ("long" * 50) / ("er" * 50) / "run")
    with hints.open_executor_inbox() as inbox:
        hints.wake_executor(Hint.QUEUED)
        assert inbox.wait(5) == {Hint.QUEUED.value}
    hints.close()


def test_two_data_directories_have_nothing_to_do_with_each_other(tmp_path: Path) -> None:
    here, there = Hints(tmp_path / "a"), Hints(tmp_path / "b")
    with here.open_executor_inbox() as inbox, there.open_executor_inbox() as other:
        there.wake_executor(Hint.QUEUED)
        assert inbox.wait(0) == set()
        assert other.wait(0)
    here.close()
    there.close()


# ── the end of a job ──


@pytest.mark.parametrize("size", [1, 2, 50])
def test_everyone_who_waits_for_a_job_hears_of_its_end(hints: Hints, job_id: str, size: int) -> None:
    with ExitStack() as stack:
        inboxes = [stack.enter_context(hints.open_job_inbox(job_id)) for _ in range(size)]
        hints.job_ended(job_id)
        assert all(inbox.wait(0) for inbox in inboxes)


def test_the_end_of_another_job_wakes_nobody(hints: Hints, job_id: str) -> None:
    with hints.open_job_inbox(job_id) as inbox:
        hints.job_ended(make_job_id(0))
        assert inbox.wait(0) == set()


def test_a_place_is_free_again_when_its_inbox_is_closed(hints: Hints, job_id: str) -> None:
    for _ in range(1000):
        with hints.open_job_inbox(job_id) as inbox:
            hints.job_ended(job_id)
            assert inbox.wait(0)


def test_more_who_wait_than_there_are_places_lose_their_hints_only(hints: Hints, job_id: str) -> None:
    with ExitStack() as stack:
        inboxes = [stack.enter_context(hints.open_job_inbox(job_id)) for _ in range(300)]
        hints.job_ended(job_id)
        heard = [bool(inbox.wait(0)) for inbox in inboxes]

    assert heard[:256] == [True] * 256
    assert len(heard) == 300


# ── waiting ──


def test_an_inbox_waits_no_longer_than_it_was_told(hints: Hints, job_id: str) -> None:
    with hints.open_job_inbox(job_id) as inbox:
        begun = time.monotonic()
        assert inbox.wait(0.2) == set()
        assert 0.19 <= time.monotonic() - begun < 2


def test_a_hint_ends_the_wait_at_once(hints: Hints, job_id: str) -> None:
    with hints.open_job_inbox(job_id) as inbox, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(inbox.wait, 30)
        hints.job_ended(job_id)
        assert waiting.result(timeout=5)


def test_an_interrupt_ends_the_wait_at_once_and_every_later_one(hints: Hints, job_id: str) -> None:
    with hints.open_job_inbox(job_id) as inbox, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(inbox.wait, 30)
        inbox.interrupt()
        inbox.interrupt()
        assert waiting.result(timeout=5) == set()
        begun = time.monotonic()
        assert inbox.wait(30) == set()
        assert time.monotonic() - begun < 5


def test_an_interrupt_that_comes_too_late_is_harmless(hints: Hints, job_id: str, tmp_path: Path) -> None:
    """Its inbox may be closed at any moment; the number of the descriptor is somebody else's then."""
    inbox = hints.open_job_inbox(job_id)
    inbox.close()
    with ExitStack() as stack:
        files = [stack.enter_context((tmp_path / f"{number}").open("wb", buffering=0)) for number in range(5)]
        inbox.interrupt()

    assert [Path(str(file.name)).read_bytes() for file in files] == [b""] * 5


def test_no_descriptor_is_inherited_by_what_is_executed(hints: Hints, job_id: str) -> None:
    before = _inheritable()
    with hints.open_executor_inbox(), hints.open_job_inbox(job_id):
        hints.wake_executor(Hint.QUEUED)
        assert _inheritable() == before


def _inheritable() -> set[str]:
    found = set()
    for fd in _descriptors():
        with suppress(OSError):  # the one of the listing itself
            if os.get_inheritable(int(fd)):
                found.add(fd)
    return found


def _descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_threads_that_send_at_once_for_the_first_time_leak_nothing(tmp_path: Path) -> None:
    """The guard over all tests counts descriptors."""
    for attempt in range(30):
        hints = Hints(tmp_path / f"{attempt}")
        together = threading.Barrier(8)

        def send(hints: Hints = hints, together: threading.Barrier = together) -> None:
            together.wait()
            hints.wake_executor(Hint.QUEUED)

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hints.close()


def test_closing_gives_every_descriptor_back(tmp_path: Path, job_id: str) -> None:
    before = _descriptors()
    hints = Hints(tmp_path)
    hints.open_executor_inbox().close()
    hints.open_job_inbox(job_id).close()
    hints.wake_executor(Hint.QUEUED)
    hints.close()

    assert eventually(lambda: _descriptors() == before)


def test_who_sends_callbacks_is_told_of_an_end_that_owes_one(hints: Hints, job_id: str) -> None:
    with hints.open_deliverer_inbox() as inbox, hints.open_executor_inbox() as executor:
        hints.job_ended(job_id)
        assert inbox.wait(0) == set()

        hints.job_ended(job_id, owes_callback=True)
        assert inbox.wait(5)
        assert executor.wait(0) == set()
