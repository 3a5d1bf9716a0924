"""Jobs in a sandbox: what they see, and that all that is done to jobs is done to them, exactly."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobrunner.domain.errors import ConfigError
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, Job
from jobrunner.domain.states import JobState
from jobrunner.domain.step import StepKind
from jobrunner.executor import inside
from jobrunner.executor.confine import check_confinement
from jobrunner.executor.sandbox import without_reaper
from jobrunner.executor.tree import list_members
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.service.submission import StepAsked, Submission
from tests.conftest import miss
from tests.factories import CALLER, argv, is_dead, make_config, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import (
    ExecutorProcess,
    is_alive,
    orphan,
    pid_of,
    run,
    scratch,
    started,
    stdout,
    wait,
)
from tests.service import eventually

GATED = "echo > ready; while [ ! -e go ]; do sleep 0.02; done; "


@pytest.fixture(scope="module", autouse=True)
def _bubblewrap() -> None:
    if shutil.which("bwrap") is None:
        miss("bubblewrap is not installed")
    done = subprocess.run(["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "true"], capture_output=True, check=False)
    if done.returncode != 0:
        miss(f"no sandbox can be made here: {done.stderr.decode()}")


@pytest.fixture
def tmp_path(passable_path: Path) -> Path:
    """Where other users come to as well."""
    return passable_path


POLICY = {"sandbox": "bwrap", "run_as": "nobody" if os.geteuid() == 0 else None}


@pytest.fixture
def house(new_house: NewHouse) -> House:
    """A house whose jobs have sandboxes."""
    made = new_house(policy=POLICY)
    made.prepare()
    return made


def executor_of(house: House) -> ExecutorProcess:
    names = {f"JOBRUNNER_POLICY_{key}".upper(): value for key, value in POLICY.items() if value is not None}
    return ExecutorProcess(house, environment=names)


def run_source(house: House, text: bytes, **members: Any) -> tuple[Job, str]:
    return run(house, Submission((StepAsked(StepKind.SOURCE, source=text),), **members))


def stderr(house: House, job: Job) -> str:
    return Path(house.spool.path(job.id), "stderr").read_text()


# ── what is as without ──


def test_a_job_has_what_came_with_it_and_writes_where_it_always_does(house: House) -> None:
    text = b'#!/bin/sh\ncat - data; pwd; echo "$A $HOME" >&2; echo more >> data; mkdir made\n'

    ended, out = run_source(house, text, stdin=b"in\n", files={"data": b"file\n"}, env={"A": "b c", "HOME": "ü"})

    assert ended.status == ExitStatus(code=0), stderr(house, ended)
    assert out == f"in\nfile\n{scratch(house, ended)}\n"
    assert stderr(house, ended) == "b c ü\n"
    assert (scratch(house, ended) / "data").read_text() == "file\nmore\n"
    assert (scratch(house, ended) / "made").is_dir()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("exit 0", ExitStatus(code=0)),
        ("exit 3", ExitStatus(code=3)),
        ("exit 137", ExitStatus(code=137)),
        ("kill -KILL $$", ExitStatus(signal=signal.SIGKILL)),
        ("kill -TERM $$", ExitStatus(signal=signal.SIGTERM)),
        ("kill -SEGV $$", ExitStatus(signal=signal.SIGSEGV)),
    ],
)
def test_an_end_is_told_exactly(house: House, text: str, status: ExitStatus) -> None:
    assert run(house, shell(text))[0].status == status


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (argv("no-such", env={"PATH": "/usr/bin:/bin"}), ErrorCode.NOT_FOUND, "No such file or directory: no-such"),
        (argv("./absent"), ErrorCode.NOT_FOUND, "No such file"),
        (argv("/etc/passwd"), ErrorCode.PERMISSION_DENIED, "Permission denied: /etc/passwd"),
        (argv("true", cwd="/no/such"), ErrorCode.BAD_CWD, "No such file or directory: /no/such"),
        (argv("true", cwd="/etc/passwd"), ErrorCode.BAD_CWD, "Not a directory"),
    ],
)
def test_what_can_not_be_started_has_failed_with_the_words_of_the_system(
    house: House, asked: Submission, code: ErrorCode, words: str
) -> None:
    ended, _ = run(house, asked)

    assert (ended.state, ended.status) == (JobState.FAILED, None)
    assert ended.error is not None
    assert ended.error.code is code
    assert words in ended.error.detail


def test_the_very_program_that_was_judged_is_executed(new_house: NewHouse, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "bash").symlink_to("/bin/bash")
    house = new_house(policy={**POLICY, "allow_commands": ("/usr/bin/*",)})
    house.prepare()
    asked = argv(str(tools / "bash"), "-c", "echo $0; readlink /proc/$$/exe; :")
    job = make_job(house, asked)
    (tools / "bash").unlink()

    with running_executor(house):
        wait(house, job)

    assert stdout(house, job).split() == [str(tools / "bash"), "/usr/bin/bash"]


def test_an_interpreter_that_is_missing_is_told_as_such(house: House) -> None:
    ended, _ = run_source(house, b"#!/no/such/interpreter\n")

    assert ended.error is not None
    assert "the interpreter it names is not" in ended.error.detail


def test_each_step_has_a_sandbox_of_its_own(house: House) -> None:
    steps = (
        StepAsked(StepKind.SOURCE, source=b"echo one > /tmp/one; echo two > two; (setsid sleep 60 &)"),
        StepAsked(StepKind.SOURCE, source=b"cat two; ls -A /tmp/one; kill -KILL $$"),
        StepAsked(StepKind.ARGV, ("true",)),
    )

    ended, out = run(house, Submission(steps))

    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(signal=signal.SIGKILL))
    assert out == "two\n"
    assert "/tmp/one" in stderr(house, ended)


def test_a_later_step_that_can_not_be_started_is_told(house: House) -> None:
    steps = (StepAsked(StepKind.ARGV, ("/bin/true",)), StepAsked(StepKind.ARGV, ("/no/such",)))

    ended, _ = run(house, Submission(steps))

    assert ended.error is not None
    assert ended.error.code is ErrorCode.NOT_FOUND


# ── what is seen ──


LOOK = """
exec 2>&1
touch /new /etc/new /var/new "$1/new" "$1/jobs/new" ../new
echo private > /tmp/private; ls -A /tmp; echo; ls -A "$1" "$1/jobs" "$1/jobs"/* ..
cat "$1/jobrunner.db" "$1/admin.token" ../stdout ../process.json ../outcome
kill -0 "$2"; ls -d /proc/[0-9]* | wc -l
grep -c . /proc/net/dev
"""


def test_a_job_sees_nothing_of_the_service_and_can_write_only_what_is_its_own(house: House) -> None:
    other = make_job(house, shell("echo other"))
    job = make_job(house, argv("sh", "look", str(house.data_dir), str(os.getpid()), files={"look": LOOK.encode()}))
    with running_executor(house):
        wait(house, other)
        wait(house, job)
    out = stdout(house, job)

    assert out.count("touch: cannot touch") == 6
    assert f"jobs/{job.id[-2:]}:\n{job.id}\n" in out, "and no other"
    assert "..:\nscratch\n" in out
    assert out.count("cat: ") == 5
    assert f"\n{house.data_dir.parent.name}\nprivate\n\n" in out, "/tmp"
    assert not Path("/tmp/private").exists()
    assert "kill: " in out
    assert int(out.splitlines()[-2]) <= 6, "processes"


def test_without_the_network_there_is_only_a_loopback_of_its_own(new_house: NewHouse) -> None:
    house = new_house(policy=POLICY | {"sandbox_network": False})
    house.prepare()

    _, out = run(house, shell("tail -n +3 /proc/net/dev | cut -d: -f1"))

    assert out.split() == ["lo"]


def test_what_a_job_has_loaded_into_its_programs_is_loaded_inside_only(house: House) -> None:
    ended, _ = run(house, argv("/bin/true", env={"LD_PRELOAD": "/no/such.so"}))

    assert stderr(house, ended).count("cannot be preloaded") == 1


# ── what is done to them ──


def test_a_signal_reaches_the_job_and_nothing_between(house: House) -> None:
    job = make_job(
        house, shell("trap 'echo told > told' USR1; echo > ready; until [ -e told ]; do sleep 0.02; done; exit 4")
    )
    with running_executor(house):
        started(house, job)
        house.jobs.signal(job.id, CALLER, "SIGUSR1")
        assert wait(house, job).status == ExitStatus(code=4)


def test_a_signal_waits_for_the_sandbox(new_house: NewHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = f"#!/usr/bin/python3\nimport os, sys, time\ntime.sleep(0.5)\nos.execv({shutil.which('bwrap')!r}, sys.argv)\n"
    (tmp_path / "bwrap").write_text(slow)
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    house = new_house(policy=POLICY)
    house.prepare()
    job = make_job(house, argv("sleep", "60"))
    with running_executor(house):
        pid_of(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=60))
        assert wait(house, job).status == ExitStatus(signal=signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_waits_for_the_job_s_process(tmp_path: Path, number: signal.Signals) -> None:
    outcome = tmp_path / "outcome"
    reading, writing = os.pipe()
    with outcome.open("ab") as file:
        fds = (file.fileno(), reading)
        command = [sys.executable, "-I", "-S", inside.__file__, *map(str, fds)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        process = subprocess.Popen(command, pass_fds=fds, start_new_session=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(reading)
    assert eventually(outcome.read_bytes)
    os.killpg(process.pid, number)
    os.write(writing, b"/\0" + b"\0" + b"0\0" + b"/bin/sleep\0" + b"60\0")
    os.close(writing)

    assert process.wait(10) == 0
    assert outcome.read_bytes() == b"begun\nstatus %d" % number


def test_a_cancel_is_a_signal_first_and_a_kill_after_the_grace(house: House) -> None:
    gentle = make_job(house, shell("trap 'echo bye; exit 7' TERM; echo > ready; while :; do sleep 0.02; done"))
    stubborn = make_job(house, shell("trap '' TERM; setsid sleep 60 & echo > ready; while :; do sleep 0.02; done"))
    with running_executor(house):
        for job in (gentle, stubborn):
            started(house, job)
            house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0.3 if job is stubborn else 10))
        assert wait(house, gentle).status == ExitStatus(code=7)
        assert wait(house, stubborn).status == ExitStatus(signal=signal.SIGKILL)
        assert house.jobs.get(stubborn.id, CALLER).state is JobState.CANCELED
    assert stdout(house, gentle) == "bye\n"


def test_what_a_job_leaves_behind_is_told_to_end_with_it(house: House) -> None:
    left = "setsid sh -c 'trap \"echo told > told; exit\" TERM; echo > away; while :; do sleep 0.02; done' &"
    job = make_job(house, shell(f"{left} while [ ! -e away ]; do sleep 0.02; done; exit 5"))
    with running_executor(house):
        assert wait(house, job).status == ExitStatus(code=5)
    assert (scratch(house, job) / "told").read_text() == "told\n"


def test_a_job_that_leaves_nothing_is_not_said_to_have(house: House) -> None:
    """Its sandbox has a process 1, which ends a moment later."""
    jobs = [make_job(house, argv("/bin/true")) for _ in range(10)]
    with executor_of(house) as executor:
        for job in jobs:
            assert wait(house, job).status == ExitStatus(code=0)
    assert "has left" not in executor.log.read_text()


def test_what_nobody_ends_runs_on_when_the_job_has_ended(new_house: NewHouse) -> None:
    house = new_house(policy=POLICY, executor={"kill_leftovers": False})
    house.prepare()
    ended, _ = run(house, shell("setsid sh -c 'while [ ! -e go ]; do sleep 0.02; done; echo > done' & exit 5"))

    assert ended.status == ExitStatus(code=5)
    (scratch(house, ended) / "go").touch()
    assert eventually((scratch(house, ended) / "done").exists)


ENDS = [("exit 17", ExitStatus(code=17)), ("kill -KILL $$", ExitStatus(signal=signal.SIGKILL))]


@pytest.mark.parametrize("forget", [False, True], ids=["by its record", "by its cookie"])
@pytest.mark.parametrize(("text", "status"), ENDS)
def test_an_executor_that_takes_over_learns_the_exact_end(
    house: House, text: str, status: ExitStatus, forget: bool
) -> None:
    job = make_job(house, shell(GATED + text))
    pid = orphan(house, job, executor_of(house), forget=forget)
    with running_executor(house):
        assert pid_of(house, job) == pid
        assert is_alive(pid)
        (scratch(house, job) / "go").touch()
        assert wait(house, job).status == status


@pytest.mark.parametrize(("text", "status"), ENDS)
def test_an_end_that_nobody_has_watched_is_learnt_exactly(house: House, text: str, status: ExitStatus) -> None:
    job = make_job(house, shell(GATED + text))
    with executor_of(house) as first:
        started(house, job)
        pid = pid_of(house, job)
        first.crash()
    (scratch(house, job) / "go").touch()
    assert eventually(lambda: is_dead(pid))
    with running_executor(house):
        assert wait(house, job).status == status


def test_a_sandbox_whose_parts_are_killed_is_a_job_that_was_killed(house: House) -> None:
    """By the kernel, say, for want of memory."""
    job = make_job(house, shell("kill -KILL $PPID; sleep 60"))
    with running_executor(house):
        ended = wait(house, job)
    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(signal=signal.SIGKILL))


# ── settings ──


def test_a_machine_without_bubblewrap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match=r"\[policy\] sandbox = bwrap: bubblewrap is not installed"):
        check_confinement(make_config(tmp_path, policy=POLICY))


def test_a_machine_on_which_no_sandbox_can_be_made_is_refused_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    with pytest.raises(ConfigError, match="no sandbox can be made here: bwrap: No permissions to create new namespace"):
        check_confinement(make_config(tmp_path, policy=POLICY))


@pytest.mark.skipif(os.geteuid() != 0, reason="the service is not root's")
@pytest.mark.parametrize("run_as", [None, "root"])
def test_a_sandbox_of_root_is_refused(tmp_path: Path, run_as: str | None) -> None:
    with pytest.raises(ConfigError, match="root gets out of it"):
        check_confinement(make_config(tmp_path, policy=POLICY | {"run_as": run_as}))


def test_the_first_process_of_a_sandbox_is_no_member_of_the_job(house: House) -> None:
    job = make_job(house, shell(GATED))
    with running_executor(house):
        started(house, job)
        members = list_members(job.id, besides=(pid := pid_of(house, job)), leaders={pid})
        assert len(without_reaper(members)) == len(members) - 1
        (scratch(house, job) / "go").touch()
        wait(house, job)


def test_a_bare_environment_and_a_directory_of_its_own_are_the_same_as_outside(house: House) -> None:
    job = make_job(
        house, argv("sh", "-c", "pwd; env", cwd="a/b", make_cwd=True, bare_env=True, env={"PATH": "/nowhere"})
    )
    other = make_job(house, argv("env", env={"PATH": "/nowhere"}, bare_env=True))

    with running_executor(house):
        failed, ended = wait(house, job), wait(house, other)

    assert failed.status == ExitStatus(code=127)  # the shell looks env up in the job's own
    assert stdout(house, job) == f"{os.path.realpath(scratch(house, job))}/a/b\n"
    assert ended.state is JobState.SUCCEEDED
    assert {line.partition("=")[0] for line in stdout(house, other).splitlines()} == {
        "PATH", "JOBRUNNER_JOB_ID", "JOBRUNNER_JOB_NUMBER", "JOBRUNNER_JOB_STEP",
    }  # fmt: skip
