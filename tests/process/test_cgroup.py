"""Control groups of jobs: nothing gets out of them."""

import signal
from pathlib import Path

import pytest

from jobrunner.domain.errors import ConfigError
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import Job
from jobrunner.domain.states import JobState
from jobrunner.executor.cgroup import ControlGroups
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.workforce import make_executor
from tests.factories import CALLER, is_dead, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import ExecutorProcess, pid_of, scratch, started, wait
from tests.service import eventually

FORGETS_ITS_COOKIE = "env -i /usr/bin/setsid /bin/sh -c 'echo $$ > away; exec /bin/sleep 60' &"
"""A process of which neither group, session nor environment tells whose it is."""

FORKS_FOR_EVER = "env -i /usr/bin/setsid /bin/sh -c 'echo $$ > away; b() { /bin/sleep 0.005; b & }; b' &"
"""One that never is the process that was just looked for: each makes the next one and ends."""


@pytest.fixture
def house(new_house: NewHouse, group: Path) -> House:
    """A house whose jobs get control groups."""
    return new_house(executor={"cgroup": str(group)})


def members(group: Path, job: Job) -> list[int]:
    return ControlGroups(group).list_pids(job.id)


def test_each_job_is_in_a_control_group_of_its_own(house: House, group: Path) -> None:
    jobs = [make_job(house, shell("sleep 60 & echo > ready; wait; exit 3")) for _ in range(2)]
    with running_executor(house):
        for job in jobs:
            started(house, job)
            assert pid_of(house, job) in members(group, job)
            assert len(members(group, job)) == 2
        assert not set(members(group, jobs[0])) & set(members(group, jobs[1]))
        for job in jobs:
            house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
            assert wait(house, job).state is JobState.CANCELED
    assert list(group.glob("job-*")) == []


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_a_cancel_reaches_what_can_not_be_told_by_anything_else(house: House, signal_name: str) -> None:
    job = make_job(house, shell(f"{FORGETS_ITS_COOKIE} sleep 60"))
    with running_executor(house):
        pid = int(started(house, job, "away"))
        house.jobs.cancel(job.id, CALLER, CancelAsked(signal=signal_name))
        assert wait(house, job).state is JobState.CANCELED
        assert is_dead(pid)


def test_what_a_job_leaves_behind_is_ended_whatever_it_forgets(house: House) -> None:
    job = make_job(house, shell(f"{FORGETS_ITS_COOKIE} while [ ! -s away ]; do sleep 0.01; done; exit 5"))
    with running_executor(house):
        assert wait(house, job).status == ExitStatus(code=5)
        assert is_dead(int(started(house, job, "away")))


def test_not_even_one_that_forks_for_ever_gets_away(house: House, group: Path) -> None:
    job = make_job(house, shell(f"{FORKS_FOR_EVER} sleep 60"))
    with running_executor(house):
        first = int(started(house, job, "away"))
        assert eventually(lambda: len(members(group, job)) > 1 and is_dead(first))
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
        assert wait(house, job).state is JobState.CANCELED


def test_an_executor_that_takes_over_finds_the_control_group(house: House, group: Path) -> None:
    job = make_job(house, shell(f"{FORGETS_ITS_COOKIE} while [ ! -e go ]; do sleep 0.05; done; exit 17"))
    with ExecutorProcess(house, cgroup=group) as first:
        pid = int(started(house, job, "away"))
        first.crash()
    with running_executor(house):
        (scratch(house, job) / "go").touch()
        assert wait(house, job).status == ExitStatus(code=17)
        assert is_dead(pid)


def test_a_directory_that_is_none_is_refused_with_the_key(new_house: NewHouse, tmp_path: Path) -> None:
    house = new_house(executor={"cgroup": str(tmp_path)})

    with pytest.raises(ConfigError, match=r"\[executor\] cgroup = "):
        make_executor(house)
    assert list(tmp_path.glob("try-*")) == []


def test_a_group_that_nobody_has_left_to_us_is_not_taken() -> None:
    """This process's own is not marked: it is the session's, or the machine's."""
    assert ControlGroups.find("no") is None
    assert ControlGroups.find("auto") is None


def test_signals_that_are_no_kill_go_to_each_member_once(house: House, group: Path) -> None:
    told = "trap 'echo told >> told' USR1 TERM; echo > ready; while :; do sleep 0.05; done"
    job = make_job(house, shell(told))
    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked(signal="SIGUSR1", grace=1))
        ended = wait(house, job)
    assert ended.status == ExitStatus(signal=signal.SIGKILL)
    assert (scratch(house, job) / "told").read_text() == "told\n"
