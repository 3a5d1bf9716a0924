"""The command line about the service itself: serve, db, config, token."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.commands import DONE, FAILED, NOT_FOUND, REFUSED, USAGE, jobrunner
from tests.service import ROOT, Service, clean_environment, eventually


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobrunner", *words],
        cwd=ROOT,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


BAD_CONFIG = """
[server]
port = 99999
prot = 80
[executor]
max_running = none
[storages]
data_dir = /x
"""


@pytest.mark.parametrize("command", [("serve",), ("config", "check"), ("gc",)])
def test_every_problem_of_the_settings_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    config = tmp_path / "bad.ini"
    config.write_text(BAD_CONFIG)

    ended = run("--config", str(config), *command, JOBRUNNER_GC_KEEP="many", JOBRUNNER_STORAGE_DATA_DIR=str(tmp_path))

    assert ended.returncode == USAGE
    assert ended.stdout == ""
    for words in ("[server] port", "[server] prot", "max_running", "[storages]", "did you mean storage", "GC_KEEP"):
        assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_settings_that_contradict_one_another_are_refused() -> None:
    ended = run("config", "check", JOBRUNNER_EXECUTOR_DEFAULT_TIMEOUT="2d")

    assert ended.returncode == USAGE
    assert "default_timeout is larger than max_timeout" in ended.stderr


@pytest.mark.parametrize("command", [("serve",), ("config", "check"), ("executor",)])
def test_what_jobs_can_not_be_here_is_refused_before_anything_is_started(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    settings = {"JOBRUNNER_POLICY_RUN_AS": "no-such-user", "JOBRUNNER_POLICY_RLIMIT_NOFILE": "999999999"}

    ended = run(*command, JOBRUNNER_STORAGE_DATA_DIR=str(tmp_path / "data"), **settings)

    assert ended.returncode == USAGE
    assert "[policy] run_as = no-such-user: " in ended.stderr
    assert "[policy] rlimit_nofile = 999999999: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "data" / "jobrunner.db").exists()


@pytest.mark.parametrize("text", ["[server", "key = 1\n", "[server]\nport = 1\nport = 2\n", "[server]\n[server]\n"])
def test_a_file_that_is_no_ini_file_is_refused(tmp_path: Path, text: str) -> None:
    config = tmp_path / "bad.ini"
    config.write_text(text)

    ended = run("--config", str(config), "config", "check")

    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert "bad.ini" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for how in (["--config", str(tmp_path / "absent.ini"), "config", "check"], ["config", "check"]):
        ended = run(*how, JOBRUNNER_CONFIG=str(tmp_path / "absent.ini"))
        assert ended.returncode == USAGE
        assert "absent.ini" in ended.stderr
        assert "No such file" in ended.stderr


def test_the_settings_that_are_shown_are_settings_again(tmp_path: Path) -> None:
    config = tmp_path / "some.ini"
    config.write_text(
        "[server]\nport = 1234\nallowed_hosts = a.example, b.example\nmax_wait = 1.5\n"
        "[storage]\nmin_free_bytes = 1K\n[environment]\nPath_With = 50% ; comment\nB = #x\n[policy]\nallow_shell = no\n"
    )
    first = run("--config", str(config), "config", "show")
    again = tmp_path / "again.ini"
    again.write_text(first.stdout)

    second = run("--config", str(again), "config", "show")

    assert (first.returncode, second.returncode) == (DONE, DONE)
    assert second.stdout == first.stdout
    as_json = json.loads(run("--config", str(again), "config", "show", "--json").stdout)
    assert as_json["server"]["port"] == "1234"
    assert as_json["server"]["allowed_hosts"] == "a.example, b.example"
    assert as_json["storage"]["min_free_bytes"] == "1024"
    assert as_json["environment"] == {"Path_With": "50%", "B": "#x"}
    assert (run("--config", str(config), "config", "check").stdout, first.stderr) == ("", "")


def test_an_unknown_name_in_the_environment_is_a_warning() -> None:
    ended = run("config", "check", JOBRUNNER_SERVER_PROT="80")

    assert ended.returncode == DONE
    assert "JOBRUNNER_SERVER_PROT" in ended.stderr


def test_a_program_can_read_what_a_check_of_the_settings_has_found(tmp_path: Path) -> None:
    good = run("config", "check", "--json", JOBRUNNER_SERVER_PROT="80")
    bad = tmp_path / "bad.ini"
    bad.write_text(BAD_CONFIG)
    wrong = run("--config", str(bad), "config", "check", "--json")
    impossible = run("config", "check", "--json", JOBRUNNER_POLICY_RUN_AS="nobody-of-this-name")
    found = [json.loads(each.stdout) for each in (good, wrong, impossible)]

    assert [each.returncode for each in (good, wrong, impossible)] == [DONE, USAGE, USAGE]
    assert [(len(each["problems"]), len(each["warnings"])) for each in found] == [(0, 1), (4, 0), (1, 0)]
    assert wrong.stderr == "".join(f"jobrunner: {problem}\n" for problem in found[1]["problems"])


def test_help_and_version_are_there() -> None:
    for words in (["--help"], ["submit", "--help"], ["token", "-h"]):
        ended = run(*words)
        assert (ended.returncode, ended.stderr) == (DONE, "")
        assert "Usage:" in ended.stdout
    assert run("--version").stdout.strip()
    assert run().returncode == USAGE


# ── serve ──


def test_a_port_that_is_in_use_stops_the_start_with_a_clear_message(tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        ended = run("serve", JOBRUNNER_SERVER_PORT=str(port), JOBRUNNER_STORAGE_DATA_DIR=str(tmp_path / "data"))

    assert ended.returncode not in {DONE, USAGE}
    assert "in use" in ended.stderr + ended.stdout
    assert str(port) in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_a_data_directory_that_can_not_be_made_stops_the_start_with_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    ended = run("serve", JOBRUNNER_SERVER_PORT="0", JOBRUNNER_STORAGE_DATA_DIR=str(tmp_path / "file" / "data"))

    assert ended.returncode not in {DONE, USAGE}
    assert "Not a directory" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_told_to_stop_ends_in_order_and_leaves_its_jobs(
    start_service: StartService, number: signal.Signals
) -> None:
    service = start_service()
    gate = service.data_dir / "gate"
    job = service.submit(command=f"while ! test -e {gate}; do sleep 0.05; done; exit 9")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["state"] == "running")

    assert service.stop(number, within=10) == 0
    again = start_service()
    # Ready is not yet watching: until it is, the end of a job could be seen by nobody.
    assert eventually(lambda: "adopted process" in again.log.read_text())
    gate.touch()

    assert again.wait(job["id"])["exit_code"] == 9


def test_a_service_that_kills_its_jobs_when_it_stops_says_so(start_service: StartService) -> None:
    service = start_service({"executor": {"on_stop": "kill"}})
    job = service.submit(argv=["sleep", "60"])
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["state"] == "running")

    assert service.stop(within=10) == 0

    document = json.loads(jobrunner(service, "status", job["id"], "--json").stdout)
    assert (document["state"], document["signal"], document["cancel"]["by"]) == ("canceled", "SIGTERM", "service")


def test_a_unix_socket_is_listened_on(start_service: StartService, tmp_path: Path) -> None:
    path = tmp_path / "s"
    service = Service(tmp_path / "data", {"server": {"unix_socket": str(path)}})
    with service.log.open("wb") as log:
        process = subprocess.Popen(service.command, cwd=ROOT, env=service.environment, stdout=log, stderr=log)
    try:

        def answers() -> bool:
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.settimeout(5)
                try:
                    client.connect(str(path))
                    client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                    return b" 200 OK" in client.recv(100)
                except OSError:  # not yet, or not in time
                    return False

        assert eventually(answers, within=30), service.log.read_text()
    finally:
        process.terminate()
        assert process.wait(20) == 0
        service.http.close()


# ── token, db ──


def test_a_token_works_with_the_server_down(start_service: StartService) -> None:
    service = start_service()
    service.stop()

    secret = jobrunner(service, "token", "create", "nightly", "--scope", "admin").stdout.decode().strip()
    names = [line.split("\t")[0] for line in jobrunner(service, "token", "list").stdout.decode().splitlines()]
    jobrunner(service, "token", "create", "nightly", "--scope", "admin", code=REFUSED)
    jobrunner(service, "token", "create", "", "--scope", "admin", code=USAGE)
    jobrunner(service, "token", "create", "a\nb", "--scope", "admin", code=USAGE)
    again = start_service()
    seen = again.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
    jobrunner(service, "token", "revoke", "nightly")
    jobrunner(service, "token", "revoke", "nightly", code=NOT_FOUND)

    assert seen.status_code == 200
    assert names == ["admin", "nightly"]


def test_a_backup_is_whole_while_jobs_run_and_can_be_restored(start_service: StartService, tmp_path: Path) -> None:
    service = start_service()
    before = [service.run(command=f"exit {number}") for number in range(3)]
    busy = [service.submit(command="sleep 0.1") for _ in range(30)]
    target = tmp_path / "backup.db"

    assert jobrunner(service, "db", "backup", str(target)).stdout == b""
    jobrunner(service, "db", "backup", str(target), code=FAILED)
    jobrunner(service, "db", "backup", str(tmp_path / "absent" / "x"), code=FAILED)
    for job in busy:
        service.wait(job["id"])
    assert service.stop() == 0

    assert target.stat().st_mode & 0o077 == 0  # it holds what jobs were given
    with closing(sqlite3.connect(target)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    restored = tmp_path / "restored"
    restored.mkdir()
    target.rename(restored / "jobrunner.db")
    shutil.copy(service.data_dir / "admin.token", restored)
    again = start_service(data_dir=restored)
    for job in before:
        assert again.get(f"/v1/jobs/{job['id']}").json()["exit_code"] == job["exit_code"]
    assert again.run(command="echo on")["stdout"]["text"] == "on\n"


def test_the_schema_is_told_and_brought_up_to_date(tmp_path: Path) -> None:
    where = {"JOBRUNNER_STORAGE_DATA_DIR": str(tmp_path / "data")}

    assert run("db", "current", **where).stdout.startswith("none")
    head = run("db", "upgrade", **where)
    current = run("db", "current", **where)
    again = run("db", "upgrade", **where)

    assert (head.returncode, current.returncode, again.returncode) == (DONE, DONE, DONE)
    assert current.stdout.split()[0] == head.stdout.strip() == again.stdout.strip()


def test_a_program_can_read_what_was_done_to_the_data(tmp_path: Path) -> None:
    where = {"JOBRUNNER_STORAGE_DATA_DIR": str(tmp_path / "data")}

    def ask(*words: str) -> Any:
        return json.loads(run(*words, "--json", **where).stdout)

    none = ask("db", "current")
    head = none["known"]
    upgraded, current, backup = ask("db", "upgrade"), ask("db", "current"), ask("db", "backup", str(tmp_path / "copy"))
    drains = [ask("drain"), ask("drain", "--undo")]

    assert none["schema"] is None
    assert upgraded == current == {"schema": head, "known": head}
    assert backup == {"file": str(tmp_path / "copy"), "bytes": (tmp_path / "copy").stat().st_size}
    assert drains == [{"draining": True}, {"draining": False}]
    assert ask("token", "revoke", "admin") == {"revoked": "admin"}


def test_a_database_of_a_later_version_is_refused(start_service: StartService, tmp_path: Path) -> None:
    where = {"JOBRUNNER_STORAGE_DATA_DIR": str(tmp_path / "data")}
    run("db", "upgrade", **where)
    with closing(sqlite3.connect(tmp_path / "data" / "jobrunner.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()

    for command in (["serve"], ["list"], ["gc"], ["db", "upgrade"]):
        ended = run(*command, JOBRUNNER_SERVER_PORT="0", **where)
        assert ended.returncode == FAILED, ended.stderr
        assert "9999" in ended.stderr
        assert "Traceback" not in ended.stderr
