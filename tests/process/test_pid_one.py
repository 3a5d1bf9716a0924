"""``jobrunner serve`` as process 1 of a container: without an engine, in a PID namespace of its own.

Process 1 is nobody's child in there, all orphans are its to reap, the kernel
drops signals that it does not listen to, and nothing survives it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import miss
from tests.factories import children_of
from tests.process.serving import GATED, child, children_with, command_line, ended, running_job, scratch
from tests.service import ROOT, Service, eventually

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

StartContained = Callable[..., "Contained"]


class Contained(Service):
    """A service that is process 1 in a namespace of its own; `pid` is its number out here.

    Args:
        before: what a shell does first in there.
    """

    def __init__(self, data_dir: Path, settings: dict[str, dict[str, Any]] | None = None, *, before: str = ":") -> None:
        serve = ("sh", "-ec", f'{before}; exec "$@"', "sh", sys.executable, "-m", "jobrunner", "serve")
        super().__init__(data_dir, settings, command=(*UNSHARE, *serve))
        self._first = 0

    @property
    def pid(self) -> int:
        if not self._first:
            assert self.process is not None
            (self._first,) = children_of(self.process.pid)
        return self._first

    def zombies(self) -> list[int]:
        """Return who of process 1's children has ended and was not reaped."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sorted({int(pid) for pid in found} - set(children_of(self.pid)))


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        miss(f"can't make a PID namespace: {tried.stderr.strip()}")


@pytest.fixture
def start_contained(tmp_path: Path) -> Iterator[StartContained]:
    """Start services that are process 1: ``start_contained({"executor": {"on_stop": "kill"}})``."""
    started: list[Contained] = []

    def start(settings: dict[str, dict[str, Any]] | None = None, **arguments: Any) -> Contained:
        started.append(Contained(tmp_path / "data", settings, **arguments))
        started[-1].start()
        return started[-1]

    yield start
    for service in started:
        service.http.close()
        if service.process is not None and service.process.poll() is None:
            service.stop()


def number_inside(pid: int) -> int:
    """Return the pid that a process has in its innermost namespace."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])


def test_process_1_runs_jobs_to_their_exact_ends(start_contained: StartContained) -> None:
    service = start_contained()

    assert number_inside(service.pid) == 1
    assert service.run(command="tr '\\0' ' ' < /proc/1/cmdline")["stdout"]["text"].strip().endswith("jobrunner serve")
    jobs = [service.run(command=how) for how in ("exit 0", "exit 7", "kill -SEGV $$", "sleep 60 & exit 3")]
    assert [(job["exit_code"], job["signal"]) for job in jobs] == [(0, None), (7, None), (None, "SIGSEGV"), (3, None)]
    assert service.zombies() == []


def test_process_1_reaps_all_orphans(start_contained: StartContained, tmp_path: Path) -> None:
    """Those of commands that somebody runs in the container; the executor reaps those of jobs."""
    service = start_contained()
    before = set(children_of(service.pid))
    os.mkfifo(tmp_path / "gate")
    leave = f"for _ in $(seq 200); do (setsid cat {tmp_path}/gate & cat {tmp_path}/gate &); done"
    subprocess.run(["nsenter", f"--target={service.pid}", "--pid", "--mount", "sh", "-c", leave], check=True)
    orphans = set(children_of(service.pid)) - before
    assert len(orphans) == 400

    with (tmp_path / "gate").open("w"):
        pass

    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
    assert service.run(command="exit 4")["exit_code"] == 4
    assert service.zombies() == []


def test_jobs_survive_their_executor_and_end_exactly(start_contained: StartContained) -> None:
    service = start_contained()
    how = ("exit 18", "kill -KILL $$", "exit 0")
    jobs = [running_job(service, f"(setsid sleep 61 &); {GATED}; {each}")[0] for each in how]
    before = child(service, "executor")

    os.kill(before, signal.SIGKILL)

    assert eventually(lambda: children_with(service, "executor") not in ([], [before]))
    assert eventually(lambda: service.log.read_text().count("adopted process") == len(jobs))
    for job in jobs:
        (scratch(service, job) / "go").touch()
    ends = [service.wait(job["id"]) for job in jobs]
    assert [(job["exit_code"], job["signal"]) for job in ends] == [(18, None), (None, "SIGKILL"), (0, None)]
    # What they have left behind was process 1's to reap.
    assert eventually(lambda: len(children_of(service.pid)) == 2)
    assert eventually(lambda: service.zombies() == [])


def test_jobs_end_with_process_1_and_are_not_run_again(start_contained: StartContained) -> None:
    """The kernel kills them; what waits in the queue is run by the next container."""
    service = start_contained({"executor": {"max_running": "1"}})
    ran, _ = running_job(service, f"echo ran >> ../ledger; {GATED}")
    queued = service.submit(command="exit 5")

    os.kill(service.pid, signal.SIGTERM)

    assert ended(service, within=15) == 0
    assert "takes its jobs along" in service.log.read_text()
    again = start_contained()
    lost = again.wait(ran["id"])
    assert (lost["state"], lost["error"]["code"]) == ("lost", "worker-lost")
    assert again.wait(queued["id"])["exit_code"] == 5
    assert (scratch(again, ran).parent / "ledger").read_text() == "ran\n"


def test_with_on_stop_kill_jobs_have_time_to_end(start_contained: StartContained) -> None:
    service = start_contained({"executor": {"on_stop": "kill", "grace": "5"}})
    polite, _ = running_job(service, f"trap 'echo bye; exit 9' TERM; {GATED}")

    os.kill(service.pid, signal.SIGTERM)

    assert ended(service, within=10) == 0
    again = start_contained()
    told = again.get(f"/v1/jobs/{polite['id']}?include=output").json()
    assert (told["state"], told["exit_code"], told["stdout"]["text"]) == ("canceled", 9, "bye\n")


def test_only_the_data_directory_need_be_writable(start_contained: StartContained, tmp_path: Path) -> None:
    data, places = tmp_path / "data", ["/", "/tmp", "/var/tmp", "/dev/shm"]
    data.mkdir()
    first = [f"mount --bind '{data}' '{data}'"]
    for place in places:
        first += [f"mountpoint -q {place} || mount --rbind {place} {place}", f"mount -o remount,bind,ro {place}"]
    service = start_contained(before="; ".join(first))

    tries = "; ".join(f"touch {place}/made && echo {place}" for place in places)
    job = service.run(command=f"{tries}; touch here && echo written; exit 6")

    assert (job["stdout"]["text"], job["exit_code"]) == ("written\n", 6)
    assert job["stderr"]["text"].count("Read-only file system") == len(places)
    os.kill(service.pid, signal.SIGTERM)
    assert ended(service, within=15) == 0
    assert "Traceback" not in service.log.read_text()


# ── signals: without a handler the kernel would drop them ──


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_process_1_ends_when_it_is_told(start_contained: StartContained, number: int) -> None:
    service = start_contained()
    running_job(service, f"trap '' TERM INT; {GATED}")

    os.kill(service.pid, number)

    assert ended(service, within=15) == 0
    assert "Traceback" not in service.log.read_text()


def test_process_1_reloads_and_still_is_process_1(start_contained: StartContained) -> None:
    service = start_contained()
    job, _ = running_job(service, f"{GATED}; exit 24")
    first = service.pid

    for times in (1, 2):
        os.kill(first, signal.SIGHUP)
        assert eventually(lambda: service.log.read_text().count("supervisor took over") == times, within=20)  # noqa: B023

    assert number_inside(first) == 1
    (scratch(service, job) / "go").touch()
    assert service.wait(job["id"])["exit_code"] == 24
    assert service.zombies() == []
    os.kill(first, signal.SIGTERM)
    assert ended(service, within=15) == 0


def test_process_1_drains(start_contained: StartContained) -> None:
    service = start_contained()
    job, _ = running_job(service, f"{GATED}; exit 3")

    os.kill(service.pid, signal.SIGUSR1)

    assert eventually(lambda: service.get("/readyz").status_code == 503)
    (scratch(service, job) / "go").touch()
    assert ended(service, within=15) == 0


def test_a_sigterm_while_process_1_still_starts_is_kept_for_later(tmp_path: Path) -> None:
    """What is blocked the kernel does not drop."""
    service = Contained(tmp_path / "data")
    service.http.close()
    with service.log.open("ab") as log:
        started = service.process = subprocess.Popen(
            service.command, cwd=ROOT, env=service.environment, stdout=log, stderr=log
        )
    try:
        assert eventually(lambda: children_of(started.pid), every=0.001)
        assert eventually(lambda: blocks_sigterm(service.pid), every=0.001)

        os.kill(service.pid, signal.SIGTERM)

        assert ended(service, within=15) == 0
        assert "Traceback" not in service.log.read_text()
    finally:
        started.kill()
        started.wait()


def blocks_sigterm(pid: int) -> bool:
    """Tell whether Python does; unshare itself does so for a moment."""
    if not command_line(pid).startswith(sys.executable):
        return False
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1]
    return bool(int(blocked, 16) & 1 << (signal.SIGTERM - 1))
