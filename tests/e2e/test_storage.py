"""Storage that refuses: a full disk, a read-only one, one that fails under the running service."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Mount, StartService
from tests.e2e.checks import check_job, check_problem
from tests.factories import is_dead
from tests.service import Service, eventually


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def fill(directory: Path) -> Path:
    """Take all the space there is."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            pass
    return ballast


def test_the_data_directory_is_closed_to_other_users(service: Service) -> None:
    """Whatever the umask of whoever starts the service."""
    made = [service.data_dir, *(path for path in service.data_dir.iterdir() if not path.is_socket())]

    assert {path.name for path in made} >= {"data", "run", "jobs", "scripts", "jobrunner.db", "admin.token"}
    assert [path.name for path in made if path.stat().st_mode & 0o077] == []


def test_a_full_disk_is_told_and_when_there_is_space_again_all_goes_on(
    start_service: StartService, mount: Mount
) -> None:
    service = start_service({"executor": {"max_running": 1}}, data_dir=mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"))
    before = service.run(command="echo before")
    gate = service.data_dir / "gate"
    running = service.submit(command=f"while ! test -e {gate}; do sleep 0.05; done; exit 7")
    queued = service.submit(command="echo queued")
    assert eventually(lambda: state_of(service, running) == "running")

    ballast = fill(service.data_dir)

    for _ in range(3):
        refused = service.post("/v1/jobs", {"command": "true", "stdin": "x" * 900_000})
        check_problem(refused, 507, "storage-full")
        assert refused.headers["Retry-After"]
    assert service.get("/healthz").status_code == 200
    assert service.get(f"/v1/jobs/{before['id']}?include=output").json() == before
    assert state_of(service, queued) == "queued"

    ballast.unlink()
    gate.touch()

    assert check_job(service.wait(running["id"]))["exit_code"] == 7
    assert check_job(service.wait(queued["id"]))["stdout"]["text"] == "queued\n"
    assert check_job(service.run(command="echo after"))["stdout"]["text"] == "after\n"
    assert service.get("/v1/jobs?state=active").json()["jobs"] == []


def test_a_job_that_fills_the_disk_ends_and_is_not_lost(start_service: StartService, mount: Mount) -> None:
    """Its end has to be written though the job has left no space at all."""
    service = start_service(data_dir=mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"))

    job = check_job(
        service.wait(service.submit(command="cat /dev/zero; code=$?; exit $((40 + code))")["id"], within=10)
    )

    assert (job["state"], job["exit_code"]) == ("failed", 41)
    assert service.request("DELETE", f"/v1/jobs/{job['id']}").status_code == 204
    assert service.run(command="echo after")["stdout"]["text"] == "after\n"


def test_a_job_that_keeps_the_disk_full_can_be_canceled(start_service: StartService, mount: Mount) -> None:
    """The wish that it should end has to be written first."""
    service = start_service(data_dir=mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"))
    job = service.submit(command="while :; do head -c 20000 /dev/zero >> fill; sleep 0.02; done 2>/dev/null", grace=1)
    assert eventually(lambda: free_bytes(service.data_dir) < 4096)

    assert service.request("POST", f"/v1/jobs/{job['id']}/cancel", json={"grace": 0}).status_code == 202

    assert check_job(service.wait(job["id"], within=20))["state"] == "canceled"
    assert service.request("DELETE", f"/v1/jobs/{job['id']}").status_code == 204
    assert service.run(command="echo after")["stdout"]["text"] == "after\n"


def test_files_that_do_not_fit_fail_the_job_with_the_words_of_the_system(
    start_service: StartService, mount: Mount
) -> None:
    service = start_service(data_dir=mount("-t", "tmpfs", "-o", "size=2m", "tmpfs"))

    statuses = []
    accepted = []
    for _ in range(8):
        response = service.post("/v1/jobs", {"command": "true", "files": {"a": "x" * 200_000}})
        statuses.append(response.status_code)
        if response.status_code == 202:
            accepted.append(response.json()["id"])
        else:
            check_problem(response, 507, "storage-full")

    assert 507 in statuses
    for job in accepted:
        ended = check_job(service.wait(job, within=20))
        if ended["state"] != "succeeded":
            assert (ended["state"], ended["error"]["code"]) == ("failed", "no-space")
            assert "No space left on device" in ended["error"]["detail"]


def test_a_disk_below_its_minimum_refuses_at_once(start_service: StartService, mount: Mount) -> None:
    data_dir = mount("-t", "tmpfs", "-o", "size=8m", "tmpfs")
    service = start_service({"storage": {"min_free_bytes": "6M"}}, data_dir=data_dir)
    ballast = data_dir / "ballast"
    ballast.write_bytes(bytes(3 << 20))

    check_problem(service.post("/v1/jobs", {"command": "true"}), 507, "storage-full")
    ready = check_problem(service.get("/readyz"), 503, "not-ready")
    assert "min_free_bytes" in ready["checks"]["disk"]
    assert service.get("/healthz").status_code == 200

    ballast.unlink()
    assert service.run(command="true")["state"] == "succeeded"
    assert service.get("/readyz").status_code == 200


def test_a_read_only_data_directory_stops_the_start_with_a_clear_message(
    start_service: StartService, mount: Mount
) -> None:
    point = mount("-t", "tmpfs", "-o", "size=8m", "tmpfs")
    service = start_service(data_dir=point)
    service.run(command="true")
    assert service.stop() == 0
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    seen = service.log.with_name("second.log")

    with seen.open("wb") as log:
        ended = subprocess.run(
            service.command, env=service.environment, stdout=log, stderr=log, timeout=30, check=False
        )

    assert ended.returncode != 0
    assert "Read-only file system" in seen.read_text()
    assert "Traceback" not in seen.read_text()


@pytest.fixture
def disk(mount: Mount, tmp_path: Path) -> Path:
    """A small disk of its own; `break_disk` has it turn read-only."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    return mount("-o", "loop", str(image))


def break_disk(disk: Path) -> None:
    """Do to a file system in use what ext4 does to itself on an error of the disk: EROFS for every write."""
    subprocess.run(["mount", "-o", "remount,abort", disk], check=False, capture_output=True)


def repair_disk(disk: Path, image: Path) -> None:
    subprocess.run(["umount", disk], check=True)
    subprocess.run(["fsck.ext4", "-fy", image], check=False, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)


def test_a_disk_that_turns_read_only_is_told(start_service: StartService, disk: Path) -> None:
    service = start_service(data_dir=disk)
    before = service.run(command="echo before")
    running = service.submit(command="sleep 60")
    assert eventually(lambda: state_of(service, running) == "running")

    break_disk(disk)

    refused = service.post("/v1/jobs", {"command": "true"})
    check_problem(refused, 503, "storage-unavailable")
    assert refused.headers["Retry-After"]
    assert service.get("/healthz").status_code == 200
    assert service.get(f"/v1/jobs/{before['id']}?include=output").json() == before
    for method, path in (("POST", "/cancel"), ("POST", "/rerun"), ("DELETE", "?force=true")):
        response = service.request(method, f"/v1/jobs/{running['id']}{path}")
        check_problem(response, 503, "storage-unavailable")
    check_problem(service.request("DELETE", f"/v1/jobs/{before['id']}"), 503, "storage-unavailable")
    service.stop()
    kill_sleepers(disk)
    assert "Traceback" not in service.log.read_text()


def test_a_service_whose_disk_turned_read_only_is_not_ready(start_service: StartService, disk: Path) -> None:
    service = start_service(data_dir=disk)

    break_disk(disk)

    answers = []

    def is_refused() -> bool:
        answers.append(service.get("/readyz"))  # what a worker saw of the database holds good for a second
        return answers[-1].status_code == 503

    assert eventually(is_refused)
    assert check_problem(answers[-1], 503, "not-ready")["checks"]["database"]


def test_a_job_that_ended_on_a_read_only_disk_is_not_running_for_ever(
    start_service: StartService, disk: Path, tmp_path: Path
) -> None:
    service = start_service(data_dir=disk)
    running = service.submit(command="sleep 1; exit 7")
    assert eventually(lambda: any(disk.glob(f"jobs/*/{running['id']}/process.json")))
    pid = json.loads(next(disk.glob(f"jobs/*/{running['id']}/process.json")).read_text())["pid"]
    subprocess.run(["sync", "--file-system", disk], check=True)
    break_disk(disk)
    assert eventually(lambda: is_dead(pid))
    service.stop()

    repair_disk(disk, tmp_path / "image")
    again = start_service(data_dir=disk)

    ended = check_job(again.wait(running["id"], within=20))
    assert ended["state"] in {"failed", "lost"}
    assert ended["exit_code"] == (7 if ended["state"] == "failed" else None)
    assert (ended["error"] is None) == (ended["state"] == "failed")
    assert again.stop() == 0


def kill_sleepers(disk: Path) -> None:
    """End the jobs that a service has left running in this data directory."""
    for record in disk.glob("jobs/*/*/process.json"):
        pid = json.loads(record.read_text())["pid"]
        if not is_dead(pid) and Path(f"/proc/{pid}/cwd").readlink().is_relative_to(disk):
            os.killpg(pid, signal.SIGKILL)


def state_of(service: Service, job: dict[str, Any]) -> str:
    state: str = service.get(f"/v1/jobs/{job['id']}").json()["state"]
    return state
