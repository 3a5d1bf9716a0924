"""Jobs over HTTP: the ways to submit them, what they are given, what is told about them."""

import base64
import hashlib
from datetime import datetime

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.factories import is_dead
from tests.service import Service, eventually


def test_a_job_runs_and_its_end_is_told(service: Service) -> None:
    job = check_job(service.run(command="echo out; echo err >&2; exit 3"))

    assert (job["state"], job["exit_code"], job["signal"]) == ("failed", 3, None)
    assert job["stdout"]["text"] == "out\n"
    assert job["stderr"]["text"] == "err\n"
    assert (job["stdout"]["bytes"], job["stderr"]["bytes"]) == (4, 4)
    assert (job["owner"], job["api"]) == ("admin", "v1")


def test_a_submission_is_answered_with_the_queued_job_and_its_place(service: Service) -> None:
    response = service.post("/v1/jobs", {"argv": ["true"]})

    job = check_job(response.json())
    assert response.status_code == 202
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Content-Type"] == "application/json"
    assert service.get(response.headers["Location"]).json()["id"] == job["id"]


def test_a_process_that_a_signal_ended_has_a_signal_and_no_exit_code(service: Service) -> None:
    job = check_job(service.run(command="kill -9 $$"))

    assert (job["state"], job["exit_code"], job["signal"]) == ("failed", None, "SIGKILL")


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 137, 255])
def test_every_exit_code_is_told_as_it_was(service: Service, code: int) -> None:
    job = service.run(command=f"exit {code}")

    assert (job["exit_code"], job["signal"]) == (code, None)
    assert job["state"] == ("succeeded" if code == 0 else "failed")


# ── what is run ──


def test_an_argv_is_executed_without_a_shell(service: Service) -> None:
    words = ["*", "$HOME", "a b", "", "'", '"', "\n", "ä", "-n"]

    job = check_job(service.run(argv=["printf", "%s|", *words]))

    assert job["stdout"]["text"] == "|".join(words) + "|"
    assert job["steps"][0]["kind"] == "argv"
    assert job["steps"][0]["argv"] == ["printf", "%s|", *words]


def test_a_command_is_run_by_the_shell(service: Service) -> None:
    job = check_job(service.run(command="echo $((1 + 2)) | tr 3 4"))

    assert job["stdout"]["text"] == "4\n"
    assert job["steps"][0]["argv"] == ["/bin/sh", "-c", "echo $((1 + 2)) | tr 3 4"]


def test_a_script_of_the_catalogue_is_run_with_its_arguments(service: Service) -> None:
    directory = service.data_dir / "scripts" / "deep"
    directory.mkdir()
    script = directory / "greet"
    script.write_text('#!/bin/sh\n# Greets.\n#\n# Everyone.\necho "hello, $1 and $2"\n')
    script.chmod(0o700)

    listed = {entry["name"]: entry for entry in service.get("/v1/scripts").json()["scripts"]}
    job = check_job(service.run(script="deep/greet", args=["you", "* $me"]))

    assert listed["deep/greet"]["description"] == "Greets.\n\nEveryone."
    assert listed["deep/greet"]["bytes"] == script.stat().st_size
    assert job["stdout"]["text"] == "hello, you and * $me\n"
    assert job["steps"][0]["kind"] == "script"


def test_a_script_that_may_not_be_executed_fails_the_job(service: Service) -> None:
    (service.data_dir / "scripts" / "plain.txt").write_text("no program")

    job = check_job(service.run(script="plain.txt"))

    assert (job["state"], job["error"]["code"]) == ("failed", "permission-denied")


def test_a_source_without_interpreter_goes_to_the_shell(service: Service) -> None:
    job = check_job(service.run(source='echo "from $0"\nexit 4'))

    assert job["stdout"]["text"] == f"from {job['steps'][0]['argv'][-1]}\n"
    assert job["exit_code"] == 4


def test_a_source_goes_to_the_interpreter_it_names(service: Service) -> None:
    job = check_job(service.run(source="#!/usr/bin/env python3\nprint(6 * 7)\n"))

    assert job["stdout"]["text"] == "42\n"


# ── what it is given ──


def test_a_job_gets_its_environment_and_not_that_of_the_service(service: Service) -> None:
    job = check_job(service.run(command="env -0", env={"GREETING": "hällo\nworld", "PATH": "/usr/bin:/bin:/x"}))

    seen = dict(entry.split("=", 1) for entry in job["stdout"]["text"].split("\0") if entry)
    assert seen["GREETING"] == "hällo\nworld"
    assert seen["PATH"] == "/usr/bin:/bin:/x"
    assert seen["JOBRUNNER_JOB_ID"] == job["id"]
    assert seen["JOBRUNNER_JOB_NUMBER"] == str(job["number"])
    assert not [name for name in seen if name.startswith("JOBRUNNER_") and not name.startswith("JOBRUNNER_JOB_")]
    assert "PYTHONPATH" not in seen


def test_values_of_the_environment_are_shown_nowhere(service: Service) -> None:
    secret = "5e57a1f0-very-secret"

    job = service.run(argv=["true"], env={"TOKEN": secret}, name="keeps a secret")

    assert job["env_names"] == ["TOKEN"]
    for path in (f"/v1/jobs/{job['id']}", "/v1/jobs?limit=5", "/v1/jobs?q=secret"):
        assert secret not in service.get(path).text
    assert secret not in service.post(f"/v1/jobs/{job['id']}/rerun").text
    assert secret not in service.log.read_text()


@pytest.mark.parametrize(("cwd", "ends_with"), [(None, "/scratch"), (".", "/scratch"), ("/", "/"), ("/usr/", "/usr")])
def test_a_job_runs_where_it_was_told_to(service: Service, cwd: str | None, ends_with: str) -> None:
    job = check_job(service.run(argv=["pwd", "-P"], **({} if cwd is None else {"cwd": cwd})))

    assert job["stdout"]["text"].removesuffix("\n").endswith(ends_with)
    assert job["steps"][0]["cwd"] == cwd


def test_stdin_is_fed_to_the_job(service: Service) -> None:
    job = check_job(service.run(argv=["cat"], stdin="hällo\n"))

    assert job["stdout"]["text"] == "hällo\n"
    assert job["stdin"] == {"bytes": 7}


def test_stdin_may_be_any_bytes(service: Service) -> None:
    content = bytes(range(256)) * 5000

    job = check_job(service.run(argv=["sha256sum"], stdin={"base64": base64.b64encode(content).decode()}))

    assert job["stdout"]["text"].split()[0] == hashlib.sha256(content).hexdigest()


def test_without_stdin_a_job_reads_nothing(service: Service) -> None:
    assert service.run(argv=["wc", "-c"])["stdout"]["text"] == "0\n"


def test_files_lie_in_the_working_directory(service: Service) -> None:
    files = {"a b.txt": "text ä", "-rf": "", "bytes": {"base64": base64.b64encode(b"\xff\0").decode()}}

    job = check_job(service.run(command="ls -1; cat 'a b.txt' bytes | od -An -tx1", files=files))

    names, _, dump = job["stdout"]["text"].rpartition("bytes\n")
    assert sorted((names + "bytes").split("\n")) == ["-rf", "a b.txt", "bytes"]
    assert bytes.fromhex(dump) == "text ä".encode() + b"\xff\0"
    assert job["files"] == [
        {"name": "a b.txt", "bytes": 7},
        {"name": "-rf", "bytes": 0},
        {"name": "bytes", "bytes": 2},
    ]


def test_both_streams_as_one_keep_their_order(service: Service) -> None:
    loop = "for i in $(seq 200); do echo o$i; echo e$i >&2; done"

    job = check_job(service.run(command=loop, stderr="stdout"))

    assert job["stdout"]["text"] == "".join(f"o{number}\ne{number}\n" for number in range(1, 201))
    assert job["stderr"]["bytes"] == 0


def test_a_job_beyond_its_timeout_is_ended_with_its_children(service: Service) -> None:
    job = check_job(service.run(command="sleep 60 & sleep 61 & echo $! $$; wait", timeout=0.3, grace=5))

    assert job["state"] == "timed_out"
    assert (job["signal"], job["exit_code"]) == ("SIGTERM", None)
    assert 0.3 <= job["duration"] < 4
    assert seconds_between(job["started_at"], job["deadline_at"]) == pytest.approx(0.3)
    assert eventually(lambda: all(is_dead(int(pid)) for pid in job["stdout"]["text"].split()))


def test_a_job_that_ignores_its_timeout_is_killed_after_the_grace_period(service: Service) -> None:
    job = check_job(service.run(command="trap '' TERM; while :; do sleep 0.05; done", timeout=0.3, grace=0.5))

    assert (job["state"], job["signal"]) == ("timed_out", "SIGKILL")
    assert 0.8 <= job["duration"] < 4


def test_a_job_may_tidy_up_within_the_grace_period(service: Service) -> None:
    job = check_job(service.run(command="trap 'echo bye; exit 9' TERM; while :; do sleep 0.05; done", timeout=0.3))

    assert (job["state"], job["exit_code"], job["stdout"]["text"]) == ("timed_out", 9, "bye\n")


def test_name_priority_labels_and_times_are_told(service: Service) -> None:
    labels = {"team": "ops", "ünï": "😀 "}

    job = check_job(
        service.run(argv=["true"], name="nightly ä", priority="low", labels=labels, timeout=12.5, grace=0.25)
    )

    assert (job["name"], job["priority"], job["labels"]) == ("nightly ä", "low", labels)
    assert (job["timeout"], job["grace"]) == (12.5, 0.25)
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["deadline_at"]
    assert job["duration"] == pytest.approx(seconds_between(job["started_at"], job["finished_at"]), abs=1e-6)


def test_jobs_run_by_priority_and_first_in_first_out_within_one(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    gate, order = service.data_dir / "gate", service.data_dir / "order"
    service.submit(command=f"while ! test -e {gate}; do sleep 0.02; done")
    priorities = ["low", "normal", "high", "normal", "low", "high", "normal"]
    jobs = [
        service.submit(command=f"echo {number} >> {order}", priority=priority)
        for number, priority in enumerate(priorities)
    ]
    assert {check_job(service.get(f"/v1/jobs/{job['id']}").json())["state"] for job in jobs} == {"queued"}

    gate.touch()
    for job in jobs:
        service.wait(job["id"])

    assert order.read_text().split() == ["2", "5", "1", "3", "6", "0", "4"]


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
