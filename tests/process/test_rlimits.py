"""How much of the machine each process of a job may take."""

import resource
import signal

import pytest

from jobrunner.config import Policy
from jobrunner.domain.errors import ConfigError
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.states import JobState
from jobrunner.executor.confine import Confinement, find_confinement
from jobrunner.workforce import make_executor
from tests.factories import shell
from tests.process.conftest import NewHouse
from tests.process.running import run


def test_a_job_has_the_limits_of_the_settings(new_house: NewHouse) -> None:
    """Hard ones: it can't raise them again."""
    limits = {"as": 2 << 30, "cpu": 1000.0, "nofile": 99, "nproc": 5000, "fsize": 1 << 20}
    house = new_house(policy={f"rlimit_{name}": value for name, value in limits.items()})

    _, text = run(house, shell("cat /proc/self/limits"))

    found = {line[:25].strip(): tuple(line[25:].split()[:2]) for line in text.splitlines()}
    assert found["Max address space"] == ("2147483648", "2147483648")
    assert found["Max cpu time"] == ("1000", "1001")
    assert found["Max open files"] == ("99", "99")
    assert found["Max processes"] == ("5000", "5000")
    assert found["Max file size"] == ("1048576", "1048576")


@pytest.mark.parametrize(
    ("limit", "text", "number"),
    [
        ({"rlimit_cpu": 1.0}, "while :; do :; done", signal.SIGXCPU),
        ({"rlimit_fsize": 1000}, "exec head -c 2000 /dev/zero", signal.SIGXFSZ),
    ],
)
def test_a_job_that_exceeds_a_limit_is_ended_by_its_signal(
    new_house: NewHouse, limit: dict[str, float], text: str, number: int
) -> None:
    ended, _ = run(new_house(policy=limit), shell(text))

    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(signal=number))


def test_a_limit_above_the_service_s_own_is_refused_at_the_start() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    with pytest.raises(ConfigError) as refusal:
        find_confinement(Policy(rlimit_nofile=most + 1, rlimit_fsize=1000))

    assert refusal.value.problems == (
        f"[policy] rlimit_nofile = {most + 1}: the service itself may have no more than {most}",
    )
    assert find_confinement(Policy(rlimit_nofile=most)).limits == {resource.RLIMIT_NOFILE: (most, most)}


def test_limits_within_which_nothing_starts_are_refused_at_the_start(new_house: NewHouse) -> None:
    with pytest.raises(ConfigError, match=r"\[policy\]"):
        make_executor(new_house(policy={"rlimit_as": 4096}))


def test_jobs_that_are_not_confined_are_started_as_fast_as_can_be() -> None:
    """With none of subprocess's arguments that take its vfork(2) away."""
    assert Confinement().popen_arguments("/", None) == {}
