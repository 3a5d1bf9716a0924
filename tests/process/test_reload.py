"""New code and new settings without an end of the service, and the end that a drain is."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.conftest import StartService
from tests.factories import children_of, is_dead
from tests.process.running import is_alive
from tests.process.serving import (
    GATED,
    child,
    children_with,
    ended,
    has_read,
    own_processes,
    running_job,
    scratch,
    submissions,
)
from tests.service import ROOT, Service, eventually, free_port


def test_a_reload_replaces_all_processes_and_disturbs_nobody(start_service: StartService) -> None:
    service = start_service()
    job, pid = running_job(service, f"{GATED}; exit 24")
    supervisor = service.pid
    before = own_processes(service)
    stop = threading.Event()
    statuses: list[int | str] = []
    with ThreadPoolExecutor(2) as pool:
        submitted = pool.submit(submissions, service, stop, statuses)
        for _ in range(2):
            old = {child(service, word) for word in ("executor", "web")}
            os.kill(supervisor, signal.SIGHUP)
            assert eventually(lambda: all(is_dead(each) for each in old), within=20)  # noqa: B023
            assert eventually(lambda: {len(children_with(service, word)) for word in ("executor", "web")} == {1})
        stop.set()
        submitted.result(60)

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


def test_a_reload_whose_processes_fail_changes_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    for part in ("jobrunner", "migrations"):
        shutil.copytree(ROOT / part, tmp_path / "code" / part, ignore=shutil.ignore_patterns("__pycache__"))
    settings, code = tmp_path / "jobrunner.ini", tmp_path / "code" / "jobrunner" / "gunicorn_conf.py"
    command = (sys.executable, "-m", "jobrunner", "--config", str(settings), "serve")
    service = Service(tmp_path / "data", command=command)
    del service.environment["JOBRUNNER_SERVER_PORT"]
    other = f"http://127.0.0.1:{free_port()}"
    settings.write_text(f"[server]\nport = {service.port}\n")
    environ = {**service.environment, "PYTHONPATH": str(tmp_path / "code")}
    with service.log.open("ab") as log:
        service.process = subprocess.Popen(command, cwd=tmp_path / "code", env=environ, stdout=log, stderr=log)
    try:
        assert eventually(lambda: is_ready(service.url), within=30), service.log.read_text()
        service.http.headers["Authorization"] = f"Bearer {service.token}"
        assert service.run(command="true")["state"] == "succeeded"  # all are up: before that a failure is the end
        before = children_of(service.pid)
        whole = code.read_text()
        code.write_text("raise RuntimeError('this code is of no use')\n")
        settings.write_text(f"[server]\nport = {other.rpartition(':')[2]}\n")

        os.kill(service.pid, signal.SIGHUP)

        assert eventually(lambda: "not reloaded, all goes on as before" in service.log.read_text(), within=30)
        assert eventually(lambda: children_of(service.pid) == before)
        assert is_ready(service.url)
        assert not is_ready(other)

        code.write_text(whole)
        os.kill(service.pid, signal.SIGHUP)
        assert eventually(lambda: "supervisor took over" in service.log.read_text(), within=20)
        assert is_ready(other)
        assert not is_ready(service.url)
    finally:
        service.http.close()
        if service.process.poll() is None:
            assert service.stop() == 0, service.log.read_text()


def is_ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).ok
    except requests.RequestException:
        return False


def test_a_request_in_flight_is_answered_by_the_worker_that_leaves(start_service: StartService) -> None:
    service = start_service()
    body = b'{"argv": ["true"]}'
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(head.encode() + body[:5])
        assert eventually(lambda: has_read(client)), "the worker has begun with it"
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
