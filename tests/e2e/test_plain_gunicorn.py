"""A plain ``gunicorn wsgi:app``, without ``jobrunner serve``: a worker runs the jobs, and another takes over."""

import os
import signal
import sys
from pathlib import Path

import pytest
import requests

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.factories import children_of, is_dead
from tests.service import Service, eventually

GUNICORN = (sys.executable, "-m", "gunicorn", "wsgi:app")


def lock_holder(service: Service) -> int | None:
    """Return the process that holds the executor's lock: see /proc/locks in proc(5)."""
    inode = (service.data_dir / "executor.lock").stat().st_ino
    with Path("/proc/locks").open(encoding="ascii") as locks:
        for line in locks:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return int(fields[4])
    return None


def answering_workers(service: Service) -> list[int]:
    return [pid for pid in children_of(service.pid) if b"gunicorn" in command_line(pid)]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["each loads it", "preloaded"])
@pytest.mark.parametrize("workers", ["1", "4"])
def test_jobs_run_and_every_worker_knows_them(
    start_service: StartService, workers: str, preload: tuple[str, ...]
) -> None:
    service = start_service(command=(*GUNICORN, "-w", workers, *preload))
    assert eventually(lambda: len(answering_workers(service)) == int(workers))

    auth = {"Authorization": f"Bearer {service.token}"}
    for number in range(12):  # each request on a connection of its own
        made = requests.post(
            f"{service.url}/v1/jobs",
            json={"command": f"echo {number}; exit {number}"},
            headers={**auth, "Prefer": "wait=20"},
            timeout=30,
        )
        assert made.status_code == 200, made.text
        seen = requests.get(f"{service.url}{made.headers['Location']}?include=output", headers=auth, timeout=10)
        job = check_job(seen.json())
        assert (job["exit_code"], job["stdout"]["text"]) == (number, f"{number}\n")

    assert lock_holder(service) in answering_workers(service)
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["each loads it", "preloaded"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_worker_with_the_executor_dies_another_takes_over(
    start_service: StartService, preload: tuple[str, ...], how: signal.Signals
) -> None:
    service = start_service({"executor": {"max_running": 2}}, command=(*GUNICORN, "-w", "2", *preload))
    gate = service.data_dir / "gate"
    wait = f"while ! test -e {gate}; do sleep 0.05; done"
    running = service.submit(command=f"echo before; {wait}; echo after; exit 43")
    killed = service.submit(command="echo $$; exec sleep 60")
    queued = [service.submit(command=f"echo {number}") for number in range(3)]
    assert eventually(lambda: service.get(f"/v1/jobs/{killed['id']}/stdout").text)
    holder = lock_holder(service)
    assert holder is not None
    assert holder in answering_workers(service)

    service.http.close()  # its connections may be with the one that dies
    os.kill(holder, how)
    assert eventually(lambda: is_dead(holder))
    assert eventually(lambda: lock_holder(service) not in {None, holder})
    # It has the lock before it watches: until it does, the end of a job could be seen by nobody.
    assert eventually(lambda: service.log.read_text().count("adopted process") == 2)
    gate.touch()

    ended = check_job(service.wait(running["id"]))
    assert (ended["state"], ended["exit_code"], ended["stdout"]["text"]) == ("failed", 43, "before\nafter\n")
    for number, job in enumerate(queued):
        assert check_job(service.wait(job["id"]))["stdout"]["text"] == f"{number}\n"
    service.post(f"/v1/jobs/{killed['id']}/cancel")
    ended = check_job(service.wait(killed["id"]))
    assert (ended["state"], ended["signal"]) == ("canceled", "SIGTERM")


def test_a_job_that_ends_while_no_worker_is_there_is_not_guessed(start_service: StartService) -> None:
    service = start_service(command=(*GUNICORN, "-w", "1"))
    gate = service.data_dir / "gate"
    job = service.submit(command=f"echo $$; while ! test -e {gate}; do sleep 0.02; done; exit 44")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}/stdout").text)
    pid = int(service.get(f"/v1/jobs/{job['id']}/stdout").text)

    service.stop(signal.SIGKILL)
    gate.touch()
    assert eventually(lambda: is_dead(pid))
    again = start_service(command=(*GUNICORN, "-w", "1"))

    ended = check_job(again.wait(job["id"]))
    if ended["state"] == "failed":
        assert ended["exit_code"] == 44
    else:
        assert (ended["state"], ended["exit_code"], ended["error"]["code"]) == ("lost", None, "worker-lost")


def test_workers_of_another_kind_hear_signals_and_their_jobs_too(start_service: StartService) -> None:
    """What guards the forks of our own workers must not touch theirs."""
    command = (*GUNICORN, "-k", "sync", "--threads", "1", "-w", "1")
    service = start_service(command=command)

    job = service.run(argv=["grep", "SigBlk", "/proc/self/status"])

    assert job["stdout"]["text"].split() == ["SigBlk:", "0" * 16]
    assert service.stop(within=8) == 0


def test_a_server_without_our_settings_runs_jobs_after_the_first_request(start_service: StartService) -> None:
    command = (*GUNICORN, "-k", "sync", "-w", "1", "-c", "/dev/null", "-b", "127.0.0.1:{port}")
    service = start_service(command=command)

    # It has nobody else to answer meanwhile, so it does not wait.
    response = service.post("/v1/jobs", {"command": "echo plain; exit 3"}, headers={"Prefer": "wait=20"})
    job = check_job(response.json())

    assert response.status_code == 202
    assert "Preference-Applied" not in response.headers
    path = f"/v1/jobs/{job['id']}"
    assert eventually(lambda: service.get(path).json()["state"] == "failed")
    assert check_job(service.get(f"{path}?include=output").json())["stdout"]["text"] == "plain\n"
    assert service.stop() == 0
