"""What tests with real processes share: nothing that they started may outlive them."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobrunner.executor.spawning import ChildProcess, spawn
from jobrunner.house import House
from jobrunner.spool import JobStreams
from tests.factories import make_config, make_house
from tests.process.running import job_processes
from tests.service import eventually

NewHouse = Callable[..., House]
Spawn = Callable[..., ChildProcess]

PATH = "/usr/local/bin:/usr/bin:/bin"
RUNS_ON: tuple[str, ...] = ("/bin/sleep", "60")


@pytest.fixture(scope="session")
def empty_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with an empty database: to be copied, which is faster than to migrate each time."""
    house = make_house(tmp_path_factory.mktemp("prepared") / "data")
    house.hints.close()
    return house.data_dir


@pytest.fixture
def new_house(tmp_path: Path, empty_data_dir: Path) -> Iterator[NewHouse]:
    """Make houses over one fresh data directory: ``new_house(executor={"max_running": 2})``."""
    made: list[House] = []

    def make(**sections: dict[str, Any]) -> House:
        if not made:
            shutil.copytree(empty_data_dir, tmp_path / "data")
        made.append(House(make_config(tmp_path / "data", **sections)))
        return made[-1]

    yield make
    for house in made:
        house.database.close()
        house.hints.close()


@pytest.fixture
def house(new_house: NewHouse) -> House:
    """The parts of a service over a fresh data directory, in this process; nobody runs its jobs."""
    return new_house()


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[Spawn]:
    """Start a process whose output goes to files; it is killed and reaped at the end of the test."""
    made: list[ChildProcess] = []

    def start(*argv: str, cwd: Path = tmp_path, env: Mapping[str, str] | None = None) -> ChildProcess:
        stdin = os.open(os.devnull, os.O_RDONLY)
        stdout = os.open(tmp_path / "stdout", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        stderr = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with JobStreams(stdin, stdout, stderr) as streams:
            child = spawn(argv, cwd=str(cwd), env={"PATH": PATH} if env is None else env, streams=streams)
        made.append(child)
        return child

    yield start
    for child in made:
        if child._popen.returncode is None:  # neither released nor left
            child.signal_group(signal.SIGKILL)
            child.release()


def has_ended(child: ChildProcess) -> bool:
    return eventually(lambda: child.exit_status() is not None)


@pytest.fixture
def passable_path() -> Iterator[Path]:
    """A directory that others can go through: pytest's own is closed to them."""
    path = Path(tempfile.mkdtemp(prefix="jobrunner-test-"))
    path.chmod(0o711)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group to divide."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    places = [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2" and os.access(where, os.W_OK)]
    if not places:
        pytest.skip("no control group (version 2) can be written to on this machine")  # nothing to be installed
    path = places[0] / f"jobrunner-test-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    assert eventually(lambda: list(path.glob("job-*")) == []), "control groups are left"
    path.rmdir()


@pytest.fixture(autouse=True)
def ends_what_is_left(tmp_path: Path) -> Iterator[None]:
    """End the processes of the test's jobs, wherever they were re-parented to, and reap our own children.

    An executor that gives its jobs up leaves them, and their zombies, on purpose.
    """
    before = _children()
    yield
    for pid in job_processes(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in _children() - before:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    assert eventually(lambda: not job_processes(tmp_path))


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):
            found.update(map(int, (task / "children").read_text().split()))
    return found
