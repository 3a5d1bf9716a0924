"""The command line about jobs, against a running service and without one: what is printed, and the exit codes."""

import json
import os
import pty
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.e2e.commands import FAILED, NOT_FOUND, REFUSED, UNREACHABLE, USAGE, finish, jobrunner, remote, started
from tests.service import ROOT, Service


@pytest.fixture
def stopped(start_service: StartService) -> Service:
    """A service that has run a job named ``past``, and is down."""
    service = start_service()
    service.run(command="echo out; exit 3", name="past", labels={"a": "b"})
    assert service.stop() == 0
    return service


# ── jobs ──


def test_a_job_is_submitted_watched_and_read(service: Service, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\xff\0")
    words = ["submit", "--name", "by hand", "--label", "a:b:c", "--env", "X=y=z", "--file", str(tmp_path / "data.bin")]
    words += ["--callback-url", "http://127.0.0.1:9/told"]
    words += [
        "--stdin",
        "-",
        "--timeout",
        "60",
        "--priority",
        "high",
        "--",
        "sh",
        "-c",
        'cat data.bin -; echo "$X" >&2',
    ]

    job = jobrunner(service, *words, stdin=b"from stdin").stdout.decode().strip()
    document = check_job(service.wait(job))

    assert (document["name"], document["labels"], document["priority"]) == ("by hand", {"a": "b:c"}, "high")
    assert document["callback_url"] == "http://127.0.0.1:9/told"
    assert jobrunner(service, "logs", job).stdout == b"\xff\0from stdin"
    assert jobrunner(service, "logs", "--stderr", job).stdout == b"y=z\n"
    assert jobrunner(service, "logs", str(document["number"])).stdout == b"\xff\0from stdin"
    shown = json.loads(jobrunner(service, "status", job, "--json", environment=remote(service)).stdout)
    assert shown == service.get(f"/v1/jobs/{job}").json()
    assert b"succeeded" in jobrunner(service, "status", job, environment=remote(service)).stdout


def test_all_ways_to_say_what_to_run(service: Service, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("#!/bin/sh\necho source\n")
    script = service.data_dir / "scripts" / "echo-args"
    script.write_text('#!/bin/sh\necho "$@"\n')
    script.chmod(0o755)

    for words, printed in (
        (["--shell", "echo $((1 + 1))"], b"2\n"),
        (["--source", str(tmp_path / "text")], b"source\n"),
        (["--script", "echo-args", "--", "-x", "b c"], b"-x b c\n"),
        (["echo", "-n", "--name"], b"--name"),
    ):
        job = json.loads(jobrunner(service, "submit", "--json", *words).stdout)
        service.wait(check_job(job)["id"])
        assert jobrunner(service, "logs", job["id"]).stdout == printed


def test_a_job_is_canceled(service: Service) -> None:
    job = jobrunner(service, "submit", "sleep", "60").stdout.decode().strip()

    assert jobrunner(service, "cancel", job, "--grace", "1", "--signal", "INT").stdout == b""
    ended = service.wait(job)
    assert (ended["state"], ended["signal"]) in {("canceled", "SIGINT"), ("canceled", None)}
    assert json.loads(jobrunner(service, "cancel", job, "--json").stdout)["state"] == "canceled"


def test_what_is_wrong_with_a_command_is_a_usage_error(service: Service) -> None:
    for words in (
        ["submit"],
        ["submit", "--shell", "true", "true"],
        ["submit", "--label", "x", "true"],
        ["submit", "--script", "absent"],
        ["submit", "--file", "/absent", "true"],
        ["submit", "--unknown", "true"],
        ["gc", "--max-age", "x"],
    ):
        jobrunner(service, *words, code=USAGE)


def test_a_job_that_does_not_exist_is_not_found(service: Service) -> None:
    for words in (["status", "999999"], ["cancel", "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11"], ["logs", ".."]):
        jobrunner(service, *words, code=NOT_FOUND, environment=remote(service))
    jobrunner(service, "status", "999999", code=NOT_FOUND)
    jobrunner(service, "token", "revoke", "absent", code=NOT_FOUND)


def test_what_can_not_be_told_has_its_exit_code(service: Service) -> None:
    with open("/dev/full", "wb") as full:
        for words, code in ((["status", "999999"], NOT_FOUND), (["logs", "999999"], NOT_FOUND)):
            with started(*words, environment=service.environment, stderr=full) as command:
                finish(command, code)


def test_a_wrong_token_is_refused(service: Service) -> None:
    for words in (["submit", "true"], ["list"], ["logs", "1"]):
        jobrunner(service, *words, code=REFUSED, environment=remote(service) | {"JOBRUNNER_TOKEN": "wrong"})


def test_status_and_list_work_with_the_server_down(stopped: Service) -> None:
    (listed,) = json.loads(jobrunner(stopped, "list", "--json").stdout)
    shown = json.loads(jobrunner(stopped, "status", "1", "--json").stdout)

    assert check_job(listed) == check_job(shown)
    assert (shown["name"], shown["exit_code"], shown["stdout"]["bytes"]) == ("past", 3, 4)
    assert json.loads(jobrunner(stopped, "list", "--json", "--label", "a:c").stdout) == []
    assert len(jobrunner(stopped, "list", "--name", "past", "--state", "failed", "-q", "OUT").stdout.splitlines()) == 1
    fields = jobrunner(stopped, "list").stdout.decode().rstrip("\n").split("\t")
    assert fields[:4] == ["1", shown["id"], "failed", "3"]
    assert b"exit code:" in jobrunner(stopped, "status", shown["id"]).stdout
    jobrunner(stopped, "logs", "1", code=UNREACHABLE)
    jobrunner(stopped, "submit", "true", code=UNREACHABLE)


def test_a_list_is_the_same_from_the_server_and_from_the_database(service: Service) -> None:
    service.run(argv=["true"], name="both ways", labels={"k": "v"})
    words = [
        "list",
        "--json",
        "--name",
        "both ways",
        "--label",
        "k:v",
        "--state",
        "ended",
        "-q",
        "true",
        "--limit",
        "5",
    ]

    assert jobrunner(service, *words).stdout == jobrunner(service, *words, environment=remote(service)).stdout


def test_a_list_goes_on_until_it_has_what_was_asked_for(start_service: StartService) -> None:
    """A page of a rare combination ends early: it has looked at 10,000 jobs."""
    service = start_service()
    rare = [service.run(argv=["true"], name="rare", labels={"k": "v"})["number"]]
    _add_copies(service, 10_050)
    rare += [service.run(argv=["true"], name="rare", labels={"k": "v"})["number"] for _ in range(3)]
    words = ["list", "--json", "--label", "k:v", "-q", "rare"]

    for limit, wanted in ((50, rare[::-1]), (2, rare[:1:-1]), (4, rare[::-1])):
        for environment in ({}, remote(service)):
            listed = json.loads(jobrunner(service, *words, "--limit", str(limit), environment=environment).stdout)
            assert [job["number"] for job in listed] == wanted


def _add_copies(service: Service, number: int) -> None:
    """Add jobs with the label ``k:v`` to a running service, by copying the first one."""
    with closing(sqlite3.connect(service.data_dir / "jobrunner.db", timeout=30)) as database, database:
        columns = [
            name for _, name, *_ in database.execute("PRAGMA table_info(job)") if name not in {"number", "id", "name"}
        ]
        some = ", ".join(columns)
        database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            f"INSERT INTO job (id, name, {some}) "
            f"SELECT printf('0192f0c4-5d3e-7c31-9d0e-%012d', i), 'copy', {some} FROM n, job WHERE number = 1",
            (number,),
        )
        database.execute(
            "INSERT INTO job_label (number, key, value) SELECT number, 'k', 'v' FROM job WHERE name = 'copy'"
        )


def test_too_many_labels_to_filter_by_are_refused(service: Service) -> None:
    words = ["list", *(word for n in range(33) for word in ("--label", f"k{n}:v"))]

    for environment in ({}, remote(service)):
        assert b"at most 32" in jobrunner(service, *words, code=USAGE, environment=environment).stderr
        jobrunner(service, "list", "--label", "k:a", "--label", "k:b", code=USAGE, environment=environment)


@pytest.mark.parametrize("words", [["list", "-q", "screen-breaker"], ["status", "{number}"]])
def test_a_command_can_not_steer_the_terminal(service: Service, words: list[str]) -> None:
    job = service.run(argv=["true", "screen-breaker\x1b[2J\x9b31m\x07"])

    printed = on_a_terminal(service, *(word.format(number=job["number"]) for word in words))

    assert "\x1b[2J" not in printed
    assert not {"\x9b", "\x07"} & set(printed)
    assert "\\x1b[2J" in printed.replace("\r\n", "")


def on_a_terminal(service: Service, *words: str) -> str:
    """Run a command whose output is a terminal; return what it has written there."""
    ours, its = pty.openpty()
    try:
        command = [sys.executable, "-m", "jobrunner", *words]
        environment = {**service.environment, "COLUMNS": "300", "TERM": "xterm"}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=its, check=True, timeout=60)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(its)


def test_without_a_data_directory_there_is_nothing_to_look_at(service: Service, tmp_path: Path) -> None:
    for words in (["list"], ["gc"], ["db", "backup", str(tmp_path / "x")]):
        jobrunner(service, *words, code=FAILED, environment={"JOBRUNNER_STORAGE_DATA_DIR": str(tmp_path / "absent")})
    assert not (tmp_path / "absent").exists()


# ── gc ──


def test_gc_is_silent_unless_asked(start_service: StartService) -> None:
    service = start_service()
    jobs = [service.run(argv=["true"]) for _ in range(4)]

    assert jobrunner(service, "gc").stdout == b""
    assert jobrunner(service, "gc", "-v").stdout.startswith(b"purged 0 jobs")
    listed = jobrunner(service, "gc", "--keep", "1", "--dry-run").stdout.decode().splitlines()
    assert [line.split("\t")[:3] for line in listed] == [[str(job["number"]), job["id"], "keep"] for job in jobs[2::-1]]
    assert len(service.get("/v1/jobs").json()["jobs"]) == 4
    would = json.loads(jobrunner(service, "gc", "--keep", "1", "--dry-run", "--json").stdout)
    assert (would["dry_run"], would["purged"], would["kept"]) == (True, 3, 1)
    assert jobrunner(service, "gc", "--keep", "3").stdout == b""
    assert len(service.get("/v1/jobs").json()["jobs"]) == 3
    report = json.loads(jobrunner(service, "gc", "--max-age", "0", "--json").stdout)
    assert (report["dry_run"], report["purged"], report["kept"]) == (False, 3, 0)
    assert service.get("/v1/jobs").json()["jobs"] == []
    assert list(service.data_dir.glob("jobs/*/*")) == []


def test_gc_names_the_directories_that_it_can_not_remove_and_does_the_rest(start_service: StartService) -> None:
    service = start_service()
    stuck, other = (service.run(argv=["true"]) for _ in range(2))
    shelf = service.data_dir / "jobs" / stuck["id"][-2:]
    shelf.rename(shelf.with_name("elsewhere"))
    shelf.symlink_to(shelf.name)

    ended = jobrunner(service, "gc", "--keep", "0", code=FAILED)

    assert stuck["id"].encode() in ended.stderr
    assert ended.stdout == b""
    assert service.get("/v1/jobs").json()["jobs"] == []
    if other["id"][-2:] != stuck["id"][-2:]:
        assert not list(service.data_dir.glob(f"jobs/*/{other['id']}"))
    assert json.loads(jobrunner(service, "gc", "--json", code=FAILED).stdout)["failed"] == 1


def test_a_second_gc_leaves_the_work_to_the_first(service: Service) -> None:
    with subprocess.Popen(
        ["flock", str(service.data_dir / "gc.lock"), "cat"], stdin=subprocess.PIPE, umask=0o077
    ) as first:
        try:
            # It has the lock once another can't get it.
            while (
                subprocess.run(["flock", "-n", str(service.data_dir / "gc.lock"), "true"], check=False).returncode == 0
            ):
                assert first.poll() is None
            assert jobrunner(service, "gc", "--keep", "0").stdout == b""
            assert b"another gc" in jobrunner(service, "gc", "--keep", "0", "-v").stdout
        finally:
            assert first.stdin is not None
            first.stdin.close()


def test_gc_works_with_the_server_down(stopped: Service) -> None:
    assert json.loads(jobrunner(stopped, "gc", "--max-bytes", "0", "--json").stdout)["purged"] == 1
    assert json.loads(jobrunner(stopped, "list", "--json").stdout) == []
