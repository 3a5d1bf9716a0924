"""Signals to ``jobrunner run``: they are for the job."""

import os
import signal
from contextlib import suppress
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.commands import (
    CANCELED,
    Process,
    answering,
    at,
    finish,
    http,
    never_answering,
    started,
    the_job,
)
from tests.e2e.test_cli_run import unread
from tests.e2e.test_follow import until
from tests.service import Service, eventually

STUBBORN = "trap '' INT TERM HUP; echo ready; while :; do sleep 0.05; done"


def line(command: Process) -> bytes:
    assert command.stdout
    found: bytes = command.stdout.readline()
    return found


def was_canceled(service: Service, job: dict[str, Any]) -> bool:
    return service.get(f"/v1/jobs/{job['id']}").json()["cancel"] is not None


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_is_sent_to_the_job_whose_last_words_still_come(service: Service, name: str) -> None:
    script = f"exec 2>/dev/null; trap 'echo caught; exit 5' {name}; echo ready; while :; do sleep 0.05; done"
    with started("run", "--name", f"trap {name}", "--shell", script, environment=at(service)) as command:
        assert line(command) == b"ready\n"
        command.send_signal(getattr(signal, f"SIG{name}"))
        assert finish(command, CANCELED) == (b"caught\n", b"")

    job = service.wait(the_job(service, f"trap {name}")["id"])
    assert (job["state"], job["exit_code"]) == ("canceled", 5)
    assert [sent["signal"] for sent in job["cancel"]["signals"]] == [f"SIG{name}"]


def test_the_second_signal_kills(service: Service) -> None:
    words = ["run", "--name", "stubborn", "--grace", "300", "--shell", STUBBORN]
    with started(*words, environment=at(service)) as command:
        assert line(command) == b"ready\n"
        job = the_job(service, "stubborn")
        command.send_signal(signal.SIGINT)
        assert eventually(lambda: was_canceled(service, job))
        assert service.get(f"/v1/jobs/{job['id']}").json()["state"] == "running"
        command.send_signal(signal.SIGINT)
        assert finish(command, CANCELED) == (b"", b"")

    ended = service.wait(job["id"])
    assert (ended["state"], ended["signal"], ended["cancel"]["escalated"]) == ("canceled", "SIGKILL", True)


def test_the_grace_period_ends_a_stubborn_job_too(service: Service) -> None:
    words = ["run", "--name", "short grace", "--grace", "0.3", "--shell", STUBBORN]
    with started(*words, environment=at(service)) as command:
        assert line(command) == b"ready\n"
        command.send_signal(signal.SIGTERM)
        finish(command, CANCELED)
    assert service.wait(the_job(service, "short grace")["id"])["signal"] == "SIGKILL"


def test_a_job_in_the_queue_is_canceled(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    first = service.submit(command="sleep 60")
    with started("run", "--name", "queued", "true", environment=at(service)) as command:
        job = the_job(service, "queued")
        command.send_signal(signal.SIGINT)
        assert finish(command, CANCELED) == (b"", b"")
    assert service.wait(job["id"])["started_at"] is None
    service.post(f"/v1/jobs/{first['id']}/cancel")


def test_what_is_ignored_stays_ignored(service: Service) -> None:
    """As with nohup, or for what a shell runs in the background."""
    prefix = ("sh", "-c", 'trap "" HUP INT; exec "$@"', "sh")
    words = ["run", "--name", "nohup", "--shell", f"echo ready; {until('go')}; echo done"]
    with started(*words, environment=at(service), prefix=prefix) as command:
        assert line(command) == b"ready\n"
        command.send_signal(signal.SIGHUP)
        command.send_signal(signal.SIGINT)
        # The one that is not ignored comes behind them.
        command.send_signal(signal.SIGTERM)
        finish(command, CANCELED)
    (sent,) = service.wait(the_job(service, "nohup")["id"])["cancel"]["signals"]
    assert sent["signal"] == "SIGTERM"


def test_a_job_that_somebody_else_cancels_says_who(service: Service) -> None:
    with started(
        "run", "--name", "by other", "--shell", "echo ready; exec sleep 60", environment=at(service)
    ) as command:
        assert line(command) == b"ready\n"
        service.post(f"/v1/jobs/{the_job(service, 'by other')['id']}/cancel")
        assert finish(command, CANCELED) == (b"", b"jobrunner: canceled by admin\n")


def test_a_signal_reaches_the_job_over_a_restart_of_the_service(start_service: StartService) -> None:
    service = start_service()
    words = ["run", "--name", "over a restart", "--shell", "echo ready; exec sleep 60"]
    with started(*words, environment=at(service)) as command:
        assert line(command) == b"ready\n"
        job = the_job(service, "over a restart")
        assert service.stop() == 0
        command.send_signal(signal.SIGINT)
        again = start_service(port=service.port)
        assert finish(command, CANCELED) == (b"", b"")
    assert again.wait(job["id"])["state"] == "canceled"


def test_the_third_signal_leaves_a_job_that_nothing_reaches(start_service: StartService) -> None:
    service = start_service()
    words = ["run", "--name", "left", "--shell", f"echo ready; {until('go')}"]
    with started(*words, environment=at(service)) as command:
        assert line(command) == b"ready\n"
        job = the_job(service, "left")
        assert service.stop() == 0
        # Three of a kind could be one: signals do not queue.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            command.send_signal(number)
        _, err = finish(command, CANCELED)
    assert job["id"].encode() in err
    again = start_service(port=service.port)
    assert again.get(f"/v1/jobs/{job['id']}").json()["cancel"] is None
    again.post(f"/v1/jobs/{job['id']}/cancel")


def test_a_submission_that_is_refused_over_and_over_can_be_given_up(service: Service) -> None:
    busy = http("503 Service Unavailable", '{"detail": "the queue is full"}', Retry_After="30")
    with answering(busy) as full, started("run", "true", environment=at(service, full.port)) as command:
        assert eventually(lambda: full.connections > 0, within=30)
        command.send_signal(signal.SIGINT)
        assert finish(command, CANCELED, within=15) == (b"", b"")


def test_a_submission_that_nobody_answers_can_be_given_up(service: Service) -> None:
    """Whether there is a job then, nobody knows."""
    with never_answering() as silent, started("run", "true", environment=at(service, silent.port)) as command:
        assert eventually(lambda: silent.connections > 0, within=30)
        command.send_signal(signal.SIGINT)
        command.send_signal(signal.SIGTERM)
        out, err = finish(command, CANCELED, within=15)
    assert (out, b"not known" in err) == (b"", True)


def test_before_anything_was_sent_a_signal_just_ends_it(service: Service) -> None:
    """It still reads its stdin."""
    reading, writing = os.pipe()
    try:
        with started("run", "--name", "never", "cat", environment=at(service), stdin=reading) as command:
            os.close(reading)
            os.write(writing, b"x")
            assert eventually(lambda: unread(writing) == 0, within=30)
            command.send_signal(signal.SIGINT)
            assert finish(command, -signal.SIGINT) == (b"", b"")
    finally:
        with suppress(OSError):
            os.close(writing)
    assert service.get("/v1/jobs?name=never").json()["jobs"] == []
