"""Jobs of another user: what they are, what they can't do, and that all that is done to jobs is done to them."""

import os
import pwd
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobrunner.config import Policy
from jobrunner.domain.errors import ConfigError, FileNotInJob
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode
from jobrunner.domain.states import JobState
from jobrunner.domain.step import StepKind
from jobrunner.executor.confine import find_confinement
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.service.submission import StepAsked, Submission
from jobrunner.workforce import make_executor
from tests.factories import CALLER, argv, is_dead, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import ExecutorProcess, orphan, pid_of, run, scratch, started, stdout, wait
from tests.service import eventually

NOBODY = pwd.getpwnam("nobody")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start jobs as another user")


@pytest.fixture
def tmp_path(passable_path: Path) -> Path:
    """Where other users come to as well."""
    return passable_path


@pytest.fixture
def house(new_house: NewHouse) -> House:
    """A house whose jobs are nobody's."""
    return opened(new_house(policy={"run_as": "nobody"}))


def source(text: bytes, **members: Any) -> Submission:
    """Ask for a script that comes with the submission."""
    return Submission((StepAsked(StepKind.SOURCE, source=text),), **members)


def opened(house: House) -> House:
    """Prepare a house: that opens its directories to its jobs."""
    house.prepare()
    return house


def executor_of_nobodys(house: House) -> ExecutorProcess:
    return ExecutorProcess(house, environment={"JOBRUNNER_POLICY_RUN_AS": "nobody"})


@contextmanager
def with_groups(*gids: int) -> Iterator[None]:
    """Be in these groups meanwhile, as a service of root may be."""
    before = os.getgroups()
    os.setgroups(gids)
    try:
        yield
    finally:
        os.setgroups(before)


@contextmanager
def not_root() -> Iterator[None]:
    """Be nobody meanwhile."""
    os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


# ── what they are ──


def test_a_job_is_the_user_s_with_none_of_the_service_s_groups(house: House) -> None:
    with with_groups(0, 4, 27):
        ended, text = run(house, shell("id -u; id -g; id -G; grep ^Uid: /proc/self/status"))

    assert ended.status == ExitStatus(code=0)
    uid, gid, groups, uids = text.splitlines()
    assert (int(uid), int(gid)) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert [int(group) for group in groups.split()] == [NOBODY.pw_gid]
    assert set(uids.split()[1:]) == {uid}, "real, effective, saved and file system's"


def test_another_group_can_be_the_primary_one(new_house: NewHouse) -> None:
    _, text = run(opened(new_house(policy={"run_as": "nobody:games"})), shell("id -gn; touch x; stat -c %G x"))

    assert text == "games\ngames\n"


def test_its_environment_names_the_user(house: House) -> None:
    _, text = run(house, shell('echo "$HOME $USER $LOGNAME"; [ -z "${JOBRUNNER_STORAGE_DATA_DIR+x}" ]'))

    assert text == f"{NOBODY.pw_dir} nobody nobody\n"


def test_a_job_works_in_a_directory_of_its_own_with_what_came_with_it(house: House) -> None:
    script = b'#!/bin/sh\ncat - data; echo more >>data; stat -c "%U %a" . data "$0"\n'

    ended, text = run(house, source(script, stdin=b"in\n", files={"data": b"file\n"}))

    assert ended.status == ExitStatus(code=0)
    assert text == "in\nfile\nnobody 700\nnobody 644\nroot 750\n"
    with house.files.open(ended.id, CALLER, b"data").file as file:
        assert file.read() == b"file\nmore\n"


def test_a_job_can_open_its_own_streams_by_their_names(house: House) -> None:
    ended, text = run(house, shell("cat /dev/stdin; echo out >> /dev/stdout; echo err > /dev/stderr", stdin=b"in\n"))

    assert text == "in\nout\n"
    assert Path(house.spool.path(ended.id), "stderr").read_text() == "err\n"


def test_a_script_of_the_catalogue_can_be_run(house: House) -> None:
    script = house.config.scripts_dir / "hello"
    script.write_text("#!/bin/sh\nid -un\n")
    script.chmod(0o755)

    assert run(house, Submission((StepAsked(StepKind.SCRIPT, ("hello",)),)))[1] == "nobody\n"


def test_each_step_is_the_user_s(house: House) -> None:
    steps = tuple(StepAsked(StepKind.SOURCE, source=b"id -un; echo x >> /dev/stdout") for _ in range(2))

    assert run(house, Submission(steps))[1] == "nobody\nx\nnobody\nx\n"


def test_limits_and_another_user_go_together(new_house: NewHouse) -> None:
    house = opened(new_house(policy={"run_as": "nobody", "rlimit_nofile": 99}))

    assert run(house, shell("id -un; ulimit -n"))[1] == "nobody\n99\n"


def test_a_data_directory_that_others_jobs_have_used_is_opened(new_house: NewHouse) -> None:
    jobs = new_house().data_dir / "jobs"
    for number in range(256):
        (jobs / f"{number:02x}").mkdir(mode=0o700)
    jobs.chmod(0o700)

    assert run(opened(new_house(policy={"run_as": "nobody"})), argv("id", "-un"))[1] == "nobody\n"


# ── what they can't do ──


def test_a_job_can_read_nothing_of_the_service_but_what_is_its_own(house: House) -> None:
    """It is told all names that there are: even then."""
    other = make_job(house, source(b"echo secret > kept", stdin=b"secret"))
    with running_executor(house):
        wait(house, other)
        house.access.sign_stream(other.id, CALLER)  # has the key made
        names = [str(path) for path in house.data_dir.rglob("*")]
        job = make_job(
            house, shell('while read -r f; do [ -r "$f" ] && echo "$f"; done', stdin="\n".join(names).encode())
        )
        wait(house, job)
        listing = make_job(house, argv("find", str(house.data_dir), "-mindepth", "1"))
        assert wait(house, listing).state is JobState.FAILED
    assert {"jobrunner.db", "admin.token", "stream.key", "stdin", "kept"} <= {Path(name).name for name in names}
    assert stdout(house, job) == ""
    assert stdout(house, listing) == ""


HARM = """
cd .. || exit 99
for f in stdout stderr process.json stdin source scratch; do
    for harm in "rm -rf" "mv -f -t /tmp" "chmod 777" "chown nobody" "ln -f -t scratch"; do
        $harm $f 2>>/dev/null && [ "$harm $f" != "chmod 777 scratch" ] && [ "$harm $f" != "chown nobody scratch" ] &&
            echo "$harm $f"
    done
done
ln -s /etc/passwd new && echo linked
echo done
"""


def test_a_job_can_not_remove_or_replace_what_the_service_reads_of_it(house: House) -> None:
    ended, text = run(house, source(HARM.encode(), stdin=b"in"))

    assert text == "done\n", ended
    directory = Path(house.spool.path(ended.id))
    assert {path.name for path in directory.iterdir()} == {
        *("stdout", "stderr", "process.json", "stdin", "source", "scratch")
    }
    assert {path.owner() for path in directory.iterdir() if path.name != "scratch"} == {"root"}


def test_the_directory_of_an_ended_job_is_closed_to_later_ones(house: House) -> None:
    first = make_job(house, shell("echo here > kept; chmod 777 . kept"))
    with running_executor(house):
        wait(house, first)
        later = make_job(house, argv("cat", str(scratch(house, first) / "kept")))
        assert wait(house, later).status == ExitStatus(code=1)


@pytest.mark.parametrize("cwd", ["/root", "/proc/1/cwd"])
def test_a_directory_that_is_closed_to_the_user_is_no_place_to_start_in(house: House, cwd: str) -> None:
    ended, _ = run(house, argv("true", cwd=cwd))

    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert ended.error.code is ErrorCode.BAD_CWD
    assert cwd in ended.error.detail


def test_a_program_that_is_closed_to_the_user_is_told(house: House) -> None:
    ended, _ = run(house, argv("/root/x"))

    assert ended.error is not None
    assert ended.error.code is ErrorCode.PERMISSION_DENIED


def test_a_file_of_somebody_else_is_not_sent(house: House) -> None:
    """Where the system lets a job make a hard link to it, fs.protected_hardlinks = 0."""
    ended, _ = run(house, argv("true"))
    secret = house.data_dir / "admin.token"
    os.link(secret, scratch(house, ended) / "mine")

    with pytest.raises(FileNotInJob):
        house.files.open(ended.id, CALLER, b"mine")


# ── what is done to them ──


def test_a_signal_and_a_cancel_reach_the_user_s_processes(house: House) -> None:
    text = """trap 'echo told > told' USR1; setsid sh -c 'echo $$ > away; exec sleep 60' & echo > ready
    while :; do sleep 0.05; done"""
    job = make_job(house, shell(text))
    with running_executor(house):
        away = int(started(house, job, "away"))
        started(house, job)
        house.jobs.signal(job.id, CALLER, "SIGUSR1")
        started(house, job, "told")
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = wait(house, job)
        assert is_dead(away)
    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGTERM))


def test_what_the_user_s_job_leaves_behind_is_ended(house: House) -> None:
    job = make_job(
        house, shell("setsid sh -c 'echo $$ > away; exec sleep 60' & while [ ! -s away ]; do :; done; exit 5")
    )
    with running_executor(house):
        assert wait(house, job).status == ExitStatus(code=5)
        assert is_dead(int(started(house, job, "away")))


@pytest.mark.parametrize("forget", [False, True], ids=["by its record", "by its cookie"])
def test_an_executor_that_takes_over_learns_how_the_user_s_job_ends(house: House, forget: bool) -> None:
    job = make_job(house, shell("echo > ready; while [ ! -e go ]; do sleep 0.05; done; exit 17"))
    pid = orphan(house, job, executor_of_nobodys(house), forget=forget)
    with running_executor(house):
        assert pid_of(house, job) == pid
        (scratch(house, job) / "go").touch()
        ended = wait(house, job)
    assert ended.status == ExitStatus(code=17)


def test_the_output_of_a_user_s_job_is_limited_after_a_crash_too(new_house: NewHouse) -> None:
    house = opened(new_house(policy={"run_as": "nobody"}, output={"max_bytes": 65536, "on_limit": "kill"}))
    job = make_job(house, shell("echo > ready; while [ ! -e go ]; do sleep 0.05; done; yes"))
    with executor_of_nobodys(house) as first:
        started(house, job)
        first.crash()
    with running_executor(house):
        (scratch(house, job) / "go").touch()
        assert wait(house, job).state is JobState.OUTPUT_LIMIT


def test_what_the_user_s_job_has_made_is_removed_with_it(house: House) -> None:
    ended, _ = run(house, shell("mkdir -p a/b; touch a/b/c; chmod 0 a/b/c a/b a"))

    house.jobs.delete(ended.id, CALLER, force=False, patience=0)

    assert eventually(lambda: not Path(house.spool.path(ended.id)).exists())


@pytest.mark.parametrize("removes", ["the executor", "gc"])
def test_a_scratch_directory_that_is_not_kept_is_removed(new_house: NewHouse, removes: str) -> None:
    """Also one that gc finds, since its executor did not live to."""
    house = opened(new_house(policy={"run_as": "nobody"}, storage={"keep_scratch": removes == "gc"}))
    ended, _ = run(house, shell("mkdir -p a/b; touch a/b/c; chmod 0 a/b/c a/b a"))
    if removes == "gc":
        assert scratch(house, ended).exists()
        opened(new_house(policy={"run_as": "nobody"}, storage={"keep_scratch": False})).gc.run(house.config.gc)

    assert not scratch(house, ended).exists()


# ── settings ──


def problems(**policy: object) -> str:
    with pytest.raises(ConfigError) as refusal:
        find_confinement(Policy(**policy))  # type: ignore[arg-type]
    return "\n".join(refusal.value.problems)


def test_only_root_can_have_jobs_of_another_user() -> None:
    with not_root():
        told = problems(run_as="nobody")

    assert told.startswith("[policy] run_as = nobody: only root can start jobs as another user; run the service as")


@pytest.mark.parametrize(("name", "words"), [("no-such", "no user no-such"), ("nobody:no-such", "no group no-such")])
def test_a_user_that_is_none_is_refused_at_the_start(name: str, words: str) -> None:
    assert words in problems(run_as=name)


def test_a_data_directory_that_the_user_can_not_reach_is_refused_at_the_start(house: House, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    with pytest.raises(ConfigError, match="run_as = nobody: this user can't reach"):
        make_executor(house)


def test_a_job_of_another_user_is_in_a_control_group_too(new_house: NewHouse, group: Path) -> None:
    house = opened(new_house(policy={"run_as": "nobody"}, executor={"cgroup": str(group)}))

    ended, text = run(house, shell("id -un; cat /proc/self/cgroup"))

    assert text.startswith("nobody\n")
    assert f"job-{ended.id}" in text


def test_directories_that_are_made_for_a_job_are_its_own(house: House) -> None:
    ended, written = run(house, shell("touch here; stat -c %U . ..", cwd="a/b", make_cwd=True))

    assert (ended.state, written) == (JobState.SUCCEEDED, "nobody\nnobody\n")
