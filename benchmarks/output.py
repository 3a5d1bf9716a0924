"""How fast output comes, an ended job's and a running one's; and what others notice meanwhile.

python -m benchmarks.output            five runs of each, some minutes; needs nginx and curl
python -m benchmarks.output --quick    one small run: that it works, not figures
"""

import argparse
import multiprocessing
import os
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.speed import Table, describe_machine
from jobrunner.web.render import to_json
from tests.factories import children_of
from tests.nginx import NGINX, Nginx
from tests.service import Service, free_port

MIB = 1 << 20

LINES = """
import os, random, sys, time
while time.monotonic() < float(sys.argv[1]):
    os.write(1, b"%d\\n" % time.monotonic_ns())
    time.sleep(10 ** random.uniform(-3, -0.3))
"""
"""Writes when it writes, by the clock that all processes share, with pauses of 1 to 500 ms, up to a time."""

TEXT = """
import os, sys
block = "".join(f"{number:06} the quick brown fox jumps over the lazy dog\\t0123456789\\n" for number in range(1000))
left = int(sys.argv[1])
while left:
    left -= os.write(1, block.encode()[:left])
"""

Job = dict[str, Any]
Client = Callable[[int, list[bytes], Connection], None]


# ── clients, each in a process of its own ──


def open_stream(port: int, request: bytes) -> socket.socket:
    """Send a request and read the answer's head; who is refused tries again: another worker may have a seat."""
    while True:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = connection.recv(1)
            assert byte, head
            head += byte
        if head[9:12] == b"200":
            return connection
        assert head[9:12] == b"503", head
        connection.close()


def follow_lines(port: int, requests: list[bytes], parent: Connection) -> None:
    """Follow all of them, tell when that has begun, and when asked to end how late each line came, in seconds."""
    # By HTTP/1.0, lest there be chunks around the lines.
    connections = [open_stream(port, request.replace(b"HTTP/1.1", b"HTTP/1.0", 1)) for request in requests]
    rests = dict.fromkeys(connections, b"")
    latencies: list[float] = []
    begin = time.monotonic_ns()
    with selectors.EpollSelector() as selector:
        selector.register(parent, selectors.EVENT_READ)
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        parent.send(None)
        while not parent.poll():
            for connection in [key.data for key, _ in selector.select() if key.data]:
                data = connection.recv(1 << 18)
                now = time.monotonic_ns()
                assert data, "a stream has ended"
                *lines, rests[connection] = (rests[connection] + data).split(b"\n")
                # What was written before we came is not late.
                latencies += [(now - int(line)) / 1e9 for line in lines if int(line) >= begin]
    for connection in connections:
        connection.close()
    parent.send(sorted(latencies))


def read_all(port: int, requests: list[bytes], parent: Connection) -> None:
    """Read all of them as fast as they come, each anew when it has ended, until asked to end."""
    with selectors.EpollSelector() as selector:
        selector.register(parent, selectors.EVENT_READ)
        for request in requests:
            selector.register(open_stream(port, request), selectors.EVENT_READ, request)
        parent.send(None)
        while not parent.poll():
            for key in [key for key, _ in selector.select() if key.data]:
                assert isinstance(key.fileobj, socket.socket)
                if not key.fileobj.recv(1 << 18, socket.MSG_TRUNC):  # the kernel throws it away
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    selector.register(open_stream(port, key.data), selectors.EVENT_READ, key.data)
        for key in [key for key in selector.get_map().values() if key.data]:
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
    parent.send([])


@contextmanager
def beside(client: Client, service: Service, jobs: list[Job]) -> Iterator[list[float]]:
    """Have a client follow these jobs meanwhile; in the end the list has what it has found."""
    found: list[float] = []
    ours, theirs = multiprocessing.Pipe()
    paths = [f"/v1/jobs/{job['id']}/stdout?follow=true" for job in jobs]
    requests = [load.make_request("GET", path, service.token, Connection="close") for path in paths]
    process = multiprocessing.Process(target=client, args=(service.port, requests, theirs), daemon=True)
    process.start()
    ours.recv()
    yield found
    ours.send(None)
    found += ours.recv()
    process.join()


def curl(url: str, least: int, token: str = "") -> float:
    """Read all of a URL, at least so many bytes, and throw it away; return the seconds that it took."""
    wanted = "%{time_total} %{size_download}"
    words = ["curl", "-sS", "--fail", "-o", os.devnull, "-w", wanted, "-H", f"Authorization: Bearer {token}", url]
    seconds, size = subprocess.run(words, check=True, stdout=subprocess.PIPE, timeout=300).stdout.split()
    assert int(size) >= least, f"{url} has only {int(size)} bytes"
    return float(seconds)


class Memory:
    """What the workers have at their peak more than now."""

    def __init__(self, service: Service) -> None:
        (master,) = (pid for pid in children_of(service.pid) if b"\0web\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
        self._workers = children_of(master)
        self._before = self._sum("VmRSS")
        self.peak()

    def peak(self) -> float:
        """Return it, in MiB; the next one begins anew."""
        peak = self._sum("VmHWM") - self._before
        for pid in self._workers:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # see proc(5)
        return peak / 1024

    def _sum(self, field: str) -> int:
        texts = (Path(f"/proc/{pid}/status").read_text() for pid in self._workers)
        return sum(int(size) for text in texts for size in re.findall(rf"^{field}:\s+(\d+)", text, re.MULTILINE))


# ── what is measured ──


class Bench:
    """One run of all measurements, with a service of its own.

    Args:
        directory: for what it needs.
        table: gets the figures.
        mebibytes: of a large output.
        seconds: of each measurement that has no size.
        followers: where there are many.
    """

    def __init__(self, directory: Path, table: Table, *, mebibytes: int, seconds: float, followers: int) -> None:
        settings: dict[str, dict[str, object]] = {
            "executor": {"max_running": followers + 1},
            "server": {"max_followers": followers},
            "output": {"max_bytes": f"{mebibytes + 1}M"},
        }
        self._service = Service(directory / "data", settings)
        port = free_port()
        site = f"server {{ listen 127.0.0.1:{port}; sendfile on; tcp_nopush on; root {directory}/data; }}"
        self._nginx = Nginx(directory / "nginx", site, port)
        self._table = table
        self._mebibytes = mebibytes
        self._seconds = seconds
        self._followers = followers

    def run(self) -> None:
        """Measure everything once."""
        self._nginx.start()
        self._service.start()
        try:
            self._look_up = load.make_request("GET", f"/v1/jobs/{self._run('true')['id']}", self._service.token)
            # So many threads take their memory whatever they do.
            load.run(self._service.port, self._look_up, clients=self._followers, seconds=1)
            self._memory = Memory(self._service)
            self._downloads()
            self._events()
            self._lines()
            self._look_ups()
        finally:
            self._service.stop()
            self._nginx.stop()

    def _run(self, *argv: str) -> Job:
        job = self._wait(self._service.submit(argv=list(argv)))
        assert job["state"] == "succeeded", job
        return job

    def _wait(self, job: Job) -> Job:
        """Wait for the end; not as `Service.wait`, which asks for the output, and that takes memory."""
        ended: Job = self._service.get(f"/v1/jobs/{job['id']}?wait=60", timeout=70).json()
        return ended

    def _file(self, job: Job) -> Path:
        return Path(self._service.data_dir, "jobs", job["id"][-2:], job["id"], "stdout")

    def _url(self, job: Job, what: str) -> str:
        return f"{self._service.url}/v1/jobs/{job['id']}/{what}"

    def _send(self, label: str, job: Job, what: str, mebibytes: int) -> float:
        rate = mebibytes / curl(self._url(job, what), mebibytes * MIB, self._service.token)
        self._table.add(f"{label}, MiB/s", rate)
        self._table.add(f"{label}, memory of the workers, + MiB", self._memory.peak())
        return rate

    def _downloads(self) -> None:
        size = self._mebibytes
        self._large = job = self._run("head", "-c", str(size * MIB), "/dev/zero")
        path = self._file(job)
        with path.open("rb") as file:
            os.fsync(file.fileno())  # lest it be written to the disk meanwhile
        begin = time.perf_counter()
        subprocess.run(f"cat {path} | wc -c", shell=True, check=True, stdout=subprocess.DEVNULL)
        self._table.add(f"cat FILE | wc -c of {size} MiB, MiB/s", size / (time.perf_counter() - begin))
        name = path.relative_to(self._service.data_dir)
        by_nginx = size / curl(f"http://127.0.0.1:{self._nginx.port}/{name}", size * MIB)
        self._table.add("nginx sends it, MiB/s", by_nginx)
        rate = self._send("the service sends it", job, "stdout", size)
        self._table.add("the service sends it, as a share of nginx", rate / by_nginx)
        rate = self._send("it is followed", job, "stdout?follow=true", size)
        self._table.add("it is followed, as a share of nginx", rate / by_nginx)

    def _events(self) -> None:
        size = min(64, self._mebibytes)
        job = self._run(sys.executable, "-c", TEXT, str(size * MIB))
        text = self._file(job).read_text()
        begin = time.perf_counter()
        for at in range(0, len(text), 1 << 15):
            to_json({"offset": at, "text": text[at : at + (1 << 15)]})
        loop = size / (time.perf_counter() - begin)
        self._table.add(f"a loop that makes JSON of {size} MiB of text, MiB/s", loop)
        rate = self._send("events have it", job, "events", size)
        self._table.add("events have it, as a share of the loop", rate / loop)

    def _lines(self) -> None:
        many = self._followers
        for label, followers, jobs in (
            ("1 follower of 1 job", 1, 1),
            (f"{many} followers of 1 job", many, 1),
            (f"{many} followers of {many} jobs", many, many),
        ):
            with self._writing(jobs) as writers:
                with beside(follow_lines, self._service, writers * (followers // jobs)) as latencies:
                    time.sleep(self._seconds * (2 if jobs == 1 else 1))
                self._percentiles(f"a line comes to {label}", latencies)
            self._table.add(f"{label}, memory of the workers, + MiB", self._memory.peak())

    @contextmanager
    def _writing(self, count: int) -> Iterator[list[Job]]:
        """Run so many jobs that write lines."""
        until = time.monotonic() + 60 + self._seconds * 3
        argv = [sys.executable, "-c", LINES, str(until)]
        jobs = [self._service.submit(argv=argv) for _ in range(count)]
        while any(self._service.get(f"/v1/jobs/{job['id']}").json()["stdout"]["bytes"] == 0 for job in jobs):
            time.sleep(0.1)
        yield jobs
        self._end(jobs)

    def _end(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._service.post(f"/v1/jobs/{job['id']}/cancel", {"grace": 0})
        for job in jobs:
            self._wait(job)

    def _look_ups(self) -> None:
        many = self._followers
        self._measure_look_up("alone")
        silent = self._service.submit(argv=["sleep", "60"])
        with beside(follow_lines, self._service, [silent] * many):
            self._measure_look_up(f"beside {many} followers of a silent job")
        self._end([silent])
        with self._writing(many) as writers, beside(follow_lines, self._service, writers):
            self._measure_look_up(f"beside {many} followers of {many} jobs that write lines")
        for count in (1, many):
            with beside(read_all, self._service, [self._large] * count):
                self._measure_look_up(f"beside {count} that take all they can get")
            self._table.add(f"{count} that take all they can get, memory of the workers, + MiB", self._memory.peak())

    def _measure_look_up(self, label: str) -> None:
        found = load.new_connection_latencies(self._service.port, self._look_up, seconds=self._seconds)
        self._percentiles(f"look-up {label}", found)

    def _percentiles(self, label: str, latencies: list[float]) -> None:
        self._table.add(f"{label}, p50 ms", latencies[len(latencies) // 2] * 1000)
        self._table.add(f"{label}, p99 ms", latencies[int(len(latencies) * 0.99)] * 1000)
        self._table.add(f"{label}, worst ms", latencies[-1] * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement that has no size")
    parser.add_argument("--size", type=int, default=1024, help="MiB of a large output")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if NGINX is None or shutil.which("curl") is None:
        raise SystemExit("nginx and curl are needed")
    runs, mebibytes, seconds, followers = arguments.runs, arguments.size, arguments.seconds, 64
    if arguments.quick:
        runs, mebibytes, seconds, followers = 1, 64, 0.5, 16
    table = Table()
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            Bench(Path(directory), table, mebibytes=mebibytes, seconds=seconds, followers=followers).run()
    print(describe_machine())
    table.print()


if __name__ == "__main__":
    main()
