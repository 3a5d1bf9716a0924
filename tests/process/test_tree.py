"""The whole of what a job has started ends with it, wherever it went."""

import signal
from datetime import timedelta

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import Job
from jobrunner.domain.states import JobState
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from tests.conftest import StartService
from tests.factories import CALLER, is_dead, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import ExecutorProcess, get, is_alive, pid_of, scratch, started, wait
from tests.service import eventually

ESCAPES = {
    "group": "sleep 60 & echo $! > away;",
    "session": "setsid sh -c 'echo $$ > away; exec sleep 60' &",
    "daemon": "(setsid sh -c 'echo $$ > away; exec sleep 60' &);",
}
"""How a process gets away from a job: in its group, in a session of its own, with no parent in between."""

STUBBORN = "setsid sh -c 'trap \"\" TERM; echo $$ > away; while :; do sleep 0.1; done' &"
WRITES_WHEN_TOLD = "setsid sh -c 'trap \"echo told > told; exit\" TERM; echo $$ > away; while :; do sleep 0.1; done' &"


def away(house: House, job: Job) -> int:
    return int(started(house, job, "away"))


@pytest.mark.parametrize("how", list(ESCAPES))
def test_a_cancel_reaches_what_got_away(house: House, how: str) -> None:
    job = make_job(house, shell(f"{ESCAPES[how]} sleep 60"))
    with running_executor(house):
        pid = away(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = wait(house, job)

        assert ended.state is JobState.CANCELED
        assert is_dead(pid), "an ended job has no processes"


@pytest.mark.parametrize("how", list(ESCAPES))
def test_a_timeout_reaches_what_got_away(house: House, how: str) -> None:
    job = make_job(house, shell(f"{ESCAPES[how]} sleep 60", timeout=0.7))
    with running_executor(house):
        pid = away(house, job)
        ended = wait(house, job)

        assert ended.state is JobState.TIMED_OUT
        assert is_dead(pid)


@pytest.mark.parametrize("how", list(ESCAPES))
def test_what_a_job_leaves_behind_is_ended_with_it(house: House, how: str) -> None:
    job = make_job(house, shell(f"{ESCAPES[how]} while [ ! -s away ]; do sleep 0.01; done; exit 5"))
    with running_executor(house):
        ended = wait(house, job)

        assert ended.status == ExitStatus(code=5)
        assert is_dead(away(house, job))


def test_what_a_job_leaves_behind_is_told_to_end_before_it_is_killed(house: House) -> None:
    job = make_job(house, shell(f"{WRITES_WHEN_TOLD} while [ ! -s away ]; do sleep 0.01; done"))
    with running_executor(house):
        ended = wait(house, job)

    assert ended.state is JobState.SUCCEEDED
    assert (scratch(house, job) / "told").read_text() == "told\n"


def test_what_ignores_it_is_killed_after_the_grace_period(house: House) -> None:
    job = make_job(house, shell(f"{STUBBORN} while [ ! -s away ]; do sleep 0.01; done", grace=0.6))
    with running_executor(house):
        ended = wait(house, job)
        pid = away(house, job)

        assert is_dead(pid)
    # The job had ended before: what it left behind costs it nothing.
    assert ended.state is JobState.SUCCEEDED
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.finished_at - ended.started_at < timedelta(seconds=0.6)


def test_a_cancel_that_only_a_child_ignores_is_escalated_and_says_so(house: House) -> None:
    job = make_job(house, shell(f"{STUBBORN} sleep 60", grace=0.5))
    with running_executor(house):
        pid = away(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = wait(house, job)

        assert is_dead(pid)
    assert ended.state is JobState.CANCELED
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]


def test_a_cancel_hurries_the_end_of_what_was_left_behind(house: House) -> None:
    job = make_job(house, shell(f"{STUBBORN} while [ ! -s away ]; do sleep 0.01; done; echo > done", grace=60))
    with running_executor(house):
        started(house, job, "done")
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
        ended = wait(house, job, 10)

        assert is_dead(away(house, job))
    assert ended.state is JobState.SUCCEEDED, "it had ended by itself"


def test_what_is_left_behind_may_be_kept(new_house: NewHouse) -> None:
    house = new_house(executor={"kill_leftovers": False})
    job = make_job(house, shell(f"{ESCAPES['daemon']} while [ ! -s away ]; do sleep 0.01; done"))
    with running_executor(house):
        assert wait(house, job).state is JobState.SUCCEEDED
        assert is_alive(away(house, job))


def test_a_job_touches_only_what_is_its_own(house: House) -> None:
    bystander = make_job(house, shell(f"{ESCAPES['session']} sleep 60"))
    job = make_job(house, shell(f"{ESCAPES['session']} sleep 60"))
    with running_executor(house):
        pid, other = away(house, job), away(house, bystander)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
        wait(house, job)

        assert is_dead(pid)
        assert is_alive(other)
        assert get(house, bystander).state is JobState.RUNNING


@pytest.mark.parametrize("how", list(ESCAPES))
def test_an_adopted_job_is_ended_as_a_whole(house: House, how: str) -> None:
    job = make_job(house, shell(f"{ESCAPES[how]} sleep 60"))
    with ExecutorProcess(house) as executor:
        pid = away(house, job)
        pid_of(house, job)
        executor.crash()

    with running_executor(house):
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = wait(house, job)

        assert ended.state is JobState.CANCELED
        assert is_dead(pid)


def test_what_was_left_behind_is_ended_by_the_next_executor(house: House) -> None:
    """The first one dies in the grace period of what its job has left behind."""
    job = make_job(house, shell(f"{STUBBORN} while [ ! -s away ]; do sleep 0.01; done; exit 6", grace=2))
    with ExecutorProcess(house) as executor:
        pid = away(house, job)
        leader = pid_of(house, job)
        assert eventually(lambda: is_dead(leader))
        executor.crash()

    with running_executor(house):
        ended = wait(house, job)

        assert is_dead(pid)
    assert ended.state in {JobState.FAILED, JobState.LOST}
    assert ended.status == (ExitStatus(code=6) if ended.state is JobState.FAILED else None)


def test_the_executor_of_a_service_finds_and_reaps_orphans(start_service: StartService) -> None:
    """There it is their parent, and looks only at its own children."""
    service = start_service()
    for escape in ESCAPES.values():
        job = service.run(command=f"{escape} while [ ! -s away ]; do sleep 0.01; done; exit 8")
        assert job["exit_code"] == 8
        pid = int((service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch" / "away").read_text())
        assert eventually(lambda: is_dead(pid))  # noqa: B023
    # Neither they nor those in between stay as zombies.
    assert eventually(lambda: len(service.processes()) == 5), service.processes()
