"""How fast the service is, next to a bare loop that starts the same program.

python -m benchmarks.speed            five runs of each, some minutes
python -m benchmarks.speed --quick    one short run: that it works, not figures
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import load
from jobrunner.domain.ids import make_job_id
from jobrunner.store.engine import Database

TRUE = b'{"argv": ["/bin/true"]}'
ROOT = Path(__file__).parent.parent


class Service:
    """``jobrunner serve`` over a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator["Service"]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBRUNNER_")}
        environ = kept | {
            "JOBRUNNER_STORAGE_DATA_DIR": str(self.data_dir),
            "JOBRUNNER_PORT": str(self.port),
            "JOBRUNNER_STORAGE_MIN_FREE_BYTES": "0",
        }
        with (self.data_dir.parent / "serve.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "jobrunner", "serve"], cwd=ROOT, env=environ, stderr=log)
        try:
            self._wait(process)
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        for _ in range(300):
            if process.poll() is not None:
                raise SystemExit(f"the service has ended, see {self.data_dir.parent}/serve.log")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        self.token = (self.data_dir / "admin.token").read_text().strip()
        self.pid = process.pid

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
        return load.make_request(method, path, self.token, body, **headers)

    def pss_bytes(self) -> dict[str, int]:
        """Proportional memory of each process of the service."""
        tree = [self.pid]
        for pid in tree:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            tree.extend(int(child) for child in children)
        found = {}
        for pid in tree:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            size = re.search(r"^Pss: +(\d+)", text, re.MULTILINE)
            assert size
            name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3].decode()
            found[f"{name} {pid}"] = int(size[1]) * 1024
        return found

    def wait_until_idle(self) -> None:
        database = sqlite3.connect(self.data_dir / "jobrunner.db")
        while database.execute("SELECT 1 FROM job WHERE finished_at IS NULL LIMIT 1").fetchone():
            time.sleep(0.1)
        database.close()


def spawn_rate(seconds: float) -> float:
    """Start and reap /bin/true as fast as one thread can."""
    count = 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}), 0)
        count += 1
    return count / (time.perf_counter() - begin)


def fill(data_dir: Path, count: int) -> None:
    """Give the database a history of so many ended jobs."""
    spec = json.dumps(
        {"kind": "argv", "argv": ["/bin/true"], "timeout": 3600.0, "grace": 10.0, "env": {}, "cwd": None,
         "merge_stderr": False, "labels": {}, "inputs": []}
    )  # fmt: skip
    at = "2026-01-01T00:00:00.000000Z"
    database = sqlite3.connect(data_dir / "jobrunner.db")
    present = database.execute("SELECT count(*) FROM job").fetchone()[0]
    rows = ((make_job_id(number), spec, at, at, at) for number in range(count - present))
    database.executemany(
        "INSERT INTO job"
        " (id, owner, api, summary, priority, spec, state, created_at, started_at, finished_at, exit_code)"
        " VALUES (?, 'admin', 'v1', '/bin/true', 1, ?, 'succeeded', ?, ?, ?, 0)",
        rows,
    )
    database.commit()
    database.close()


def _commit_loop(path: Path, seconds: float, out: "multiprocessing.Queue[list[float]]") -> None:
    database = Database(path, synchronous="full")
    latencies = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        with database.write(durable=True) as connection:
            connection.exec_driver_sql("INSERT INTO job_signal (number, signal) VALUES (1, 1)")
        latencies.append(time.perf_counter() - begin)
    out.put(latencies)


def commits_of_four(data_dir: Path, seconds: float) -> tuple[float, float]:
    """Four processes that do nothing but commit: commits a second, and the worst one in milliseconds."""
    out: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
    path = data_dir / "jobrunner.db"
    processes = [multiprocessing.Process(target=_commit_loop, args=(path, seconds, out)) for _ in range(4)]
    for process in processes:
        process.start()
    latencies = [latency for _ in processes for latency in out.get()]
    for process in processes:
        process.join()
    return len(latencies) / seconds, max(latencies) * 1000


class Table:
    """Collects figures of several runs, and prints their medians."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.rows.setdefault(name, []).append(value)

    def print(self) -> None:
        width = max(map(len, self.rows))
        print(f"{'':{width}} {'median':>10} {'min':>10} {'max':>10}")
        for name, values in self.rows.items():
            print(f"{name:{width}} {statistics.median(values):10.3f} {min(values):10.3f} {max(values):10.3f}")


def describe_machine() -> str:
    """Return what figures depend on, as a line."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )


def measure_jobs(service: Service, table: Table, seconds: float) -> None:
    loop = spawn_rate(seconds / 2)
    request = service.request("POST", "/v1/jobs", TRUE, Prefer="wait=10")
    found = load.run(service.port, request, clients=8, seconds=seconds)
    assert set(found.statuses) == {200}, found.statuses
    loop = (loop + spawn_rate(seconds / 2)) / 2
    table.add("bare posix_spawn loop of /bin/true, /s", loop)
    table.add("submit and wait, 8 clients, /s", found.rate)
    table.add("  … as a share of the loop", found.rate / loop)
    table.add("  … p50, ms", found.percentile(0.5))
    table.add("  … p99, ms", found.percentile(0.99))
    found = load.run(service.port, service.request("POST", "/v1/jobs", TRUE), clients=8, seconds=seconds)
    assert set(found.statuses) == {202}, found.statuses
    table.add("acknowledged submissions, 8 clients, synchronous=full, /s", found.rate)
    service.wait_until_idle()


def measure_look_ups(service: Service, table: Table, seconds: float, label: str) -> float:
    found = load.run(service.port, service.request("GET", "/v1/jobs/500"), clients=8, seconds=seconds)
    assert set(found.statuses) == {200}, found.statuses
    table.add(f"GET /v1/jobs/ID, 8 clients, {label} rows, /s", found.rate)
    pages = load.run(service.port, service.request("GET", "/v1/jobs?limit=50"), clients=1, seconds=seconds / 2)
    table.add(f"GET /v1/jobs?limit=50, 1 client, {label} rows, p50 ms", pages.percentile(0.5))
    return found.rate


def measure_crowd(service: Service, table: Table, seconds: float) -> None:
    look_up = service.request("GET", "/v1/jobs/500")
    idle = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(64)]
    found = load.new_connection_latencies(service.port, look_up, seconds=seconds)
    table.add("look-up beside 64 idle connections, p99 ms", found[int(len(found) * 0.99)] * 1000)
    table.add("look-up beside 64 idle connections, worst ms", found[-1] * 1000)
    submit = service.request("POST", "/v1/jobs", b'{"argv": ["sleep", "30"]}', Prefer="wait=20")
    waiting = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(64)]
    for connection in waiting:
        connection.sendall(submit)
    time.sleep(1)
    found = load.new_connection_latencies(service.port, look_up, seconds=seconds)
    table.add("look-up beside 64 idle and 64 waiting, p99 ms", found[int(len(found) * 0.99)] * 1000)
    table.add("look-up beside 64 idle and 64 waiting, worst ms", found[-1] * 1000)
    for connection in idle + waiting:
        connection.close()
    half = look_up[:-2]
    body = service.request("POST", "/v1/jobs", b" " * 1000)[:-500]
    slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(600)]
    for number, connection in enumerate(slow):
        connection.sendall((b"", half, body)[number % 3])
    found = load.new_connection_latencies(service.port, look_up, seconds=min(seconds, 8.0))
    table.add("look-up beside 200 idle, 200 half heads, 200 half bodies, p99 ms", found[int(len(found) * 0.99)] * 1000)
    table.add("look-up beside 200 idle, 200 half heads, 200 half bodies, worst ms", found[-1] * 1000)
    for connection in slow:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rows", type=int, default=100_000, help="of the large history")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    runs, seconds, rows = (1, 0.5, 5_000) if arguments.quick else (arguments.runs, arguments.seconds, arguments.rows)
    table = Table()
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory) / "data"
        service = Service(data_dir)
        with service.running():
            time.sleep(1)
            memory = service.pss_bytes()
            table.add("memory of the idle service, PSS, MiB", sum(memory.values()) / 2**20)
            load.run(service.port, service.request("POST", "/v1/jobs", TRUE, Prefer="wait=10"), clients=8, seconds=1)
            for _ in range(runs):
                measure_jobs(service, table, seconds)
        with service.running():
            fill(data_dir, 1_000)
            small = [measure_look_ups(service, table, seconds, "1,000+") for _ in range(runs)]
            fill(data_dir, rows)
            large = [measure_look_ups(service, table, seconds, f"{rows:,}") for _ in range(runs)]
            table.add(
                "GET rate at the large history, share of the small", statistics.median(large) / statistics.median(small)
            )
            for _ in range(runs):
                measure_crowd(service, table, seconds / 2)
        for _ in range(runs):
            rate, worst = commits_of_four(data_dir, seconds)
            table.add("durable commits by 4 processes, /s", rate)
            table.add("durable commits by 4 processes, worst ms", worst)
    print(describe_machine())
    table.print()
    for name, size in memory.items():
        print(f"  {name}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
