"""Readiness: asked by anyone, so it may cost next to nothing."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobrunner.domain.errors import StorageError
from jobrunner.drain import Drain
from jobrunner.service.health import CHECK_SECONDS, HealthService
from jobrunner.store.engine import Database
from tests.service import eventually


class CountingDatabase(Database):
    """Counts how often it is checked; may hold the check up, or refuse."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.checks = 0
        self.trouble: str | None = None
        self.go_on = threading.Event()
        self.go_on.set()

    def check_writable(self) -> None:
        self.checks += 1
        assert self.go_on.wait(10)
        if self.trouble is not None:
            raise StorageError(self.trouble)
        super().check_writable()


class Clock:
    """Monotonic seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def counting(data_dir: Path) -> Iterator[CountingDatabase]:
    """A database that counts its checks."""
    opened = CountingDatabase(data_dir / "jobrunner.db")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    """The clock of the service under test."""
    return Clock()


@pytest.fixture
def health(counting: CountingDatabase, data_dir: Path, clock: Clock) -> HealthService:
    """Readiness of this data directory."""
    drain = Drain(data_dir / "draining")
    return HealthService(
        counting, data_dir, data_dir / "executor.lock", drain, min_free_bytes=0, slots=1, monotonic=clock
    )


def test_the_database_is_written_to_once_a_second_at_most(
    health: HealthService, counting: CountingDatabase, clock: Clock
) -> None:
    for _ in range(5):
        assert health.check()["database"] is None
    assert counting.checks == 1

    clock.now += CHECK_SECONDS
    health.check()
    assert counting.checks == 2


def test_trouble_and_its_end_are_told_within_a_second(
    health: HealthService, counting: CountingDatabase, clock: Clock
) -> None:
    health.check()
    counting.trouble = "the disk is gone"

    clock.now += CHECK_SECONDS
    assert health.check()["database"] == "the disk is gone"
    counting.trouble = None
    assert health.check()["database"] == "the disk is gone"
    clock.now += CHECK_SECONDS
    assert health.check()["database"] is None


def test_threads_that_ask_at_once_share_one_look(
    health: HealthService, counting: CountingDatabase, clock: Clock
) -> None:
    counting.go_on.clear()
    counting.trouble = "busy"
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(health.check) for _ in range(8)]
        assert eventually(lambda: counting.checks)
        counting.go_on.set()
        found = {each.result()["database"] for each in asked}

    assert found == {"busy"}
    assert counting.checks == 1
