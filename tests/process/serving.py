"""What tests of ``jobrunner serve`` share: who its processes are, and jobs that run until they are let go."""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import requests

from tests.factories import children_of
from tests.service import Service, eventually

GATED = "echo > ready; while [ ! -e go ]; do sleep 0.05; done"


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def child(service: Service, word: str) -> int:
    """Return the pid of the child that has this word in its command line."""
    found = children_with(service, word)
    assert len(found) == 1, [command_line(pid) for pid in children_of(service.pid)]
    return found[0]


def children_with(service: Service, word: str) -> list[int]:
    """Return the pids of the children that have this word in their command line."""
    return [pid for pid in children_of(service.pid) if command_line(pid).split()[-1:] == [word]]


def own_processes(service: Service) -> list[int]:
    """Return the service's processes without those of its jobs."""

    def found() -> list[int]:
        return [pid for pid in service.processes() if "jobrunner" in command_line(pid)]

    assert eventually(lambda: len(found()) == 5), "supervisor, executor, gunicorn's master, two workers"
    return found()


def scratch(service: Service, job: dict[str, Any]) -> Path:
    return Path(service.data_dir, "jobs", job["id"][-2:], job["id"], "scratch")


def running_job(service: Service, command: str = GATED, **members: Any) -> tuple[dict[str, Any], int]:
    """Start a job that waits for a file ``go``; return it and its pid, when both it and its executor have told it."""
    job = service.submit(command=f"echo $$ > pid; {command}", **members)
    assert eventually((scratch(service, job) / "ready").exists)
    record = scratch(service, job).parent / "process.json"
    assert eventually(lambda: record.exists() and b'"pid"' in record.read_bytes())
    return job, int((scratch(service, job) / "pid").read_text())


def ended(service: Service, within: float = 10) -> int:
    """Wait for the end of ``serve``; return its exit code."""
    assert service.process is not None
    return service.process.wait(within)


def has_read(client: socket.socket) -> bool:
    """Tell whether the service has read all that was sent to it on this connection."""
    ours, theirs = (f":{port:04X}" for port in (client.getsockname()[1], client.getpeername()[1]))
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    queues = [queued for _, local, remote, _, queued, *_ in lines if {local[-5:], remote[-5:]} == {ours, theirs}]
    return len(queues) == 2 and set(queues) == {"00000000:00000000"}


def submissions(service: Service, stop: threading.Event, statuses: list[int | str]) -> None:
    """Submit until told to stop, on a new connection each time; note the statuses, or why there is none."""
    headers = {**service.http.headers, "Connection": "close"}
    deadline = time.monotonic() + 60
    while not stop.is_set() and time.monotonic() < deadline:
        try:
            answer = requests.post(f"{service.url}/v1/jobs", json={"argv": ["true"]}, headers=headers, timeout=30)
            statuses.append(answer.status_code)
        except requests.ConnectionError as error:
            statuses.append(str(error))
        time.sleep(0.01)
