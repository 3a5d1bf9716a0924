"""Cancel and signal."""

from functools import partial
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job, check_problem
from tests.factories import is_dead
from tests.service import Service, eventually

STUBBORN = "trap '' TERM; echo $$; while :; do sleep 0.05; done"


def start(service: Service, command: str) -> dict[str, Any]:
    """Submit a command that prints something, and return the job once it has."""
    job = service.submit(command=command)
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}/stdout").content)
    return job


def has_lines(service: Service, job: dict[str, Any], count: int) -> bool:
    return len(service.get(f"/v1/jobs/{job['id']}/stdout").text.split()) == count


def cancel(service: Service, job: dict[str, Any], status: int, **how: Any) -> dict[str, Any]:
    response = service.post(f"/v1/jobs/{job['id']}/cancel", how or None)
    assert response.status_code == status, response.text
    return check_job(response.json())


def test_canceling_a_running_job_ends_all_of_its_process_group(service: Service) -> None:
    job = start(service, "sleep 60 & sleep 61 & echo $! $$ $(sh -c 'sleep 62 >/dev/null & echo $!'); wait")
    pids = [int(pid) for pid in service.get(f"/v1/jobs/{job['id']}/stdout").text.split()]

    asked = cancel(service, job, 202)
    ended = check_job(service.wait(job["id"]))

    assert asked["cancel"]["by"] == "admin"
    assert (ended["state"], ended["signal"], ended["exit_code"]) == ("canceled", "SIGTERM", None)
    assert [sent["signal"] for sent in ended["cancel"]["signals"]] == ["SIGTERM"]
    assert ended["cancel"]["escalated"] is False
    assert ended["cancel"]["at"] == asked["cancel"]["at"]
    assert eventually(lambda: all(is_dead(pid) for pid in pids))


def test_a_job_that_ignores_a_cancel_is_killed_after_the_grace_period(service: Service) -> None:
    job = start(service, STUBBORN)

    cancel(service, job, 202, grace=0.3)
    ended = check_job(service.wait(job["id"]))

    assert (ended["state"], ended["signal"]) == ("canceled", "SIGKILL")
    assert [sent["signal"] for sent in ended["cancel"]["signals"]] == ["SIGTERM", "SIGKILL"]
    assert ended["cancel"]["escalated"] is True


def test_a_cancel_may_name_its_signal(service: Service) -> None:
    job = start(service, "trap 'exit 5' INT; echo ready; while :; do sleep 0.05; done")

    cancel(service, job, 202, signal="SIGINT", grace=30)
    ended = check_job(service.wait(job["id"]))

    assert (ended["state"], ended["exit_code"], ended["signal"]) == ("canceled", 5, None)
    assert [sent["signal"] for sent in ended["cancel"]["signals"]] == ["SIGINT"]


def test_a_second_cancel_without_grace_escalates_now(service: Service) -> None:
    job = start(service, STUBBORN)

    first = cancel(service, job, 202, grace=60)
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["cancel"]["signals"])
    cancel(service, job, 202, grace=0)
    ended = check_job(service.wait(job["id"], within=10))

    assert (ended["state"], ended["signal"]) == ("canceled", "SIGKILL")
    assert ended["cancel"]["at"] == first["cancel"]["at"]
    assert ended["cancel"]["escalated"] is True


def test_canceling_twice_changes_nothing(service: Service) -> None:
    job = start(service, "trap 'echo term' TERM; echo ready; while :; do sleep 0.05; done")

    first = cancel(service, job, 202, grace=60)
    assert eventually(lambda: "term" in service.get(f"/v1/jobs/{job['id']}/stdout").text)
    for _ in range(3):
        assert cancel(service, job, 202, grace=60)["cancel"]["at"] == first["cancel"]["at"]
    cancel(service, job, 202, grace=0)
    ended = check_job(service.wait(job["id"]))

    assert ended["stdout"]["text"].count("term") == 1
    assert [sent["signal"] for sent in ended["cancel"]["signals"]] == ["SIGTERM", "SIGKILL"]


def test_a_queued_job_is_canceled_at_once_and_never_runs(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    running = start(service, "echo running; exec sleep 60")
    queued = service.submit(command="echo ran")

    ended = cancel(service, queued, 200)
    cancel(service, running, 202)

    assert (ended["state"], ended["exit_code"], ended["started_at"]) == ("canceled", None, None)
    assert ended["cancel"]["signals"] == []
    assert ended["steps"][0]["state"] == "skipped"
    service.wait(running["id"])
    assert service.run(argv=["true"])["state"] == "succeeded"
    assert service.get(f"/v1/jobs/{queued['id']}").json() == ended
    assert service.get(f"/v1/jobs/{queued['id']}/stdout").content == b""


@pytest.mark.parametrize("command", ["exit 0", "exit 3", "kill -9 $$"])
def test_an_ended_job_is_not_changed_by_a_cancel(service: Service, command: str) -> None:
    service.run(command="true")
    job = service.run(command=command)
    before = service.get(f"/v1/jobs/{job['id']}").json()

    assert cancel(service, job, 200) == before
    assert cancel(service, job, 200, grace=0, signal="KILL") == before
    assert service.get(f"/v1/jobs/{job['id']}").json() == before


def test_a_job_that_succeeds_in_spite_of_its_cancel_keeps_its_exit_code(service: Service) -> None:
    job = start(service, "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done")

    cancel(service, job, 202)
    ended = check_job(service.wait(job["id"]))

    assert (ended["state"], ended["exit_code"]) == ("canceled", 0)


def test_a_signal_reaches_the_job(service: Service) -> None:
    job = start(service, "trap 'echo caught; exit 6' USR1; echo ready; while :; do sleep 0.05; done")

    response = service.post(f"/v1/jobs/{job['id']}/signal", {"signal": "SIGUSR1"})
    ended = check_job(service.wait(job["id"]))

    assert response.status_code == 202
    assert (ended["state"], ended["exit_code"]) == ("failed", 6)
    assert ended["stdout"]["text"] == "ready\ncaught\n"
    assert ended["cancel"] is None


def test_every_signal_is_delivered_once_and_in_order(service: Service) -> None:
    job = start(
        service, "trap 'echo 1' USR1; trap 'echo 2' USR2; trap 'exit 0' TERM; echo 0; while :; do sleep 0.02; done"
    )

    for number, name in enumerate(["USR1", "SIGUSR2", "USR1", "USR2"], start=2):
        assert service.post(f"/v1/jobs/{job['id']}/signal", {"signal": name}).status_code == 202
        assert eventually(partial(has_lines, service, job, number))
    service.post(f"/v1/jobs/{job['id']}/signal", {"signal": "SIGTERM"})

    ended = check_job(service.wait(job["id"]))
    assert (ended["state"], ended["stdout"]["text"].split()) == ("succeeded", ["0", "1", "2", "1", "2"])


def test_a_stopped_job_goes_on_when_told_to(service: Service) -> None:
    job = start(service, "echo ready; sleep 0.3; echo on")
    path = f"/v1/jobs/{job['id']}"

    service.post(f"{path}/signal", {"signal": "STOP"})
    assert service.get(f"{path}?wait=1").json()["state"] == "running"
    service.post(f"{path}/signal", {"signal": "CONT"})

    assert service.wait(job["id"])["stdout"]["text"] == "ready\non\n"


def test_only_a_running_job_takes_a_signal(service: Service) -> None:
    job = service.run(argv=["true"])

    found = check_problem(service.post(f"/v1/jobs/{job['id']}/signal", {"signal": "USR1"}), 409, "not-running")

    assert "succeeded" in found["detail"]


@pytest.mark.parametrize("body", [{}, {"signal": None}, {"signal": "SIGFOO"}, {"signal": 10}, {"signal": ""}], ids=str)
def test_a_signal_that_is_none_is_refused(service: Service, body: dict[str, Any]) -> None:
    job = start(service, "echo ready; exec sleep 60")

    check_problem(service.post(f"/v1/jobs/{job['id']}/signal", body), 422)

    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_what_an_ended_job_left_in_its_process_group_is_killed(service: Service) -> None:
    job = service.run(command="sleep 60 & echo $!")

    assert (job["state"], job["exit_code"]) == ("succeeded", 0)
    assert eventually(lambda: is_dead(int(job["stdout"]["text"])))
