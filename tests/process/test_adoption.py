"""What an executor finds that another has left: jobs that run on, that never ran, that are gone."""

import json
import logging
import os
import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from jobrunner.clock import utc_now
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, Job, SentSignal
from jobrunner.domain.states import JobState
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.store import execution
from tests.factories import CALLER, is_dead, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import (
    Clock,
    ExecutorProcess,
    background,
    claim,
    count,
    get,
    is_alive,
    make_executor,
    pid_of,
    process_file,
    scratch,
    started,
    stdout,
    wait,
)
from tests.service import eventually

GATED = "echo > ready; while [ ! -e go ]; do sleep 0.05; done"
IGNORES_TERM = "trap '' TERM; echo > ready; while :; do sleep 0.05; done"


def open_gate(house: House, job: Job) -> None:
    (scratch(house, job) / "go").touch()


def left_running(house: House, text: str, **members: float) -> Job:
    """Have an executor start a job, and stop."""
    job = make_job(house, shell(text, **members))
    with running_executor(house):
        started(house, job)
        pid_of(house, job)
    assert get(house, job).state is JobState.RUNNING
    return job


# ── a job that runs on ──


@pytest.mark.parametrize(
    ("text", "status"),
    [("exit 0", ExitStatus(code=0)), ("exit 42", ExitStatus(code=42)), ("kill -QUIT $$", ExitStatus(signal=3))],
)
def test_a_job_survives_its_executor_and_ends_exactly_under_the_next(
    house: House, text: str, status: ExitStatus
) -> None:
    job = left_running(house, f"echo before; {GATED}; echo after; ulimit -c 0; {text}")
    assert is_alive(pid_of(house, job))

    with running_executor(house):
        open_gate(house, job)
        ended = wait(house, job)

    assert ended.status == status
    assert ended.state is (JobState.SUCCEEDED if status.ok else JobState.FAILED)
    assert stdout(house, job) == "before\nafter\n"


def test_a_job_that_ended_between_two_executors_is_told_exactly_while_it_is_a_zombie(house: House) -> None:
    job = left_running(house, f"{GATED}; exit 17")
    open_gate(house, job)
    assert eventually(lambda: is_dead(pid_of(house, job)))

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(code=17))


def test_a_job_that_ended_and_was_reaped_between_two_executors_is_lost(house: House) -> None:
    """Nobody can tell its status any more, and it must not be guessed."""
    job = left_running(house, f"{GATED}; exit 0")
    open_gate(house, job)
    os.waitpid(pid_of(house, job), 0)

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.LOST, None)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.WORKER_LOST


def test_twenty_jobs_survive_a_crash_of_their_executor(new_house: NewHouse) -> None:
    house = new_house(executor={"max_running": 20})
    jobs = [make_job(house, shell(f"{GATED}; exit $JOBRUNNER_JOB_NUMBER")) for _ in range(20)]
    with ExecutorProcess(house, max_running=20) as executor:
        for job in jobs:
            started(house, job)
            pid_of(house, job)
        executor.crash()

    with ExecutorProcess(house, max_running=20) as executor:
        assert eventually(lambda: executor.log.read_text().count("adopted process") == 20)
        for job in jobs:
            open_gate(house, job)
        ended = [wait(house, job) for job in jobs]

    assert [job.status for job in ended] == [ExitStatus(code=job.number) for job in jobs]
    assert "Traceback" not in executor.log.read_text()


def test_adopted_jobs_take_slots(new_house: NewHouse) -> None:
    """Even when there are fewer slots now than jobs that run."""
    before = new_house(executor={"max_running": 3})
    jobs = [make_job(before, shell(GATED)) for _ in range(3)]
    with running_executor(before):
        for job in jobs:
            started(before, job)
            pid_of(before, job)
    house = new_house(executor={"max_running": 2})
    waiting = make_job(house, shell(GATED))

    with running_executor(house):
        open_gate(house, jobs[0])
        wait(house, jobs[0])
        assert count(house, JobState.RUNNING) == 2
        assert get(house, waiting).state is JobState.QUEUED
        open_gate(house, jobs[1])
        started(house, waiting)
        for job in (jobs[2], waiting):
            open_gate(house, job)
            wait(house, job)


# ── what was due goes on ──


def test_a_restart_gives_a_job_no_more_time(house: House) -> None:
    job = left_running(house, GATED, timeout=1.5)

    with running_executor(house):
        ended = wait(house, job, 5)

    assert ended.state is JobState.TIMED_OUT
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert 1.5 <= (ended.finished_at - ended.started_at).total_seconds() < 3


def test_a_restart_gives_a_job_no_more_time_when_the_wall_clock_was_set_back_meanwhile(house: House) -> None:
    """No more than its whole timeout, whatever the clock says."""
    job = left_running(house, GATED, timeout=1)

    with background(make_executor(house, now=Clock(timedelta(days=-1))), house.executor_lock):
        assert eventually(lambda: get(house, job).state is JobState.TIMED_OUT, within=5)


def test_a_job_is_killed_after_the_rest_of_its_grace_period(house: House) -> None:
    job = make_job(house, shell(IGNORES_TERM, timeout=0.5, grace=2))
    with running_executor(house):
        assert eventually(lambda: get(house, job).signals)
    assert get(house, job).state is JobState.RUNNING

    with running_executor(house):
        ended = wait(house, job, 8)

    assert (ended.state, ended.status) == (JobState.TIMED_OUT, ExitStatus(signal=signal.SIGKILL))
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]
    assert 2 <= (ended.signals[1].at - ended.signals[0].at).total_seconds() < 3.5


def test_a_cancel_while_no_executor_ran_is_done_by_the_next(house: House) -> None:
    job = left_running(house, GATED)
    house.jobs.cancel(job.id, CALLER, CancelAsked())

    with running_executor(house):
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGTERM))
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM]


def test_a_cancel_that_was_begun_is_finished_and_not_begun_again(house: House) -> None:
    text = "trap 'echo got >> terms' TERM; echo > ready; while :; do sleep 0.05; done"
    job = make_job(house, shell(text))
    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=1.5))
        assert eventually(lambda: get(house, job).signals)
        started(house, job, "terms")

    with running_executor(house):
        ended = wait(house, job, 8)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGKILL))
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]
    assert (scratch(house, job) / "terms").read_text() == "got\n"


def test_a_job_that_may_not_have_got_its_sigkill_gets_it_from_the_next_executor(house: House) -> None:
    """The executor has written down that it sends it, and was killed."""
    job = make_job(house, shell(IGNORES_TERM, grace=60))
    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        assert eventually(lambda: get(house, job).signals)
    left = get(house, job)
    assert left.executor is not None
    signals = (*left.signals, SentSignal(signal.SIGKILL, utc_now()))
    with house.database.write() as connection:
        execution.record_signals(connection, job.number, left.executor, signals, ending=JobState.CANCELED)

    with running_executor(house):
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGKILL))
    assert ended.signals == signals


@pytest.mark.parametrize(
    "again", [CancelAsked(grace=0), CancelAsked(signal="SIGKILL")], ids=["without grace", "with SIGKILL"]
)
def test_a_repeated_cancel_hurries_an_adopted_job(house: House, again: CancelAsked) -> None:
    """The first was begun by the executor before; the second came while there was none."""
    job = make_job(house, shell(IGNORES_TERM, grace=60))
    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        assert eventually(lambda: get(house, job).signals)
    house.jobs.cancel(job.id, CALLER, again)

    with running_executor(house):
        assert eventually(lambda: get(house, job).state is JobState.CANCELED, within=5)


def test_a_timed_out_job_that_was_canceled_later_stays_timed_out_after_adoption(house: House) -> None:
    """As it would without a restart: the first reason counts."""
    job = make_job(house, shell(IGNORES_TERM, timeout=0.5, grace=60))
    with running_executor(house):
        assert eventually(lambda: get(house, job).signals)
    house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))

    with running_executor(house):
        ended = wait(house, job, 5)

    assert ended.state is JobState.TIMED_OUT


def test_an_adopted_job_ends_as_it_was_told_and_not_as_the_order_of_events_suggests(house: House) -> None:
    """Its time was up before its executor had seen that somebody had canceled it a moment earlier."""
    job = make_job(house, shell(IGNORES_TERM, grace=0.5))
    with running_executor(house):
        started(house, job)
        pid_of(house, job)
    house.jobs.cancel(job.id, CALLER, CancelAsked(grace=60))
    left = get(house, job)
    assert left.executor is not None
    with house.database.write() as connection:
        sent = (SentSignal(signal.SIGTERM, utc_now()),)
        execution.record_signals(connection, job.number, left.executor, sent, ending=JobState.TIMED_OUT)

    with running_executor(house):
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.TIMED_OUT, ExitStatus(signal=signal.SIGKILL))
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]


def test_a_signal_sent_while_no_executor_ran_is_delivered_by_the_next(house: House) -> None:
    job = left_running(house, f"trap 'echo got >> got' USR1; {GATED}")
    house.jobs.signal(job.id, CALLER, "USR1")

    with running_executor(house):
        assert started(house, job, "got") == "got"
        open_gate(house, job)
        assert wait(house, job).state is JobState.SUCCEEDED

    assert (scratch(house, job) / "got").read_text() == "got\n"


def test_what_an_adopted_job_left_in_its_process_group_is_killed(house: House) -> None:
    """As with a job of one's own (``kill_leftovers``)."""
    job = left_running(house, f"sleep 60 & echo $! > pid; {GATED}; exit 4")

    with running_executor(house):
        open_gate(house, job)
        ended = wait(house, job)

    assert ended.status == ExitStatus(code=4)
    assert eventually(lambda: is_dead(int(started(house, job, "pid"))), within=3)


def test_a_crash_does_not_spare_what_a_job_leaves(house: House) -> None:
    """As above, with a parent that reaps the job before anybody can look."""
    job = make_job(house, shell(f"sleep 60 & echo $! > pid; {GATED}; exit 4"))
    with ExecutorProcess(house) as executor:
        started(house, job)
        pid_of(house, job)
        executor.crash()

    with running_executor(house):
        open_gate(house, job)
        ended = wait(house, job)

    assert ended.status == ExitStatus(code=4)
    assert eventually(lambda: is_dead(int(started(house, job, "pid"))), within=3)


# ── a job that was claimed, and no more ──


@pytest.mark.parametrize("prepared", [False, True], ids=["no directory", "a directory without streams"])
def test_a_job_that_was_claimed_but_never_started_is_run_once(house: House, tmp_path: Path, prepared: bool) -> None:
    job = make_job(house, shell(f"echo run >> {tmp_path}/log"))
    claim(house)
    if prepared:
        house.spool.prepare(job.id, ())
        (scratch(house, job) / "half").touch()

    with running_executor(house):
        ended = wait(house, job)

    assert ended.state is JobState.SUCCEEDED
    assert (tmp_path / "log").read_text() == "run\n"
    assert not (scratch(house, job) / "half").exists()


def test_a_job_that_was_canceled_between_its_claim_and_its_start_is_never_started(house: House, tmp_path: Path) -> None:
    """Whoever waits for its end is told, as of any other."""
    job = make_job(house, shell(f"echo run >> {tmp_path}/log"))
    claim(house)
    assert house.jobs.cancel(job.id, CALLER, CancelAsked()).state is JobState.RUNNING

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.started_at, ended.status) == (JobState.CANCELED, None, None)
    assert not (tmp_path / "log").exists()


def test_a_job_that_may_have_run_is_lost_and_not_run_again(house: House, tmp_path: Path) -> None:
    job = make_job(house, shell(f"echo run >> {tmp_path}/log"))
    claim(house)
    house.spool.prepare(job.id, ())
    house.spool.open_streams(job.id, stdin=False, merge_stderr=False).close()

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.LOST, None)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.WORKER_LOST
    assert not (tmp_path / "log").exists()


def test_a_queued_job_that_may_have_run_is_lost_and_not_run_again(house: House, tmp_path: Path) -> None:
    """After a power cut: its directory was on the disk, the claim was not."""
    job = make_job(house, shell(f"echo run >> {tmp_path}/log"))
    house.spool.prepare(job.id, ())
    house.spool.open_streams(job.id, stdin=False, merge_stderr=False).close()

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.LOST, None)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.HOST_REBOOTED
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_process_without_a_record_is_found_by_its_cookie(
    house: House, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    """The executor died between the start and the writing of the record."""
    job = left_running(house, f"{GATED}; exit 23")
    pid = pid_of(house, job)
    process_file(house, job).unlink()
    if content is not None:
        process_file(house, job).write_bytes(content)

    caplog.set_level(logging.INFO)
    with running_executor(house):
        # A zombie would have no environment any more.
        assert eventually(lambda: f"adopted process {pid}" in caplog.text)
        open_gate(house, job)
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(code=23))


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_process_that_was_found_by_its_cookie_is_known_from_then_on(
    house: House, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    """Once it has ended its cookie can't be read any more; that of what it has left in another session can."""
    job = left_running(house, f"setsid sleep 60 & {GATED}; exit 23")
    process_file(house, job).unlink()
    if content is not None:
        process_file(house, job).write_bytes(content)
    caplog.set_level(logging.INFO)
    with running_executor(house):
        assert eventually(lambda: "adopted process" in caplog.text)
    pid = pid_of(house, job)
    open_gate(house, job)
    assert eventually(lambda: is_dead(pid))

    with running_executor(house):
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(code=23))


def test_what_a_lost_job_has_left_behind_is_ended(house: House) -> None:
    """The executor died before it could write down the process, which ended before the next one came."""
    job = left_running(house, f"sleep 60 & echo $! > left; {GATED}; exit 0")
    pid = pid_of(house, job)
    process_file(house, job).unlink()
    open_gate(house, job)
    os.waitpid(pid, 0)

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.LOST, None)
    assert is_dead(int(started(house, job, "left")))


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_a_damaged_record_is_as_good_as_none(house: House, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    job = left_running(house, f"{GATED}; exit 24")
    pid = pid_of(house, job)
    process_file(house, job).write_bytes(content)

    caplog.set_level(logging.INFO)
    with running_executor(house):
        # A zombie would have no environment any more.
        assert eventually(lambda: f"adopted process {pid}" in caplog.text)
        open_gate(house, job)
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(code=24))


def test_a_job_of_another_boot_is_lost(house: House) -> None:
    job = left_running(house, GATED)
    record = json.loads(process_file(house, job).read_bytes())
    record["boot_id"] = "00000000-0000-0000-0000-000000000000"
    process_file(house, job).write_text(json.dumps(record))

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.LOST, None)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.HOST_REBOOTED
    assert is_alive(record["pid"]), "it belongs to somebody else"


def test_another_process_with_the_same_pid_is_neither_watched_nor_killed(house: House) -> None:
    job = left_running(house, GATED)
    pid = pid_of(house, job)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as other:
        record = json.loads(process_file(house, job).read_bytes())
        process_file(house, job).write_text(
            json.dumps({**record, "pid": other.pid, "start_ticks": record["start_ticks"] - 100})
        )

        with running_executor(house):
            ended = wait(house, job)

        assert (ended.state, ended.status) == (JobState.LOST, None)
        assert is_alive(other.pid)
        other.kill()
