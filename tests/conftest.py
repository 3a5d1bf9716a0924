"""Fixtures for all tests, and the guards that no test may leave anything behind."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest

from jobrunner.house import House
from tests.factories import make_house
from tests.service import Service, eventually

# Under nohup(1) or a shell's & these are ignored, also by all that the tests start: then they can't be trapped.
for _number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

StartService = Callable[..., Service]
Mount = Callable[..., Path]


def miss(what: str) -> NoReturn:
    """Skip a test for want of something; in CI nothing may be wanting."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two workers that many tests share: they look only at their own jobs."""
    settings = {"auth": {"max_failures": 1_000_000}}  # some tests try many wrong tokens
    running = Service(tmp_path_factory.mktemp("service") / "data", settings).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start services of one's own: ``start_service({"executor": {"max_running": 1}})``."""
    started: list[Service] = []

    def start(settings: dict[str, dict[str, Any]] | None = None, **arguments: Any) -> Service:
        data_dir = arguments.pop("data_dir", tmp_path / "data")
        running = Service(data_dir, settings, **arguments)
        started.append(running)
        return running.start()

    yield start
    for running in started:
        if running.process is not None and running.process.poll() is None:
            running.stop()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """The parts of a service over a fresh data directory, in this process; nobody runs its jobs."""
    built = make_house(tmp_path / "data")
    yield built
    built.database.close()
    built.hints.close()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount file systems: ``mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")`` returns where."""
    if os.geteuid() != 0:
        miss("only root can mount file systems")
    with ExitStack() as mounted:

        def make(*arguments: str) -> Path:
            point = tmp_path / "mount"
            point.mkdir()
            subprocess.run(["mount", *arguments, point], check=True)
            mounted.callback(subprocess.run, ["umount", "--lazy", str(point)], check=True)
            return point

        yield make


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a thread or an open descriptor."""
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    assert eventually(lambda: set(threading.enumerate()) <= threads), f"threads: {set(threading.enumerate()) - threads}"
    left = {fd: target for fd, target in _descriptors().items() if descriptors.get(fd) != target}
    # The shared service's client keeps connections.
    left = {fd: target for fd, target in left.items() if not target.startswith("socket:")}
    assert not left, f"descriptors: {left}"


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
    return found
