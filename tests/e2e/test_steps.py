"""Several steps in one job, over HTTP: what they are given, what is told about them."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from jobrunner.proc import list_pids, read_environ
from tests.conftest import StartService
from tests.e2e.checks import check_job, check_problem
from tests.e2e.commands import run
from tests.service import Service, eventually


def test_steps_run_in_order_and_the_job_tells_of_each(service: Service) -> None:
    job = check_job(
        service.run(
            steps=[
                {"command": "cat; pwd; echo $A $B", "name": "build"},
                {"argv": ["sh", "-c", "cat; pwd; echo $A $B"], "cwd": "/", "env": {"A": "step"}},
                {"source": "#!/usr/bin/env python3\nprint(6 * 7)\n", "timeout": 60},
                {"source": "echo $JOBRUNNER_JOB_STEP >&2; exit 3"},
                {"command": "echo never"},
            ],
            env={"A": "job", "B": "all"},
            cwd="/tmp",
            stdin="input\n",
        )
    )

    assert job["stdout"]["text"] == "input\n/tmp\njob all\n/\nstep all\n42\n"
    assert job["stderr"]["text"] == "3\n"
    assert (job["state"], job["exit_code"]) == ("failed", 3)
    assert [step["state"] for step in job["steps"]] == ["succeeded"] * 3 + ["failed", "skipped"]
    assert [step["kind"] for step in job["steps"]] == ["command", "argv", "source", "source", "command"]
    assert [step["name"] for step in job["steps"]][:2] == ["build", None]
    assert [step["cwd"] for step in job["steps"]] == ["/tmp", "/", "/tmp", "/tmp", "/tmp"]
    assert (job["env_names"], job["steps"][1]["env_names"]) == (["A", "B"], ["A"])
    assert job["steps"][2]["timeout"] == 60.0


def test_streams_can_be_merged_over_all_steps(service: Service) -> None:
    job = check_job(service.run(steps=[{"command": "echo 1; echo 2 >&2"}, {"command": "echo 3 >&2"}], stderr="stdout"))

    assert job["stdout"]["text"] == "1\n2\n3\n"


def test_a_later_step_finds_the_files_of_the_job_and_of_the_steps_before(service: Service) -> None:
    job = check_job(service.run(steps=[{"command": "cat f > g"}, {"argv": ["cat", "g"]}], files={"f": "content"}))

    assert job["stdout"]["text"] == "content"


def test_a_job_of_one_step_is_told_as_any_other(service: Service) -> None:
    job = check_job(service.run(steps=[{"argv": ["sh", "-c", "exit 4"], "name": "only"}]))

    assert (job["exit_code"], job["steps"][0]["exit_code"], job["steps"][0]["name"]) == (4, 4, "only")


def test_the_only_step_of_a_job_has_its_own_timeout_as_well(service: Service) -> None:
    job = check_job(service.run(steps=[{"argv": ["sleep", "300"], "timeout": 0.1}]))

    assert (job["state"], job["error"]["code"]) == ("timed_out", "step-timeout")
    assert job["steps"][0]["error"] == job["error"]


def test_steps_are_run_again_with_all_they_were_given(service: Service) -> None:
    before = service.run(steps=[{"source": "echo one"}, {"source": "echo $A", "env": {"A": "two"}, "timeout": 50}])

    again = check_job(service.wait(service.post(f"/v1/jobs/{before['id']}/rerun").json()["id"]))

    assert again["stdout"]["text"] == before["stdout"]["text"] == "one\ntwo\n"
    assert again["steps"][1]["timeout"] == 50.0


def test_a_repeat_with_the_same_key_and_steps_starts_nothing(service: Service) -> None:
    key = {"Idempotency-Key": "steps"}
    body = {"steps": [{"command": "true"}, {"source": "true"}]}

    first, second = (service.post("/v1/jobs", body, headers=key) for _ in range(2))
    other = service.post("/v1/jobs", {"steps": body["steps"][::-1]}, headers=key)

    assert first.json()["id"] == second.json()["id"]
    assert second.headers["Idempotency-Replayed"] == "true"
    check_problem(other, 422)


def test_jobs_are_found_by_the_command_of_any_step(service: Service) -> None:
    job = service.run(steps=[{"command": "true first-needle"}, {"argv": ["true", "second-needle"]}])

    for words in ("first-needle", "true second-needle"):
        assert [found["id"] for found in service.get(f"/v1/jobs?q={words}").json()["jobs"]] == [job["id"]]


def test_while_a_step_runs_the_others_wait(service: Service) -> None:
    job = service.submit(steps=[{"argv": ["true"]}, {"argv": ["sleep", "300"]}, {"argv": ["true"]}])
    path = f"/v1/jobs/{job['id']}"

    def states() -> list[str]:
        return [step["state"] for step in check_job(service.get(path).json())["steps"]]

    assert eventually(lambda: states() == ["succeeded", "running", "queued"])
    service.post(f"{path}/cancel", {"grace": 0})
    ended = check_job(service.wait(job["id"]))
    assert [step["state"] for step in ended["steps"]] == ["succeeded", "canceled", "skipped"]


def test_a_job_that_is_canceled_in_the_queue_skips_all_its_steps(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    service.submit(argv=["sleep", "300"])
    job = service.submit(steps=[{"argv": ["true"]}, {"argv": ["true"]}])

    ended = check_job(service.post(f"/v1/jobs/{job['id']}/cancel").json())

    assert [step["state"] for step in ended["steps"]] == ["skipped", "skipped"]


def test_the_command_line_shows_the_steps(service: Service) -> None:
    job = service.run(steps=[{"command": "echo one"}, {"argv": ["false"]}, {"argv": ["true"], "name": "last"}])

    shown, _ = run(service, "status", job["id"])
    listed, _ = run(service, "list", "-q", "echo one; false")

    assert b"step 0:      succeeded    echo one" in shown
    assert b"step 1:      failed       false" in shown
    assert b"step 2:      skipped      last" in shown
    assert b"echo one; false; true" in listed


def test_steps_go_on_though_everything_was_killed(start_service: StartService) -> None:
    service = start_service()
    one = "echo $JOBRUNNER_JOB_STEP >> runs"
    steps = [{"command": one}, {"command": f"{one}; while [ ! -e go ]; do sleep 0.02; done"}, {"command": one}]
    job = service.submit(steps=steps)
    directory = service.data_dir / "jobs" / job["id"][-2:] / job["id"]
    assert eventually(lambda: len(_lines(directory)) == 2)
    assert eventually(lambda: b'"pid"' in (directory / "process.json").read_bytes())

    mine = f"JOBRUNNER_STORAGE_DATA_DIR={service.data_dir}".encode()
    for pid in [service.pid, *(pid for pid in list_pids() if mine in read_environ(pid))]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert service.process is not None
    service.process.wait(10)
    service.start()
    (directory / "scratch" / "go").touch()

    ended = check_job(service.wait(job["id"]))
    # Its second step has outlived its parents: how it ended is told by the kernel (Linux 6.15) or not at all.
    assert (ended["state"], _lines(directory)) in (("succeeded", ["0", "1", "2"]), ("lost", ["0", "1"]))


def _lines(directory: Path) -> list[str]:
    path = directory / "scratch" / "runs"
    return path.read_text().split() if path.exists() else []
