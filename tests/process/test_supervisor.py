"""``jobrunner serve``: three kinds of processes, and what the death of each means."""

import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from jobrunner.config import Server
from jobrunner.listener import open_listener
from jobrunner.locks import FileLock
from tests.conftest import StartService
from tests.factories import children_of, is_dead
from tests.process.running import is_alive
from tests.process.serving import (
    GATED,
    child,
    children_with,
    command_line,
    ended,
    has_read,
    own_processes,
    running_job,
    scratch,
    submissions,
)
from tests.service import ROOT, Service, eventually

# ── told to stop ──


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_running_job_survives_the_service_and_ends_under_the_next(start_service: StartService, number: int) -> None:
    service = start_service()
    job, pid = running_job(service, f"{GATED}; exit 19")

    assert service.stop(number, within=10) == 0
    assert is_alive(pid)
    assert "Traceback" not in service.log.read_text()

    again = start_service(data_dir=service.data_dir)
    assert again.get(f"/v1/jobs/{job['id']}").json()["state"] == "running"
    (scratch(service, job) / "go").touch()
    assert again.wait(job["id"])["exit_code"] == 19


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_with_on_stop_kill_no_job_survives_the_service(start_service: StartService, number: int) -> None:
    service = start_service({"executor": {"on_stop": "kill", "grace": "0.5"}})
    _, polite = running_job(service)
    _, stubborn = running_job(service, f"trap '' TERM; {GATED}")

    assert service.stop(number, within=10) == 0

    assert eventually(lambda: is_dead(polite) and is_dead(stubborn))
    assert "Traceback" not in service.log.read_text()


def test_control_c_goes_to_all_processes_at_once(start_service: StartService) -> None:
    """The terminal sends SIGINT to the whole process group; jobs are not in it."""
    leads = "import os, sys; os.setsid(); os.execv(sys.executable, [sys.executable, '-m', 'jobrunner', 'serve'])"
    service = start_service(command=(sys.executable, "-c", leads))
    own = own_processes(service)
    _, pid = running_job(service)

    os.killpg(service.pid, signal.SIGINT)

    assert ended(service) == 0
    assert eventually(lambda: all(is_dead(each) for each in own))
    assert is_alive(pid)
    assert "Traceback" not in service.log.read_text()


def test_a_job_ignores_no_signal_though_who_started_the_service_does(start_service: StartService) -> None:
    ignores = "trap '' HUP INT QUIT USR2 CHLD; exec " + shlex.join((sys.executable, "-m", "jobrunner", "serve"))
    service = start_service(command=("sh", "-c", ignores))

    job = service.run(command="grep SigIgn /proc/self/status; kill -QUIT $$")

    ignored = int(job["stdout"]["text"].split()[1], 16)
    assert not ignored & (1 << 31) - 1, "32 and 33 are the C library's"
    assert job["signal"] == "SIGQUIT"


def test_a_second_sigterm_is_harmless(start_service: StartService) -> None:
    service = start_service()
    own = own_processes(service)
    assert service.process is not None
    for _ in range(20):
        if service.process.poll() is None:
            service.process.send_signal(signal.SIGTERM)
            for pid in own[1:]:
                if "jobrunner" in command_line(pid):
                    os.kill(pid, signal.SIGTERM)
        time.sleep(0.01)

    assert ended(service) == 0
    assert "Traceback" not in service.log.read_text()
    assert eventually(lambda: all(is_dead(pid) for pid in own))


@pytest.mark.parametrize("on_stop", ["keep", "kill"])
def test_neither_clients_that_wait_nor_a_stubborn_job_hold_up_the_end(
    start_service: StartService, on_stop: str
) -> None:
    grace = 2
    service = start_service({"executor": {"on_stop": on_stop, "grace": str(grace)}})
    job, pid = running_job(service, f"trap '' TERM; {GATED}")
    outcomes: list[str] = []
    url, headers = f"{service.url}/v1/jobs", dict(service.http.headers)

    def wait_for_job(index: int) -> None:
        prefer = {**headers, "Prefer": "wait=60"}
        try:
            if index % 2:
                response = requests.get(f"{url}/{job['id']}", headers=prefer, timeout=70)
            else:
                response = requests.post(url, json={"command": "exec sleep 61"}, headers=prefer, timeout=70)
            outcomes.append(str(response.status_code))
        except requests.ConnectionError:
            outcomes.append("closed")

    threads = [threading.Thread(target=wait_for_job, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: len(service.get("/v1/jobs?state=running").json()["jobs"]) >= 11)
    assert not outcomes

    began = time.monotonic()
    assert service.stop(within=30) == 0
    assert time.monotonic() - began <= grace + 5
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive(), "a client still waits"
    assert len(outcomes) == 20
    assert set(outcomes) == {"200", "202"}
    assert is_alive(pid) == (on_stop == "keep")
    assert "Traceback" not in service.log.read_text()


# ── processes that die ──


@pytest.mark.parametrize("word", ["executor", "web"])
def test_a_process_that_dies_is_started_again_and_no_submission_is_refused(
    start_service: StartService, word: str
) -> None:
    service = start_service()
    job, pid = running_job(service, f"{GATED}; exit 18")
    stop = threading.Event()
    statuses: list[int | str] = []
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(submissions, service, stop, statuses)
        before = child(service, word)

        os.kill(before, signal.SIGKILL)

        assert eventually(lambda: is_dead(before))
        assert eventually(lambda: children_with(service, word) not in ([], [before]), within=30)
        service.http.close()
        assert eventually(lambda: service.get("/readyz").ok, within=30)
        before_now = len(statuses)
        assert eventually(lambda: len(statuses) > before_now + 20, within=30)
        stop.set()
        submitted.result(60)

    assert set(statuses) == {202}
    assert is_alive(pid)
    (scratch(service, job) / "go").touch()
    assert service.wait(job["id"])["exit_code"] == 18
    assert f"the {word} process has ended with signal 9" in service.log.read_text()


def test_the_ends_of_jobs_while_no_executor_runs_are_exact(start_service: StartService) -> None:
    """The supervisor reaps them and writes it down; the next executor reads it."""
    service = start_service()
    jobs = [running_job(service, f"{GATED}; {how}") for how in ("exit 33", "kill -SEGV $$", "exit 0")]
    executor = child(service, "executor")
    # It can't be started again while we hold its lock.
    lock = FileLock(service.data_dir / "executor.lock")
    os.kill(executor, signal.SIGKILL)
    assert eventually(lambda: lock.acquire(wait=False))
    for job, _ in jobs:
        (scratch(service, job) / "go").touch()
    for _, pid in jobs:
        assert eventually(lambda: not Path(f"/proc/{pid}").exists())  # noqa: B023 reaped, not only dead

    lock.release()

    ended = [service.wait(job["id"]) for job, _ in jobs]
    assert [(job["exit_code"], job["signal"]) for job in ended] == [(33, None), (None, "SIGSEGV"), (0, None)]


def test_an_executor_that_dies_again_and_again_is_started_ever_later(start_service: StartService) -> None:
    service = start_service()
    service.run(command="true")  # before it was up a child that dies would end it
    killed = 0
    for _ in range(3):
        assert eventually(lambda: set(children_with(service, "executor")) - {killed}, within=30)  # noqa: B023
        killed = child(service, "executor")
        os.kill(killed, signal.SIGKILL)

    for delay in ("0.2", "0.4", "0.8"):
        assert eventually(lambda: f"starting it again in {delay} s" in service.log.read_text())  # noqa: B023


def test_a_process_that_can_not_be_started_again_is_tried_again(start_service: StartService) -> None:
    """No descriptor is left: the supervisor itself must not die of it."""
    service = start_service()
    job, _ = running_job(service, f"{GATED}; exit 17")
    before = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (4, before[1]))
    os.kill(child(service, "executor"), signal.SIGKILL)
    assert eventually(lambda: "can't start the executor process" in service.log.read_text())

    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, before)

    assert eventually(lambda: children_with(service, "executor") != [], within=20)
    (scratch(service, job) / "go").touch()
    assert service.wait(job["id"])["exit_code"] == 17


def test_a_drain_that_can_not_be_written_down_is_told_and_ends_nothing(start_service: StartService) -> None:
    service = start_service()
    service.run(command="true")  # now all its processes have what they need there
    (service.data_dir / "run").rename(service.data_dir / "run away")

    os.kill(service.pid, signal.SIGUSR1)

    assert eventually(lambda: "can't drain" in service.log.read_text())
    (service.data_dir / "run away").rename(service.data_dir / "run")
    assert service.run(command="exit 2")["exit_code"] == 2


def test_what_can_not_be_started_ends_the_service(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "jobrunner.db").write_bytes(b"this is no database" * 100)
    service = Service(data_dir)
    done = subprocess.run(
        service.command, cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=30, check=False
    )
    service.http.close()

    assert done.returncode == 1
    assert "file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_somebody_else_is_about_to_leave_is_waited_for(tmp_path: Path) -> None:
    """The processes of a service that was killed need a moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Server(port=taken.getsockname()[1])
        threading.Timer(0.5, taken.close).start()
        open_listener(settings, patience=20).close()


def test_nothing_but_jobs_survives_the_supervisor(start_service: StartService) -> None:
    service = start_service()
    own = own_processes(service)
    job, pid = running_job(service, f"{GATED}; exit 21")

    os.kill(service.pid, signal.SIGKILL)

    assert ended(service) == -signal.SIGKILL
    assert eventually(lambda: all(is_dead(each) for each in own)), [command_line(each) for each in own]
    assert is_alive(pid)

    again = start_service(data_dir=service.data_dir)
    (scratch(service, job) / "go").touch()
    assert again.wait(job["id"])["exit_code"] == 21


def test_the_next_supervisor_can_listen_while_the_last_one_s_requests_are_still_answered(
    start_service: StartService,
) -> None:
    service = start_service()
    web = child(service, "web")
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n"
    body = json.dumps({"argv": ["true", "x" * 100_000]}).encode()
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        client.sendall(body[:-1])
        assert eventually(lambda: has_read(client)), "a thread has it"

        os.kill(service.pid, signal.SIGKILL)

        assert ended(service) == -signal.SIGKILL
        assert eventually(lambda: may_listen(service.port), within=5)
        assert is_alive(web)
        # Before the next one starts, which may take longer than a worker that leaves has patience.
        client.sendall(body[-1:])
        assert client.recv(65536).startswith(b"HTTP/1.1 202")
    again = start_service(data_dir=service.data_dir, port=service.port)
    assert again.run(command="exit 2")["exit_code"] == 2
    assert eventually(lambda: is_dead(web))


def may_listen(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
        return True


def test_a_web_worker_that_dies_is_replaced_and_no_job_notices(start_service: StartService) -> None:
    service = start_service({"server": {"workers": "1"}})
    job, pid = running_job(service, f"{GATED}; exit 22")
    web = child(service, "web")
    (worker,) = children_of(web)

    os.kill(worker, signal.SIGKILL)

    assert eventually(lambda: children_of(web) not in ([], [worker]))
    assert is_alive(pid)
    (scratch(service, job) / "go").touch()
    service.http.close()
    assert eventually(lambda: service.get("/readyz").ok)
    assert service.wait(job["id"])["exit_code"] == 22


# ── starting ──


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = Service(tmp_path / "data", port=taken.getsockname()[1])
        done = subprocess.run(
            service.command, cwd=ROOT, env=service.environment, capture_output=True, text=True, timeout=30, check=False
        )
        service.http.close()

    assert done.returncode == 1
    assert "in use" in done.stderr
    assert str(service.port) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sigterm_right_after_the_start_ends_it_in_order(tmp_path: Path) -> None:
    """Wherever it is in its start."""
    for patience in (0.3, 0.6, 0.9):
        service = Service(tmp_path / "data")
        with service.log.open("ab") as log:
            started = subprocess.Popen(service.command, cwd=ROOT, env=service.environment, stdout=log, stderr=log)
        service.process = started
        service.http.close()
        assert eventually(lambda: children_of(started.pid))  # noqa: B023
        time.sleep(patience)
        own = [pid for pid in service.processes() if "jobrunner" in command_line(pid)]
        started.terminate()
        assert started.wait(15) == 0, service.log.read_text()
        assert eventually(lambda: all(is_dead(pid) for pid in own))  # noqa: B023


def test_a_worker_that_is_told_to_stop_before_it_can_hear_is_not_waited_for(tmp_path: Path) -> None:
    settings = tmp_path / "gunicorn.conf.py"
    settings.write_text("""
import time
from jobrunner.gunicorn_conf import *

def post_fork(server, worker):
    print("not listening yet", flush=True)
    time.sleep(0.5)
""")
    gunicorn = (sys.executable, "-m", "gunicorn", "--config", str(settings), "wsgi:app")
    # A worker that did not hear is killed after the grace period.
    service = Service(tmp_path / "data", {"server": {"workers": 1}, "executor": {"grace": 60}}, command=gunicorn)
    with service.log.open("ab") as log:
        started = subprocess.Popen(service.command, cwd=ROOT, env=service.environment, stdout=log, stderr=log)
    service.http.close()
    assert eventually(lambda: "not listening yet" in service.log.read_text())

    started.terminate()

    try:
        assert started.wait(30) == 0, service.log.read_text()
    finally:
        started.kill()
        started.wait()


def test_the_supervisor_is_small_and_opens_no_database(start_service: StartService) -> None:
    service = start_service()
    service.run(command="true")

    status = Path(f"/proc/{service.pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    assert rss <= 20 * 1024, f"{rss} KiB"
    open_files = [str(fd.readlink()) for fd in Path(f"/proc/{service.pid}/fd").iterdir()]
    assert not any(str(service.data_dir) + "/" in name for name in open_files)


def test_the_supervisor_imports_nothing_that_it_does_not_need(start_service: StartService) -> None:
    """-X importtime has it tell what it imports; the other processes are started without."""
    service = start_service(command=(sys.executable, "-X", "importtime", "-m", "jobrunner", "serve"))
    assert service.run(command="true")["state"] == "succeeded"
    os.kill(child(service, "executor"), signal.SIGKILL)
    assert eventually(lambda: "starting it again" in service.log.read_text())
    os.kill(service.pid, signal.SIGHUP)
    assert eventually(lambda: "supervisor took over" in service.log.read_text(), within=20)

    told = [line for line in service.log.read_text().splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in told}
    assert {"click", "jobrunner", "socket"} <= imported
    strangers = {
        "alembic",
        "flask",
        "flask_openapi3",
        "gunicorn",
        "pydantic",
        "requests",
        "rich",
        "sqlalchemy",
        "sqlite3",
    }
    assert imported & {*strangers, "werkzeug", "_sqlite3", "subprocess", "ssl"} == set()


def test_the_supervisor_needs_no_processor_time_while_nothing_happens(start_service: StartService) -> None:
    service = start_service()

    def ticks() -> int:
        fields = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    assert service.run(command="sleep 1")["exit_code"] == 0
    assert ticks() - before <= 2
