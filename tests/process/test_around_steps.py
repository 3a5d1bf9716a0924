"""What is around the process of a step: a bare environment, and a directory that is the job's own."""

import os
from pathlib import Path

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, Job
from jobrunner.domain.spec import StepKind
from jobrunner.domain.states import JobState
from jobrunner.house import House
from jobrunner.service.submission import StepAsked
from tests.factories import argv, make_job, running_executor, sequence, shell
from tests.process.conftest import NewHouse
from tests.process.running import scratch, stdout, wait


def run(house: House, job: Job) -> Job:
    with running_executor(house):
        return wait(house, job)


def variables(house: House, job: Job) -> dict[str, str]:
    return dict(line.split("=", 1) for line in stdout(house, job).splitlines())


def test_of_the_base_environment_nothing_is_in_a_bare_one(new_house: NewHouse) -> None:
    house = new_house()
    job = make_job(house, argv("env", env={"A": "1"}, bare_env=True))

    ended = run(house, job)

    assert ended.state is JobState.SUCCEEDED, ended.error
    assert variables(house, job) == {
        "A": "1",
        "JOBRUNNER_JOB_ID": job.id,
        "JOBRUNNER_JOB_NUMBER": str(job.number),
        "JOBRUNNER_JOB_STEP": "0",
    }


def test_with_a_bare_environment_programs_are_looked_up_where_the_service_does(house: House) -> None:
    job = make_job(house, argv("env", env={"PATH": "/nowhere"}, bare_env=True))
    absent = make_job(house, argv("no-such-program", env={"PATH": "/nowhere"}, bare_env=True))

    with running_executor(house):
        ended, failed = wait(house, job), wait(house, absent)

    assert (ended.state, variables(house, job)["PATH"]) == (JobState.SUCCEEDED, "/nowhere")
    assert failed.error is not None
    assert failed.error.code is ErrorCode.NOT_FOUND


def test_each_step_of_a_bare_job_has_its_own_variables(house: House) -> None:
    steps = [StepAsked(StepKind.ARGV, ("env",), env={name: "1"}) for name in "AB"]
    job = make_job(house, sequence(*steps, env={"C": "1"}, bare_env=True))

    run(house, job)

    names = [line.partition("=")[0] for line in stdout(house, job).splitlines()]
    assert [name for name in names if not name.startswith("JOBRUNNER_")] == ["C", "A", "C", "B"]


@pytest.mark.parametrize("cwd", ["link", "link/sub", "chain"])
def test_a_link_does_not_lead_a_step_out_of_the_job_s_directory(house: House, tmp_path: Path, cwd: str) -> None:
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    links = f"ln -s {outside} link; ln -s link chain"
    asked = sequence(links, StepAsked(StepKind.COMMAND, ("touch here",), cwd=cwd), make_cwd=True)
    job = make_job(house, asked)

    ended = run(house, job)

    assert (ended.state, ended.status) == (JobState.FAILED, None)
    assert ended.error is not None
    assert (ended.error.code, ended.error.detail) == (
        ErrorCode.BAD_CWD, f"{cwd} leads out of the job's directory by a symbolic link",
    )  # fmt: skip
    assert os.listdir(outside) == ["sub"]


def test_a_link_within_the_job_s_directory_is_followed(house: House) -> None:
    inside = StepAsked(StepKind.COMMAND, ("touch here",), cwd="link")
    job = make_job(house, sequence("mkdir -p a/b; ln -s a/b link", inside))

    assert run(house, job).state is JobState.SUCCEEDED
    assert (scratch(house, job) / "a" / "b" / "here").exists()


def test_a_directory_is_made_only_when_that_is_asked_for(house: House) -> None:
    made = make_job(house, shell("pwd", cwd="a/b", make_cwd=True))
    missing = make_job(house, shell("pwd", cwd="a/b"))

    with running_executor(house):
        ended, failed = wait(house, made), wait(house, missing)

    assert (ended.status, stdout(house, made)) == (ExitStatus(code=0), f"{scratch(house, made)}/a/b\n")
    assert failed.error is not None
    assert failed.error.code is ErrorCode.BAD_CWD


def test_a_directory_that_can_not_be_made_is_told(house: House) -> None:
    job = make_job(house, sequence("touch file", StepAsked(StepKind.COMMAND, ("true",), cwd="file/a"), make_cwd=True))

    ended = run(house, job)

    assert ended.error is not None
    assert (ended.error.code, ended.error.detail) == (ErrorCode.BAD_CWD, "Not a directory: file/a")


def test_variables_can_hold_paths_in_the_scratch_directory(new_house: NewHouse) -> None:
    house = new_house()
    job = make_job(house, argv("env", paths={"HERE": "", "BELOW": "a", "ELSEWHERE": "/srv"}))

    run(house, job)

    found = variables(house, job)
    here = str(scratch(house, job))
    assert {name: found[name] for name in ("HERE", "BELOW", "ELSEWHERE")} == {
        "HERE": here,
        "BELOW": f"{here}/a",
        "ELSEWHERE": "/srv",
    }


@pytest.mark.parametrize("drops_scratch", [False, True])
def test_a_result_outlives_the_directory_that_it_was_left_in(new_house: NewHouse, drops_scratch: bool) -> None:
    house = new_house()
    job = make_job(house, shell("echo found > it; touch other", result="it", drops_scratch=drops_scratch))

    ended = run(house, job)

    assert b"".join(house.output.result(ended)) == b"found\n"
    assert not (scratch(house, job) / "it").exists()
    assert (scratch(house, job) / "other").exists() is not drops_scratch


@pytest.mark.parametrize(
    "leave",
    [
        ":",
        "rm it",
        "ln -sf {secret}/file it",
        "rm it; mkdir it",
        "rm it; mkfifo it",
        "rm -r ../scratch; ln -s {secret} ../scratch",
        "rm -r ../scratch",
        "rm -r ../scratch; touch ../scratch",
        "echo x > it; mkdir ../result",
        "ln -s {secret}/file ../result",
    ],
)
def test_nothing_but_a_file_of_the_job_is_a_result(new_house: NewHouse, tmp_path: Path, leave: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("it", "file"):
        (secret / name).write_text("secret")
    house = new_house()
    job = make_job(house, shell(leave.format(secret=secret), result="it", drops_scratch=True))

    ended = run(house, job)

    assert ended.state is JobState.SUCCEEDED
    assert b"".join(house.output.result(ended)) == b""
    assert (secret / "it").read_text() == "secret"


def test_of_a_doomed_job_nothing_is_started(new_house: NewHouse) -> None:
    house = new_house()
    job = make_job(house, shell("true", files={"a/b": b""}, doom="no such thing"))

    ended = run(house, job)

    assert (ended.state, ended.status) == (JobState.FAILED, None)
    assert ended.error is not None
    assert (ended.error.code, ended.error.detail) == (ErrorCode.SPAWN_FAILED, "no such thing")
    assert not scratch(house, job).exists()
