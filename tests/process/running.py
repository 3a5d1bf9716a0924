"""Runs jobs in tests: executors with odd clocks or deaf hints, executors in a process of their own, what jobs leave."""

import ctypes
import json
import resource
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jobrunner.clock import Now, utc_now
from jobrunner.domain.job import Job
from jobrunner.domain.spec import COOKIE
from jobrunner.domain.states import JobState
from jobrunner.ends import EndsFile
from jobrunner.executor.pool import Executor
from jobrunner.executor.run import Run
from jobrunner.executor.running import MakeRun
from jobrunner.hints import Hint, Hints
from jobrunner.house import House
from jobrunner.locks import FileLock, is_locked
from jobrunner.service.submission import Submission
from jobrunner.spool import Spool
from jobrunner.store import execution
from jobrunner.store import jobs as store
from tests.factories import CALLER, is_dead, make_job, running_executor
from tests.service import ROOT, STARTUP, clean_environment, eventually

PATH = "/usr/local/bin:/usr/bin:/bin"


class LostHints(Hints):
    """Every hint is lost on its way."""

    def wake_executor(self, hint: Hint) -> None:
        pass

    def job_ended(self, job_id: str, *, owes_callback: bool = False) -> None:
        pass


@dataclass
class Clock:
    """A wall clock that somebody sets."""

    ahead: timedelta = field(default_factory=timedelta)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def make_executor(
    house: House,
    *,
    now: Now = utc_now,
    hints: Hints | None = None,
    spool: Spool | None = None,
    make_run: MakeRun = Run,
) -> Executor:
    """Make an executor of this house with a clock, hints, a spool or runs of one's own."""
    settings = house.config.executor
    return Executor(
        secrets.token_hex(8),
        house.database,
        spool or house.spool,
        hints or house.hints,
        max_running=settings.max_running,
        stop_grace=settings.grace if settings.on_stop == "kill" else None,
        environment={"PATH": PATH},
        kill_leftovers=settings.kill_leftovers,
        output=house.config.output,
        orphans=None,
        drain=house.drain,
        ends=EndsFile(house.data_dir / "run" / "ends"),
        groups=None,
        masks=house.masks,
        confinement=house.confinement,
        now=now,
        make_run=make_run,
    )


class Background:
    """An executor on a thread of its own, and what became of it."""

    def __init__(self, executor: Executor, lock: Path) -> None:
        self.executor = executor
        self.failure: BaseException | None = None
        self.ready = threading.Event()
        self._lock = FileLock(lock)
        self._thread = threading.Thread(target=self._run, name="test-executor")

    def _run(self) -> None:
        try:
            self.executor.run(self._lock, on_ready=self.ready.set)
        except BaseException as error:  # noqa: BLE001 it is raised again where it is seen
            self.failure = error

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop it, and raise what it has failed with."""
        if self.is_alive:
            self.executor.stop()
        self._thread.join(timeout=30)
        assert not self.is_alive, "the executor does not stop"
        if self.failure is not None:
            raise self.failure


@contextmanager
def background(executor: Executor, lock: Path) -> Iterator[Background]:
    """Run an executor meanwhile."""
    running = Background(executor, lock)
    running.start()
    try:
        yield running
    finally:
        running.stop()


class ExecutorProcess:
    """``jobrunner executor``, a process of its own.

    Args:
        house: whose data directory it serves, with whose limits of output.
        shell: what a shell does before it becomes the executor: ``ulimit -n 64``.
        environment: more variables.
        settings: of the section ``[executor]``.
    """

    def __init__(
        self, house: House, shell: str = ":", *, environment: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        self._house = house
        self._command = ("/bin/sh", "-c", f'{shell}; exec "$@"', "sh", sys.executable, "-m", "jobrunner", "executor")
        values = {"storage_data_dir": house.data_dir, "storage_min_free_bytes": 0}
        values.update({f"executor_{key}": value for key, value in settings.items()})
        values.update({f"output_{key}": value for key, value in vars(house.config.output).items()})
        names = {f"JOBRUNNER_{key}".upper(): str(value) for key, value in values.items()}
        self._environment = clean_environment(**names, **(environment or {}))
        self.log = house.data_dir / "executor.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ExecutorProcess":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)
        assert eventually(lambda: is_locked(self._house.executor_lock), within=STARTUP), self.log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def crash(self) -> None:
        """End it as a crash does: nothing is tidied up."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def limit(self, what: int, soft: int) -> None:
        """Set one of its resource limits."""
        hard = resource.prlimit(self.pid, what)[1]
        resource.prlimit(self.pid, what, (soft, hard))


# ── jobs ──


def get(house: House, job: Job) -> Job:
    return house.jobs.get(job.id, CALLER)


def wait(house: House, job: Job, seconds: float = 20) -> Job:
    """Wait for the end of a job."""
    ended = house.jobs.wait(job, CALLER, seconds)
    assert ended.state.is_ended, f"job {job.number} is still {ended.state} after {seconds} s"
    return ended


def count(house: House, state: JobState) -> int:
    with house.database.read() as connection:
        return store.count_states(connection)[0][state]


def all_ended(house: House) -> bool:
    return count(house, JobState.QUEUED) + count(house, JobState.RUNNING) == 0


def claim(house: House) -> Job:
    """Claim the next job for an executor that is dead by now."""
    with house.database.write() as connection:
        return execution.claim_jobs(connection, "a dead executor", 1, utc_now())[0]


def run(house: House, asked: Submission) -> tuple[Job, str]:
    """Run a job; return how it has ended, and its stdout."""
    job = make_job(house, asked)
    with running_executor(house):
        return wait(house, job), stdout(house, job)


def scratch(house: House, job: Job) -> Path:
    return Path(house.spool.scratch(job.id))


def stdout(house: House, job: Job) -> str:
    return Path(house.spool.path(job.id), "stdout").read_text()


def process_file(house: House, job: Job) -> Path:
    return Path(house.spool.path(job.id), "process.json")


def pid_of(house: House, job: Job) -> int:
    """Return the pid of a job's process, once it is written down."""
    path = process_file(house, job)

    def read() -> int | None:
        """Before that there is nothing, or the mark that a step is about to be started."""
        text = path.read_bytes() if path.exists() else b""
        return json.loads(text).get("pid") if text else None

    assert eventually(lambda: read() is not None), f"job {job.number} has not been started"
    pid = read()
    assert pid is not None
    return pid


def started(house: House, job: Job, name: str = "ready") -> str:
    """Wait until a job has written a line to this file in its directory; return what is there."""
    path = scratch(house, job) / name
    assert eventually(lambda: path.exists() and path.read_text().endswith("\n")), f"job {job.number} is not ready"
    return path.read_text().strip()


def orphan(house: House, job: Job, executor: AbstractContextManager[ExecutorProcess], *, forget: bool) -> int:
    """Have a job lose its executor once it is ``ready``; return its pid, of which ``forget`` leaves no record."""
    with executor as first:
        started(house, job)
        pid = pid_of(house, job)
        first.crash()
    if forget:
        process_file(house, job).unlink()
    return pid


def job_processes(directory: Path) -> list[int]:
    """Return processes that carry a job's cookie and work below this directory; zombies have neither."""
    found = []
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()):
        with suppress(OSError):
            if f"{COOKIE}=".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                where = str(Path(f"/proc/{pid}/cwd").readlink())
                if where.removesuffix(" (deleted)").startswith(str(directory)):
                    found.append(pid)
    return found


@contextmanager
def parent_of_orphans() -> Iterator[None]:
    """Have this process be what the supervisor is: the parent of what dead executors leave (prctl(2))."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


_PR_SET_CHILD_SUBREAPER = 36


def is_alive(pid: int) -> bool:
    return not is_dead(pid)


def open_descriptors(*, besides: Path | None = None) -> int:
    """Count this process's descriptors, those aside whose file's name begins with this path."""
    targets = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of this very listing
            targets.append(str(entry.readlink()))
    return sum(besides is None or not target.startswith(str(besides)) for target in targets)
