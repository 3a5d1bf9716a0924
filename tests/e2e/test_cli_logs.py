"""``jobrunner logs``, ``wait``, and the small commands about one job."""

import json

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.e2e.commands import (
    BROKEN_PIPE,
    CANCELED,
    DONE,
    NO_SUCH_COMMAND,
    NOT_FOUND,
    REFUSED,
    TIMED_OUT,
    UNREACHABLE,
    USAGE,
    answering,
    at,
    finish,
    http,
    run,
    started,
)
from tests.e2e.test_follow import step, until
from tests.service import Service, eventually

# ── logs ──


def test_logs_follow_a_job_to_its_end(service: Service) -> None:
    job = service.submit(command=f"echo one; echo err >&2; {until('go')}; echo two; exit 3")

    with started("logs", "-f", job["id"], environment=at(service)) as command:
        with started("logs", "--follow", "--stderr", str(job["number"]), environment=at(service)) as other:
            assert command.stdout
            assert command.stdout.readline() == b"one\n"
            assert other.stdout
            assert other.stdout.readline() == b"err\n"
            step(service, job, "go")
            assert finish(other) == (b"", b"")
        assert finish(command) == (b"two\n", b"")


def test_the_tail_of_logs(service: Service) -> None:
    job = service.submit(command=f"printf 0123456789; printf abc >&2; {until('go')}; printf xyz")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}/stdout").content == b"0123456789")

    assert run(service, "logs", "--tail", "4", job["id"])[0] == b"6789"
    assert run(service, "logs", "--tail", "0", job["id"])[0] == b""
    assert run(service, "logs", "--tail", "2", "--stderr", job["id"])[0] == b"bc"
    with started("logs", "-f", "--tail", "2", job["id"], environment=at(service)) as command:
        assert command.stdout
        assert command.stdout.read(2) == b"89"
        step(service, job, "go")
        assert finish(command)[0] == b"xyz"
    assert run(service, "logs", "-f", "--tail", "100", job["id"])[0] == b"0123456789xyz"
    run(service, "logs", "--tail", "-1", job["id"], code=USAGE)


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_who_reads_no_more_ends_the_logs_but_not_the_job(service: Service, follow: list[str]) -> None:
    job = service.submit(command="head -c 3000000 /dev/zero; exec sleep 60")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["stdout"]["bytes"] == 3_000_000)

    with started("logs", *follow, job["id"], environment=at(service)) as command:
        assert command.stdout
        assert command.stdout.read(1) == b"\0"
        command.stdout.close()
        command.stdout = None
        assert finish(command, BROKEN_PIPE)[1] == b""
    assert service.get(f"/v1/jobs/{job['id']}").json()["state"] == "running"
    service.post(f"/v1/jobs/{job['id']}/cancel")


def test_logs_that_break_off_are_no_success(service: Service) -> None:
    cut = http("200 OK", "0123456789").removesuffix(b"789")
    with answering(cut) as somebody:
        out, err = run(service, "logs", "1", code=UNREACHABLE, environment=at(service, somebody.port))
    assert b"0123456".startswith(out)
    assert err.count(b"\n") == 1


def test_logs_of_a_job_that_is_purged_meanwhile_end_with_that(start_service: StartService) -> None:
    service = start_service({"executor": {"on_stop": "kill"}})
    job = service.submit(command="echo one; exec sleep 60")
    with started("logs", "-f", job["id"], environment=at(service)) as command:
        assert command.stdout
        assert command.stdout.readline() == b"one\n"
        assert service.stop() == 0
        run(service, "gc", "--keep", "0")
        start_service(port=service.port)
        finish(command, NOT_FOUND)


# ── wait ──


def test_waiting_ends_as_the_job_did(service: Service) -> None:
    job = service.submit(command=f"{until('go')}; exit 9")
    with started("wait", job["id"], environment=at(service)) as command:
        step(service, job, "go")
        assert finish(command, 9) == (b"", b"")
    assert run(service, "wait", str(job["number"]), code=9) == (b"", b"")
    out, err = run(service, "wait", "--json", job["id"], code=9)
    assert (check_job(json.loads(out))["exit_code"], err) == (9, b"")


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [("true", DONE, b""), ("kill -9 $$", 137, b"SIGKILL"), ("exit 255", 255, b"")],
)
def test_waiting_for_what_has_ended_takes_no_time(service: Service, command: str, code: int, told: bytes) -> None:
    job = service.run(command=command)

    out, err = run(service, "wait", "--timeout", "0", job["id"], code=code)

    assert out == b""
    assert told in err


def test_waiting_tells_what_became_of_a_job_that_never_ran(service: Service) -> None:
    assert b"not-found" in run(service, "wait", service.run(argv=["no-such"])["id"], code=NO_SUCH_COMMAND)[1]
    job = service.submit(argv=["sleep", "60"])
    run(service, "cancel", job["id"])
    assert run(service, "wait", job["id"], code=CANCELED)[1] == b"jobrunner: canceled by admin\n"
    run(service, "wait", "999999", code=NOT_FOUND)


def test_waiting_can_have_an_end_before_the_jobs(service: Service) -> None:
    job = service.submit(argv=["sleep", "60"])
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["state"] == "running")

    out, err = run(service, "wait", "--timeout", "0.3s", "--json", "--patience", "1m", job["id"], code=TIMED_OUT)

    assert json.loads(out)["state"] == "running"
    assert err == b"jobrunner: is running after 0.3 s\n"
    run(service, "cancel", "--grace", "1m", job["id"])


@pytest.mark.parametrize("settings", [{"max_waiters": 0}, {"max_wait": 0}])
def test_a_service_that_lets_nobody_wait_is_asked_now_and_then(
    start_service: StartService, settings: dict[str, int]
) -> None:
    """For as long as it takes: that it is asked without waiting is no trouble which could last too long."""
    service = start_service({"server": settings})
    job = service.submit(command="sleep 4; exit 4")

    assert run(service, "wait", "--patience", "2", job["id"], code=4) == (b"", b"")


def test_waiting_goes_on_over_a_restart(start_service: StartService) -> None:
    service = start_service({"server": {"workers": 1}})
    job = service.submit(command=f"{until('go')}; exit 6")
    with started("wait", job["id"], environment=at(service)) as command:
        assert eventually(lambda: service.get("/v1/stats").json()["waiters"] == 1)
        assert service.stop() == 0
        step(start_service(port=service.port), job, "go")
        assert finish(command, 6) == (b"", b"")


# ── the small ones ──


def test_a_job_is_run_again(service: Service) -> None:
    job = service.run(command="echo again; exit 2", name="again")

    new = run(service, "rerun", "--idempotency-key", "again", str(job["number"]))[0].decode().strip()

    assert new != job["id"]
    assert run(service, "rerun", "--idempotency-key", "again", job["id"], "--json", code=USAGE)
    assert json.loads(run(service, "rerun", "--json", job["id"])[0])["name"] == "again"
    run(service, "wait", new, code=2)
    assert run(service, "logs", new)[0] == b"again\n"
    run(service, "rerun", "999999", code=NOT_FOUND)


def test_a_job_gets_a_signal(service: Service) -> None:
    job = service.submit(command="trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}/stdout").content == b"ready\n")

    assert run(service, "signal", job["id"], "SIGUSR1") == (b"", b"")

    run(service, "wait", job["id"], code=3)
    assert run(service, "logs", job["id"])[0] == b"ready\ncaught\n"
    assert b"not running" in run(service, "signal", job["id"], "USR1", code=REFUSED)[1]
    run(service, "signal", job["id"], "SIGNONE", code=USAGE)


def test_a_job_is_deleted(service: Service) -> None:
    job = service.submit(argv=["sleep", "60"])

    assert b"force" in run(service, "delete", job["id"], code=REFUSED)[1]
    assert run(service, "delete", "--force", job["id"]) == (b"", b"")
    other = str(service.run(argv=["true"])["number"])
    assert json.loads(run(service, "delete", "--json", other)[0]) == {"deleted": other}
    run(service, "delete", job["id"], code=NOT_FOUND)
    assert service.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_the_scripts_of_the_catalogue_are_listed(service: Service) -> None:
    script = service.data_dir / "scripts" / "listed"
    script.write_text("#!/bin/sh\n# Greets \x1b[2J.\necho hello\n")
    script.chmod(0o755)

    listed = json.loads(run(service, "scripts", "--json")[0])

    assert [entry["bytes"] for entry in listed if entry["name"] == "listed"] == [script.stat().st_size]
    assert b"\x1b" not in run(service, "scripts")[0]
    assert run(service, "run", "--script", "listed")[0] == b"hello\n"
