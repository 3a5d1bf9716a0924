"""``jobrunner selftest``: an operator's own proof that nothing is lost on this machine."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from jobrunner.cli.common import json_option, print_json, print_table
from jobrunner.client import Client
from jobrunner.domain.errors import JobrunnerError
from jobrunner.proc import list_pids, read_stat

JOBS = 40
"""Jobs of each round; the service runs four at a time, so that most of them wait when it is killed."""

_PATIENCE = 60.0
_NEVER_SEEN = "nobody has seen them end"


@dataclass(frozen=True)
class Finding:
    """What a check has found; no trouble is well."""

    check: str
    trouble: str


class _Service:
    """A service of its own over a scratch directory."""

    def __init__(self, directory: Path) -> None:
        self._data_dir = directory / "data"
        self._log = directory / "serve.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JOBRUNNER_", "NOTIFY_"))}
        self._environ = kept | {
            "JOBRUNNER_STORAGE_DATA_DIR": str(self._data_dir),
            "JOBRUNNER_STORAGE_MIN_FREE_BYTES": "0",
            "JOBRUNNER_SERVER_PORT": str(port),
            "JOBRUNNER_EXECUTOR_MAX_RUNNING": "4",
            "NO_PROXY": "*",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def client(self) -> Iterator[Client]:
        token = (self._data_dir / "admin.token").read_text(encoding="ascii").strip()
        with Client(self._url, token) as client:
            yield client

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "jobrunner", "serve"]
            self._process = subprocess.Popen(command, env=self._environ, stderr=log)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.list({"limit": 1})
            except (JobrunnerError, OSError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise click.ClickException(f"the service does not start; see {self._log}") from None
                time.sleep(0.1)
            else:
                return

    def kill(self, *names: str) -> None:
        """Kill processes of the service: those of these (hidden) commands, or all."""
        assert self._process is not None
        own = [pid for pid in self._tree() if not names or _command(pid) in names]
        for pid in own:
            os.kill(pid, signal.SIGKILL)
        if not names:
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def _tree(self) -> list[int]:
        """Return the service's processes, without those of its jobs: they lead sessions of their own."""
        assert self._process is not None
        parents = {pid: stat for pid in list_pids() if (stat := read_stat(pid))}
        tree = [self._process.pid]
        for parent in tree:
            tree += [pid for pid, stat in parents.items() if stat.parent == parent and stat.session != pid]
        return tree


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").rpartition(b"\0")[2].decode()
    except OSError:
        return ""


class _Round:
    """Some jobs whose ends and outputs are known beforehand."""

    def __init__(self, directory: Path, name: str) -> None:
        self._ledger = directory / f"{name.replace(' ', '-')}.ledger"
        self._ledger.touch()
        self._gate = self._ledger.with_suffix(".gate")
        self._name = name
        self._submitted: list[tuple[str, int]] = []

    def submit(self, client: Client, *, gated: bool) -> None:
        for index in range(JOBS):
            code = index % 5
            # Nobody can tell the end of a job that ends while nothing of the service runs: none does then.
            pause = f"while [ ! -e {self._gate} ]; do sleep 0.05; done; sleep 1" if gated else f"sleep 0.{index % 4}"
            script = f"echo {index} >> {self._ledger}; {pause}; echo out {index}; echo err >&2; exit {code}"
            job = client.submit({"argv": ["/bin/sh", "-c", script], "name": f"{self._name} {index}"})
            self._submitted.append((job["id"], code))

    def open_gate(self) -> None:
        """Let those end that were told to wait for this."""
        self._gate.touch()

    def wait(self, client: Client) -> list[dict[str, Any]]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            jobs = [client.get(job) for job, _ in self._submitted]
            if all(job["finished_at"] for job in jobs) or time.monotonic() > deadline:
                return jobs
            time.sleep(0.2)

    def check(self, client: Client, jobs: list[dict[str, Any]]) -> Iterator[Finding]:
        lost = [job for job in jobs if job["state"] == "lost"]
        ended = {job["id"]: job for job in jobs if job["finished_at"] and job["state"] != "lost"}
        wrong = [job for job, code in self._submitted if job in ended and ended[job]["exit_code"] != code]
        torn = [
            index
            for index, (job, _) in enumerate(self._submitted)
            if job in ended and b"".join(client.output(job, "stdout")) != f"out {index}\n".encode()
        ]
        runs = [int(line) for line in self._ledger.read_text().split()]
        twice = sorted({index for index in runs if runs.count(index) > 1})
        never = sorted(set(range(JOBS)) - set(runs))
        starts = [job["started_at"] for job in jobs if job["started_at"]]
        yield self._found("every job has ended", _count(len(jobs) - len(ended) - len(lost), "have not"))
        yield self._found("no end was lost", _count(len(lost), f"are lost: {_NEVER_SEEN}"))
        yield self._found("every exit code is right", _count(len(wrong), "are wrong"))
        yield self._found("every output is complete", _count(len(torn), "are not"))
        yield self._found("every job ran", _count(len(never), "did not"))
        yield self._found("no job ran twice", _count(len(twice), "did"))
        yield self._found("they began in the order of submission", "" if starts == sorted(starts) else "they did not")

    def _found(self, check: str, trouble: str) -> Finding:
        return Finding(f"{self._name}: {check}", trouble)


def _count(number: int, words: str) -> str:
    return f"{number} {words}" if number else ""


def _kill_and_start(service: _Service) -> None:
    service.kill()
    time.sleep(0.5)
    service.start()


_ROUNDS: Mapping[str, Callable[[_Service], None]] = {
    "undisturbed": lambda _service: None,
    "executor killed": lambda service: service.kill("executor"),
    "web server killed": lambda service: service.kill("web"),
    "all killed and started again": _kill_and_start,
}


def _run(directory: Path) -> Iterator[Finding]:
    service = _Service(directory)
    service.start()
    try:
        for name, disturb in _ROUNDS.items():
            jobs = _Round(directory, name)
            with service.client() as client:
                jobs.submit(client, gated=disturb is _kill_and_start)
            time.sleep(0.3)
            disturb(service)
            jobs.open_gate()
            with service.client() as client:
                yield from jobs.check(client, jobs.wait(client))
    finally:
        service.stop()


@click.command()
@json_option
def selftest(*, as_json: bool) -> None:
    """Prove on this machine that no job is lost, run twice, or ends wrongly when the service is killed.

    Starts a service of its own over a scratch directory; takes about half a minute.
    """
    with tempfile.TemporaryDirectory(prefix="jobrunner-selftest-") as directory:
        findings = list(_run(Path(directory)))
    if as_json:
        print_json([{"check": found.check, "ok": not found.trouble, "detail": found.trouble} for found in findings])
    else:
        rows = [(found.check, f"FAILED: {found.trouble}" if found.trouble else "ok") for found in findings]
        print_table(("check", "result"), rows)
    if any(found.trouble for found in findings):
        sys.exit(1)


COMMANDS = {"selftest": selftest}
