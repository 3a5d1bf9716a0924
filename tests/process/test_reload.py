"""New code and new settings without an end of the service, and the end that a drain is."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import StartService
from tests.factories import is_dead
from tests.process.running import is_alive
from tests.process.serving import (
    GATED,
    child,
    children_with,
    ended,
    own_processes,
    running_job,
    scratch,
    submissions,
)
from tests.service import ROOT, Service, eventually


def test_a_reload_replaces_all_processes_and_disturbs_nobody(start_service: StartService) -> None:
    service = start_service()
    job, pid = running_job(service, f"{GATED}; exit 24")
    supervisor = service.pid
    before = own_processes(service)
    stop = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        submitted = pool.submit(submissions, service, stop)
        for _ in range(2):
            old = {child(service, word) for word in ("executor", "web")}
            os.kill(supervisor, signal.SIGHUP)
            assert eventually(lambda: all(is_dead(each) for each in old), within=20)  # noqa: B023
            assert eventually(lambda: {len(children_with(service, word)) for word in ("executor", "web")} == {1})
        stop.set()
        statuses = submitted.result(60)

    assert set(statuses) == {202}
    assert len(statuses) > 20
    assert eventually(lambda: service.log.read_text().count("supervisor took over") == 2), service.log.read_text()
    assert not set(own_processes(service)[1:]) & set(before[1:])
    assert is_alive(pid)
    (scratch(service, job) / "go").touch()
    assert service.wait(job["id"])["exit_code"] == 24
    assert eventually(lambda: service.get("/v1/jobs?state=active").json()["jobs"] == [])
    assert service.stop() == 0


def test_a_reload_takes_new_settings(start_service: StartService, tmp_path: Path) -> None:
    settings = tmp_path / "jobrunner.ini"
    settings.write_text("[executor]\nmax_timeout = 100\ndefault_timeout = 50\n")
    command = (sys.executable, "-m", "jobrunner", "--config", str(settings), "serve")
    service = start_service(command=command)
    assert service.post("/v1/jobs", {"command": "true", "timeout": 200}).status_code == 422

    settings.write_text("[executor]\nmax_timeout = 300\ndefault_timeout = 50\n")
    os.kill(service.pid, signal.SIGHUP)

    assert eventually(
        lambda: service.post("/v1/jobs", {"command": "true", "timeout": 200}).status_code == 202, within=20
    )
    assert eventually(lambda: "supervisor took over" in service.log.read_text(), within=20)
    settings.write_text("[executor]\nmax_timeout = nonsense\n")
    os.kill(service.pid, signal.SIGHUP)
    assert eventually(lambda: "not reloaded, all goes on as before" in service.log.read_text())
    assert service.run(command="true", timeout=200)["state"] == "succeeded"


def test_a_request_in_flight_is_answered_by_the_worker_that_leaves(start_service: StartService) -> None:
    service = start_service()
    body = b'{"argv": ["true"]}'
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(head.encode() + body[:5])
        time.sleep(0.2)  # a thread has it
        old = child(service, "web")
        os.kill(service.pid, signal.SIGHUP)
        assert eventually(lambda: len(children_with(service, "web")) == 2)
        client.sendall(body[5:])
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 202")
    assert eventually(lambda: is_dead(old), within=20)


# ── drain ──


@pytest.mark.parametrize("how", ["signal", "command"])
def test_a_drain_runs_what_is_there_and_ends_with_the_last(start_service: StartService, how: str) -> None:
    service = start_service({"executor": {"max_running": 1}})
    running, _ = running_job(service, f"{GATED}; exit 3")
    queued = service.submit(command="exit 4")

    if how == "signal":
        os.kill(service.pid, signal.SIGUSR1)
    else:
        done = subprocess.run(
            [sys.executable, "-m", "jobrunner", "drain"], cwd=ROOT, env=service.environment, check=False, timeout=30
        )
        assert done.returncode == 0

    assert eventually(lambda: service.get("/readyz").status_code == 503)
    assert "drained" in service.get("/readyz").json()["checks"]["drain"]
    refused = service.post("/v1/jobs", {"command": "true"})
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/draining")
    assert int(refused.headers["Retry-After"]) > 0
    assert service.get(f"/v1/jobs/{queued['id']}").json()["state"] == "queued"
    (scratch(service, running) / "go").touch()
    assert ended(service, within=15) == 0

    again = start_service(data_dir=service.data_dir)
    assert [again.get(f"/v1/jobs/{job['id']}").json()["exit_code"] for job in (running, queued)] == [3, 4]
    assert again.run(command="true")["state"] == "succeeded"


# ── what is told to systemd ──


def test_systemd_is_told_what_happens(start_service: StartService, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(tmp_path / "notify"))
        inbox.settimeout(20)
        service = Service(tmp_path / "data")
        environ = {**service.environment, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with service.log.open("ab") as log:
            started = subprocess.Popen(service.command, cwd=ROOT, env=environ, stdout=log, stderr=log)

        def hear(word: str) -> None:
            while word not in inbox.recv(4096).decode().splitlines():
                pass

        try:
            hear("READY=1")
            assert service.get("/readyz").ok
            hear("WATCHDOG=1")
            started.send_signal(signal.SIGHUP)
            hear("RELOADING=1")
            hear("READY=1")
            started.terminate()
            hear("STOPPING=1")
            assert started.wait(15) == 0
        finally:
            started.kill()
            started.wait()
            service.http.close()
