"""Jobs of several steps: each runs once, in order, whatever happens to who watches them."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from jobrunner.clock import utc_now
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, Job, StepSpan
from jobrunner.domain.spec import COOKIE, STEP_COOKIE, StepKind
from jobrunner.domain.states import JobState, StepState
from jobrunner.ends import End, EndsFile, Registrar
from jobrunner.house import House
from jobrunner.proc import boot_id, read_stat
from jobrunner.service.jobs import CancelAsked
from jobrunner.service.submission import StepAsked
from jobrunner.spool import ProcessRecord, Spool, StepMark
from jobrunner.store import execution
from tests.factories import CALLER, is_dead, make_job, running_executor, sequence
from tests.process.conftest import NewHouse
from tests.process.running import (
    Clock,
    ExecutorProcess,
    background,
    claim,
    get,
    is_alive,
    make_executor,
    open_descriptors,
    parent_of_orphans,
    pid_of,
    process_file,
    scratch,
    started,
    stdout,
    wait,
)
from tests.service import eventually

RUN = "echo $JOBRUNNER_JOB_STEP >> runs"
"""Writes down that the step has run."""


def gated(name: str) -> str:
    """Make a step that waits for a file."""
    return f"{RUN}; echo > {name}; while [ ! -e go-{name} ]; do sleep 0.02; done"


def open_gate(house: House, job: Job, name: str) -> None:
    (scratch(house, job) / f"go-{name}").touch()


def runs(house: House, job: Job) -> list[int]:
    """Return which steps have run, in that order."""
    path = scratch(house, job) / "runs"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def states(job: Job) -> list[StepState]:
    return [result.state for result in job.step_results()]


GOOD, FAILED, SKIPPED = StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED


# ── one after the other ──


def test_steps_run_in_order_and_write_to_the_same_streams(house: House) -> None:
    job = make_job(house, sequence(*[f"{RUN}; echo out $JOBRUNNER_JOB_STEP"] * 5))
    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status, states(ended)) == (JobState.SUCCEEDED, ExitStatus(code=0), [GOOD] * 5)
    assert runs(house, job) == [0, 1, 2, 3, 4]
    assert stdout(house, job) == "out 0\nout 1\nout 2\nout 3\nout 4\n"
    results = ended.step_results()
    assert results[0].started_at == ended.started_at
    assert results[-1].finished_at == ended.finished_at
    for before, after in pairwise(results):
        assert before.finished_at is not None
        assert after.started_at is not None
        assert before.finished_at <= after.started_at


def test_the_first_step_that_fails_ends_the_job_and_the_rest_are_skipped(house: House) -> None:
    job = make_job(house, sequence(RUN, f"{RUN}; exit 3", RUN, RUN))
    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(code=3))
    assert states(ended) == [GOOD, FAILED, SKIPPED, SKIPPED]
    assert runs(house, job) == [0, 1]


def test_a_step_that_can_not_be_started_fails_the_job_with_what_the_system_says(house: House) -> None:
    absent = StepAsked(StepKind.ARGV, ("/no/such/program",))
    job = make_job(house, sequence("sleep 300 & echo $! > pid", absent, RUN))
    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status, states(ended)) == (JobState.FAILED, None, [GOOD, FAILED, SKIPPED])
    assert ended.error is not None
    assert ended.error.code is ErrorCode.NOT_FOUND
    assert ended.step_results()[1].error == ended.error
    assert eventually(lambda: is_dead(int((scratch(house, job) / "pid").read_text())))


def test_what_a_step_leaves_behind_runs_on_until_the_end_of_the_job(house: House) -> None:
    """Also what has left nothing but its group behind: the first process of its session is reaped late."""
    leave = "sleep 300 & echo $! > a; env -i /bin/sleep 300 & echo $! > b; setsid sleep 300 & echo $! > c"
    job = make_job(house, sequence(leave, gated("second"), "true"))
    with running_executor(house):
        started(house, job, "second")
        left = [int((scratch(house, job) / name).read_text()) for name in "abc"]
        assert all(map(is_alive, left))
        open_gate(house, job, "second")
        assert wait(house, job).state is JobState.SUCCEEDED

    assert eventually(lambda: all(map(is_dead, left)))


def test_nothing_is_left_open_by_many_steps(house: House) -> None:
    with running_executor(house):
        wait(house, make_job(house, sequence("true", "true")))
        before = open_descriptors(besides=house.data_dir)
        job = make_job(house, sequence(*["true & echo >> lines"] * 40, gated("last")))
        started(house, job, "last")
        during = open_descriptors(besides=house.data_dir)
        open_gate(house, job, "last")
        wait(house, job)

        assert during <= before + 3
        assert eventually(lambda: open_descriptors(besides=house.data_dir) <= before)


# ── told to end ──


def test_a_cancel_in_a_later_step_ends_the_job_there(house: House) -> None:
    job = make_job(house, sequence(RUN, f"{RUN}; echo > ready; sleep 300", RUN))
    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGTERM))
    assert states(ended) == [GOOD, StepState.CANCELED, SKIPPED]
    assert runs(house, job) == [0, 1]


def test_a_canceled_step_that_exits_well_is_not_followed_by_another(house: House) -> None:
    polite = f"{RUN}; trap 'exit 0' TERM; echo > ready; while :; do sleep 0.02; done"
    job = make_job(house, sequence(polite, RUN))
    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = wait(house, job)

    assert (ended.state, ended.status, runs(house, job)) == (JobState.CANCELED, ExitStatus(code=0), [0])
    assert states(ended) == [StepState.CANCELED, SKIPPED]


def test_the_timeout_of_the_job_counts_all_its_steps(house: House) -> None:
    job = make_job(house, sequence("sleep 0.3", "sleep 0.3", "sleep 300", RUN, timeout=0.8, grace=0.1))
    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.error) == (JobState.TIMED_OUT, None)
    assert states(ended)[3] is SKIPPED


def test_a_steps_own_timeout_ends_the_job_and_says_which(house: House) -> None:
    slow = StepAsked(StepKind.ARGV, ("sleep", "300"), timeout=0.2)
    quick = StepAsked(StepKind.COMMAND, (RUN,), timeout=60.0)
    job = make_job(house, sequence(quick, slow, RUN))
    with running_executor(house):
        ended = wait(house, job)

    assert ended.state is JobState.TIMED_OUT
    assert ended.error is not None
    assert ended.error.code is ErrorCode.STEP_TIMEOUT
    assert "step 1" in ended.error.detail
    assert states(ended) == [GOOD, StepState.TIMED_OUT, SKIPPED]


def test_a_step_that_writes_too_much_ends_the_job_though_nobody_looked_in_time(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": 1 << 16, "on_limit": "kill"})
    job = make_job(house, sequence("head -c 200000 /dev/zero", RUN))
    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, runs(house, job)) == (JobState.OUTPUT_LIMIT, [])
    assert states(ended) == [StepState.OUTPUT_LIMIT, SKIPPED]


# ── the executor dies ──


def test_an_executor_that_takes_over_goes_on_with_the_step_that_runs(house: House) -> None:
    job = make_job(
        house, sequence(f"{RUN}; echo one", f"{gated('second')}; echo two", f"{RUN}; echo three >&2; echo 3")
    )
    with ExecutorProcess(house) as executor:
        started(house, job, "second")
        pid_of(house, job)
        executor.crash()
    assert get(house, job).state is JobState.RUNNING

    with running_executor(house):
        open_gate(house, job, "second")
        ended = wait(house, job)

    assert (ended.state, ended.status, states(ended)) == (JobState.SUCCEEDED, ExitStatus(code=0), [GOOD] * 3)
    assert runs(house, job) == [0, 1, 2]
    assert stdout(house, job) == "one\ntwo\n3\n"


def test_deadlines_hold_for_an_adopted_step(house: House) -> None:
    slow = StepAsked(StepKind.COMMAND, (f"{RUN}; echo > ready; sleep 300",), timeout=1.0)
    job = make_job(house, sequence(RUN, slow, RUN))
    with ExecutorProcess(house) as executor:
        started(house, job)
        pid_of(house, job)
        executor.crash()

    with running_executor(house):
        ended = wait(house, job)

    assert ended.state is JobState.TIMED_OUT
    assert ended.error is not None
    assert ended.error.code is ErrorCode.STEP_TIMEOUT


def left_in_second(house: House, *more: str) -> Job:
    """Have an executor die while the second of its steps runs."""
    job = make_job(house, sequence(f"{RUN}; setsid sleep 300 &", gated("second"), *more))
    with ExecutorProcess(house) as executor:
        started(house, job, "second")
        assert eventually(lambda: house.spool.load_process(job.id) is not None)
        executor.crash()
    return job


def test_a_step_of_which_no_record_was_written_is_found_by_its_cookie(house: House) -> None:
    """And not mistaken for what another step has left behind, which is older."""
    job = left_in_second(house, RUN)
    record = house.spool.load_process(job.id)
    assert record is not None
    house.spool.mark_step(job.id, StepMark(1, boot_id()))

    with running_executor(house):
        assert eventually(lambda: house.spool.load_process(job.id) == record)
        open_gate(house, job, "second")
        ended = wait(house, job)

    assert (ended.state, runs(house, job)) == (JobState.SUCCEEDED, [0, 1, 2])


class FullDisk(Spool):
    """Takes no records of later steps' processes."""

    def record_process(self, job_id: str, record: ProcessRecord) -> None:
        if record.step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().record_process(job_id, record)


def test_that_a_step_may_run_is_written_down_before_its_process_is_made(house: House) -> None:
    job = make_job(house, sequence(RUN, gated("second"), RUN))
    with background(make_executor(house, spool=FullDisk(house.data_dir)), house.executor_lock):
        started(house, job, "second")
    assert house.spool.load_mark(job.id) == StepMark(1, boot_id())
    assert house.spool.load_process(job.id) is None

    with background(make_executor(house), house.executor_lock):
        assert eventually(lambda: house.spool.load_process(job.id) is not None)
        open_gate(house, job, "second")
        ended = wait(house, job)

    assert (ended.state, runs(house, job)) == (JobState.SUCCEEDED, [0, 1, 2])


def test_a_step_whose_output_has_no_place_any_more_fails_the_job(house: House) -> None:
    """Who takes over has only the name of the file."""
    job = make_job(house, sequence(f"{gated('first')}; ln -sf /etc/motd ../stdout", RUN))
    with ExecutorProcess(house) as executor:
        started(house, job, "first")
        pid_of(house, job)
        executor.crash()
    open_gate(house, job, "first")
    assert eventually(Path(house.spool.path(job.id), "stdout").is_symlink)

    with running_executor(house):
        ended = wait(house, job)

    assert ended.error is not None
    assert (ended.state, ended.error.code) == (JobState.FAILED, ErrorCode.SPAWN_FAILED)
    assert (states(ended), runs(house, job)) == ([GOOD, FAILED], [0])


@pytest.mark.parametrize(
    ("wait_status", "state", "ran"), [(0, JobState.SUCCEEDED, [0, 1, 2]), (9, JobState.FAILED, [0, 1])]
)
def test_a_step_that_ended_while_only_the_supervisor_looked_is_told_and_the_next_one_runs(
    house: House, wait_status: int, state: JobState, ran: list[int]
) -> None:
    with parent_of_orphans():
        job = left_in_second(house, RUN)
        record = house.spool.load_process(job.id)
        assert record is not None
        open_gate(house, job, "second")
        assert eventually(lambda: is_dead(record.pid))
        ends = EndsFile(house.data_dir / "run" / "ends")
        ends.append(End(record.pid, record.start_ticks, wait_status))
        os.waitpid(record.pid, 0)

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, runs(house, job)) == (state, ran)


def test_a_step_that_ended_and_was_reaped_unseen_makes_the_job_lost(house: House) -> None:
    with parent_of_orphans():
        job = left_in_second(house, RUN)
        record = house.spool.load_process(job.id)
        assert record is not None
        open_gate(house, job, "second")
        os.waitpid(record.pid, 0)

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.LOST, None)
    assert states(ended) == [GOOD, StepState.LOST, SKIPPED]
    assert runs(house, job) == [0, 1]


# ── between two steps ──


def between_steps(house: House, **members: float) -> Job:
    """Have an executor die when the end of the first step is in the row, and nothing is done for the second."""
    job = make_job(house, sequence(gated("first"), RUN, RUN, **members))
    with ExecutorProcess(house) as executor:
        started(house, job, "first")
        pid = pid_of(house, job)
        executor.crash()
    open_gate(house, job, "first")
    assert eventually(lambda: is_dead(pid))
    left = get(house, job)
    assert left.started_at is not None
    assert left.executor is not None
    now = utc_now()
    with house.database.write() as connection:
        spans = (StepSpan(left.started_at, now), StepSpan(now))
        assert execution.record_step(connection, job.number, left.executor, spans)
    return job


def test_a_step_that_nobody_has_begun_to_start_is_started_by_the_next_executor(house: House) -> None:
    job = between_steps(house)

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, states(ended)) == (JobState.SUCCEEDED, [GOOD] * 3)
    assert runs(house, job) == [0, 1, 2]


def test_a_step_that_was_about_to_be_started_is_not_started_again(house: House) -> None:
    """It may have run, and ended; nobody can tell."""
    job = between_steps(house)
    house.spool.mark_step(job.id, StepMark(1, boot_id()))

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, states(ended)) == (JobState.LOST, [GOOD, StepState.LOST, SKIPPED])
    assert runs(house, job) == [0]


@pytest.mark.parametrize("content", [None, b'{"step": 7}'])
def test_a_directory_that_does_not_tell_how_far_a_job_has_come_makes_it_lost(
    house: House, content: bytes | None
) -> None:
    job = between_steps(house)
    process_file(house, job).unlink()
    if content is not None:
        process_file(house, job).write_bytes(content)

    with running_executor(house):
        assert wait(house, job).state is JobState.LOST

    assert runs(house, job) == [0]


def test_after_a_reboot_no_further_step_is_started(house: House) -> None:
    job = between_steps(house)
    house.spool.mark_step(job.id, StepMark(0, "another boot"))

    with running_executor(house):
        ended = wait(house, job)

    assert ended.error is not None
    assert (ended.state, ended.error.code, runs(house, job)) == (JobState.LOST, ErrorCode.HOST_REBOOTED, [0])


def test_a_job_that_was_canceled_between_two_steps_begins_no_other(house: House) -> None:
    job = between_steps(house)
    house.jobs.cancel(job.id, CALLER, CancelAsked())

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status, runs(house, job)) == (JobState.CANCELED, None, [0])
    assert states(ended) == [GOOD, StepState.CANCELED, SKIPPED]


def test_a_job_whose_time_is_over_between_two_steps_begins_no_other(house: House) -> None:
    job = between_steps(house, timeout=100.0)

    later = make_executor(house, now=Clock(timedelta(seconds=101)))
    with background(later, house.executor_lock):
        ended = wait(house, job)

    assert (ended.state, ended.status, runs(house, job)) == (JobState.TIMED_OUT, None, [0])


def test_a_step_that_was_recorded_by_another_executor_is_not_ours_to_go_on_with(house: House) -> None:
    job = make_job(house, sequence(RUN, RUN))
    claim(house)

    with house.database.write() as connection:
        now = utc_now()
        assert not execution.record_step(connection, job.number, "somebody else", (StepSpan(now, now), StepSpan(now)))
    assert get(house, job).spans == ()


def test_a_job_that_has_begun_a_later_step_is_never_queued_again(house: House) -> None:
    job = between_steps(house)
    owner = get(house, job).executor
    assert owner is not None

    with house.database.write() as connection:
        assert execution.requeue_job(connection, job.number, owner) is None
    assert get(house, job).state is JobState.RUNNING


def test_the_supervisor_tells_steps_apart(house: House) -> None:
    path = house.data_dir / "run" / "some-ends"
    ends = EndsFile(path)
    with parent_of_orphans():
        pid = os.posix_spawn("/bin/sleep", ["sleep", "300"], {COOKIE: "a-job", STEP_COOKIE: "2"}, setsid=True)
        try:
            assert eventually(lambda: (stat := read_stat(pid)) is not None and stat.session == pid)
            assert eventually(lambda: Path(f"/proc/{pid}/environ").read_bytes().startswith(COOKIE.encode()))
            Registrar(ends).record_orphans(but=(), executor=[])
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    assert ends.find_orphan("a-job") is None
    assert ends.find_orphan("a-job", 1) is None
    found = ends.find_orphan("a-job", 2)
    assert found is not None
    assert found.pid == pid


def test_the_supervisor_finds_out_whose_a_process_is_that_its_executor_was_just_making(house: House) -> None:
    """The executor was killed in fork(2), and the new process has yet to become another than it was."""
    ends = EndsFile(house.data_dir / "run" / "some-ends")
    program = (
        "import os, time\n"
        "if os.fork(): os._exit(0)\n"
        "time.sleep(0.1); os.setsid(); time.sleep(0.1)\n"
        f"os.execve('/bin/sleep', ['sleep', '1'], {{'{COOKIE}': 'a-job', '{STEP_COOKIE}': '1'}})"
    )
    executor = [sys.executable, "-c", program]
    with parent_of_orphans():
        subprocess.run(executor, check=True)
        Registrar(ends).record_orphans(but=(), executor=executor)
        pid, _ = os.wait()

    found = ends.find_orphan("a-job", 1)
    assert found is not None
    assert found.pid == pid


# ── at any moment ──


def test_however_often_its_executor_is_killed_no_step_runs_twice(new_house: NewHouse) -> None:
    house = new_house(executor={"max_running": 4})
    jobs = [make_job(house, sequence(*[RUN] * 40)) for _ in range(4)]
    chance = random.Random(5)
    with parent_of_orphans():
        for _ in range(6):
            with ExecutorProcess(house, max_running=4) as executor:
                time.sleep(chance.uniform(0.02, 0.25))
                executor.crash()
        with ExecutorProcess(house, max_running=4):
            ended = [wait(house, job, 60) for job in jobs]

    for job in ended:
        ran = runs(house, job)
        assert ran == list(range(len(ran)))
        if job.state is JobState.SUCCEEDED:
            assert ran == list(range(40))
        else:
            # It died between the mark and the process: the only window in which nobody can know.
            assert job.state is JobState.LOST
            assert len(ran) in {states(job).index(StepState.LOST), states(job).index(StepState.LOST) + 1}
