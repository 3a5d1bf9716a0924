"""One job after the other, with real processes: how they end, and how they are ended."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from jobrunner.clock import utc_now
from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import CancelRequest, ErrorCode
from jobrunner.domain.states import JobState
from jobrunner.executor.ledger import Ledger
from jobrunner.executor.run import Run
from jobrunner.hints import Hint
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from tests.factories import CALLER, argv, is_dead, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import (
    Clock,
    LostHints,
    background,
    claim,
    get,
    is_alive,
    make_executor,
    pid_of,
    scratch,
    started,
    stdout,
    wait,
)
from tests.service import eventually

IGNORES_TERM = "trap '' TERM; echo > ready; while :; do sleep 0.1; done"
RUNS_ON = "echo > ready; exec sleep 60"


# ── the end of a job ──


def test_a_job_ends_with_the_exit_code_of_its_process(house: House) -> None:
    job = make_job(house, shell("exit 7"))

    with running_executor(house):
        ended = house.jobs.wait(job, CALLER, 10)

    assert ended.state is JobState.FAILED
    assert ended.status is not None
    assert ended.status.code == 7


@pytest.mark.parametrize(
    ("command", "state", "status"),
    [
        ("true", JobState.SUCCEEDED, ExitStatus(code=0)),
        ("exit 255", JobState.FAILED, ExitStatus(code=255)),
        ("exit 143", JobState.FAILED, ExitStatus(code=143)),
        ("kill -TERM $$", JobState.FAILED, ExitStatus(signal=signal.SIGTERM)),
        ("kill -KILL $$", JobState.FAILED, ExitStatus(signal=signal.SIGKILL)),
    ],
)
def test_a_code_and_a_signal_are_told_apart(house: House, command: str, state: JobState, status: ExitStatus) -> None:
    job = make_job(house, shell(command))

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status, ended.error, ended.signals) == (state, status, None, ())
    assert job.created_at <= ended.started_at <= ended.finished_at  # type: ignore[operator]


def test_what_can_not_be_started_has_failed_without_a_status(house: House) -> None:
    jobs = [make_job(house, argv("/no/such/program")), make_job(house, shell("true", cwd="/no/such/directory"))]

    with running_executor(house):
        ended = [wait(house, job) for job in jobs]

    assert [job.state for job in ended] == [JobState.FAILED] * 2
    assert [job.status for job in ended] == [None] * 2
    assert [job.error and job.error.code for job in ended] == [ErrorCode.NOT_FOUND, ErrorCode.BAD_CWD]


def test_merged_streams_keep_their_order(house: House) -> None:
    text = "for i in 1 2 3 4 5; do echo out$i; echo err$i >&2; done"
    job = make_job(house, shell(text, merge_stderr=True))

    with running_executor(house):
        ended = wait(house, job)

    expected = "".join(f"out{i}\nerr{i}\n" for i in range(1, 6))
    assert stdout(house, job) == expected
    assert (ended.stdout_bytes, ended.stderr_bytes) == (len(expected), 0)


def test_a_job_is_ended_by_the_end_of_its_process_not_of_its_streams(new_house: NewHouse) -> None:
    """A grandchild that holds stdout open does not keep the job running."""
    house = new_house(executor={"kill_leftovers": False})
    job = make_job(house, shell("sleep 60 & echo $! > pid; exit 3"))

    with running_executor(house):
        ended = wait(house, job, 5)

    assert ended.status == ExitStatus(code=3)
    assert is_alive(int(started(house, job, "pid"))), "kill_leftovers = no leaves it"


def test_what_an_ended_job_left_in_its_process_group_is_killed(house: House) -> None:
    job = make_job(house, shell("sleep 60 & echo $! > pid; exit 3"))

    with running_executor(house):
        ended = wait(house, job)

    assert ended.status == ExitStatus(code=3)
    assert eventually(lambda: is_dead(int(started(house, job, "pid"))))


# ── timeout ──


def test_a_job_that_takes_too_long_is_told_to_end(house: House) -> None:
    job = make_job(house, shell("trap 'exit 5' TERM; while :; do sleep 0.05; done", timeout=0.5, grace=30))

    with running_executor(house):
        ended = wait(house, job)

    assert ended.state is JobState.TIMED_OUT
    assert ended.status == ExitStatus(code=5), "what the process itself said"
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM]
    assert ended.started_at is not None
    assert 0.5 <= (ended.signals[0].at - ended.started_at).total_seconds() < 2


def test_a_job_that_ignores_its_timeout_is_killed_after_the_grace_period(house: House) -> None:
    job = make_job(house, shell(f"sleep 60 & echo $! > pid; {IGNORES_TERM}", timeout=0.5, grace=0.5))

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.status) == (JobState.TIMED_OUT, ExitStatus(signal=signal.SIGKILL))
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]
    assert 0.5 <= (ended.signals[1].at - ended.signals[0].at).total_seconds() < 2
    assert eventually(lambda: is_dead(int(started(house, job, "pid")))), "a child in its group lives on"


def test_a_timeout_without_grace_kills_at_once(house: House) -> None:
    job = make_job(house, shell(IGNORES_TERM, timeout=0.3, grace=0))

    with running_executor(house):
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.TIMED_OUT, ExitStatus(signal=signal.SIGKILL))


# ── cancel ──


def test_a_running_job_is_canceled(house: House) -> None:
    job = make_job(house, shell(f"sleep 60 & echo $! > pid; {RUNS_ON}"))

    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGTERM))
    assert ended.cancel is not None
    assert ended.cancel.by == "tester"
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM]
    assert eventually(lambda: is_dead(int(started(house, job, "pid"))))


def test_a_canceled_job_that_ignores_it_is_killed_after_the_grace_period(house: House) -> None:
    job = make_job(house, shell(IGNORES_TERM, grace=60))

    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0.4))
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGKILL))
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]
    assert 0.4 <= (ended.signals[1].at - ended.signals[0].at).total_seconds() < 2


def test_a_cancel_may_name_the_signal(house: House) -> None:
    job = make_job(house, shell("trap 'exit 8' INT; echo > ready; while :; do sleep 0.05; done"))

    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked(signal="SIGINT"))
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(code=8))
    assert [sent.signal for sent in ended.signals] == [signal.SIGINT]


@pytest.mark.parametrize(
    "again", [CancelAsked(grace=0), CancelAsked(signal="SIGKILL")], ids=["without grace", "with SIGKILL"]
)
def test_a_repeated_cancel_may_hurry(house: House, again: CancelAsked) -> None:
    job = make_job(house, shell(IGNORES_TERM, grace=60))

    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        assert eventually(lambda: get(house, job).signals)
        house.jobs.cancel(job.id, CALLER, again)
        ended = wait(house, job, 5)

    assert (ended.state, ended.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGKILL))
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]


def test_a_repeated_cancel_sends_no_second_term_and_gives_no_more_time(house: House) -> None:
    text = "trap 'echo got >> terms' TERM; echo > ready; while :; do sleep 0.05; done"
    job = make_job(house, shell(text, grace=60))

    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=1.5))
        assert eventually(lambda: get(house, job).signals)
        for _ in range(3):
            house.jobs.cancel(job.id, CALLER, CancelAsked(grace=50))
        ended = wait(house, job, 10)

    assert (scratch(house, job) / "terms").read_text() == "got\n"
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]


def test_a_cancel_during_the_grace_period_of_a_timeout_does_not_change_the_reason(house: House) -> None:
    job = make_job(house, shell(IGNORES_TERM, timeout=0.5, grace=60))

    with running_executor(house):
        assert eventually(lambda: get(house, job).signals)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
        ended = wait(house, job, 5)

    assert ended.state is JobState.TIMED_OUT


def test_a_queued_job_is_canceled_without_ever_running(house: House) -> None:
    job = make_job(house, shell("echo > ready"))
    house.jobs.cancel(job.id, CALLER, CancelAsked())
    after = make_job(house)

    with running_executor(house):
        wait(house, after)

    assert get(house, job).state is JobState.CANCELED
    assert not scratch(house, job).exists()


def test_a_cancel_is_seen_within_a_moment_when_its_hint_is_lost(new_house: NewHouse) -> None:
    house = new_house()
    vars(house)["hints"] = LostHints(house.data_dir / "run")
    job = make_job(house, shell(RUNS_ON))

    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        assert wait(house, job, 5).state is JobState.CANCELED


def test_a_cancel_whose_hint_is_lost_is_seen_in_a_stream_of_submissions(new_house: NewHouse) -> None:
    """A lost hint costs a quarter of a second, whatever other hints arrive meanwhile."""
    house = new_house()
    heard = house.hints
    job = make_job(house, shell(RUNS_ON))
    stop = threading.Event()

    def submissions() -> None:
        while not stop.wait(0.05):
            heard.wake_executor(Hint.QUEUED)

    thread = threading.Thread(target=submissions)
    with running_executor(house):
        started(house, job)
        thread.start()
        deaf = new_house()
        vars(deaf)["hints"] = LostHints(house.data_dir / "run")
        try:
            deaf.jobs.cancel(job.id, CALLER, CancelAsked())
            assert eventually(lambda: get(house, job).state.is_ended, within=3), "nobody looks for cancels any more"
        finally:
            stop.set()
            thread.join()


# ── signals ──


def test_each_signal_is_delivered_once_and_in_order(house: House) -> None:
    text = "trap 'echo usr1 >> got' USR1; trap 'echo hup >> got' HUP; echo > ready; while :; do sleep 0.05; done"
    job = make_job(house, shell(text))
    got = scratch(house, job) / "got"

    with running_executor(house):
        started(house, job)
        for sent, expected in (("USR1", "usr1\n"), ("SIGHUP", "usr1\nhup\n"), ("USR1", "usr1\nhup\nusr1\n")):
            house.jobs.signal(job.id, CALLER, sent)
            assert eventually(lambda: got.exists() and got.read_text() == expected), got.read_text()  # noqa: B023
        house.jobs.signal(job.id, CALLER, "KILL")
        ended = wait(house, job, 5)

    assert got.read_text() == "usr1\nhup\nusr1\n"
    assert (ended.state, ended.status) == (JobState.FAILED, ExitStatus(signal=signal.SIGKILL))
    assert ended.cancel is None


def test_a_signal_that_the_executor_has_taken_is_sent_though_it_leaves_at_that_moment(house: House) -> None:
    """It is in the database no more, so the next executor can't."""
    job = make_job(house, shell("exec sleep 60"))
    run = Run(claim(house), make_executor(house)._runs._around)

    run.send(signal.SIGTERM)
    run.give_up()
    assert run.execute() is None
    run.leave()

    assert eventually(lambda: is_dead(pid_of(house, job)), within=5)


def test_what_a_job_is_told_is_written_down_before_it_is_sent(house: House) -> None:
    """An executor that finds the job dead knows then of what, though the one before was killed in between."""
    job = make_job(house, shell(RUNS_ON))
    was_alive: list[bool] = []

    class Looking(Ledger):
        """Looks whether the job is alive whenever something is written down."""

        def record_signals(self, *_: object) -> None:
            was_alive.append(not eventually(lambda: is_dead(pid_of(house, job)), within=0.3))

    ledger = Looking("looking", house.database, utc_now, lambda: False)
    run = Run(claim(house), replace(make_executor(house)._runs._around, ledger=ledger))
    run.cancel(CancelRequest("tester", utc_now(), signal.SIGTERM))
    end = run.execute()
    run.release()

    assert end is not None
    assert (end.state, end.status) == (JobState.CANCELED, ExitStatus(signal=signal.SIGTERM))
    assert was_alive == [True]


# ── the wall clock ──


@pytest.mark.parametrize("jump", [timedelta(days=1), timedelta(days=-1)], ids=["ahead", "back"])
def test_a_jump_of_the_wall_clock_ends_no_job(house: House, jump: timedelta) -> None:
    clock = Clock()
    short = make_job(house, shell("echo > ready; while [ ! -e go ]; do sleep 0.05; done", timeout=60))

    with background(make_executor(house, now=clock), house.executor_lock):
        started(house, short)
        clock.ahead = jump
        after = make_job(house)
        wait(house, after)
        (scratch(house, short) / "go").touch()
        ended = wait(house, short)

    assert ended.state is JobState.SUCCEEDED
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.finished_at >= ended.started_at


@pytest.mark.parametrize("jump", [timedelta(days=1), timedelta(days=-1)], ids=["ahead", "back"])
def test_a_jump_of_the_wall_clock_moves_no_deadline(house: House, jump: timedelta) -> None:
    clock = Clock()
    job = make_job(house, shell(IGNORES_TERM, timeout=1, grace=0.3))

    with background(make_executor(house, now=clock), house.executor_lock):
        started(house, job)
        clock.ahead = jump
        assert not get(house, job).state.is_ended
        ended = wait(house, job, 5)

    assert ended.state is JobState.TIMED_OUT
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.finished_at >= ended.started_at


# ── what others may ask of a run at any time ──


def test_a_job_ends_well_when_it_is_canceled_at_the_moment_of_its_end(new_house: NewHouse) -> None:
    """Whoever cancels, and the end, race: the executor must survive each order of events."""
    house = new_house(executor={"max_running": 8})
    jobs = [make_job(house, shell("exec sleep 0.01")) for _ in range(150)]

    with background(make_executor(house), house.executor_lock) as executor:
        for job in jobs:
            assert eventually(lambda: get(house, job).state is not JobState.QUEUED, every=0.001)  # noqa: B023
            house.jobs.cancel(job.id, CALLER, CancelAsked())
        ended = [wait(house, job) for job in jobs]
        assert executor.failure is None

    assert {job.state for job in ended} <= {JobState.SUCCEEDED, JobState.CANCELED}


@pytest.mark.parametrize("finish", [Run.release, Run.leave], ids=["released", "left"])
def test_who_comes_too_late_to_a_run_does_no_harm(house: House, finish: Callable[[Run], None]) -> None:
    """The executor's thread may have looked a run up just before its own thread closed everything.

    The descriptors may have become another job's by then.
    """
    make_job(house)
    run = Run(claim(house), make_executor(house)._runs._around)
    assert run.execute() is not None
    finish(run)
    others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    try:
        run.cancel(CancelRequest("tester", utc_now(), signal.SIGTERM))
        run.send(signal.SIGTERM)
        run.give_up()
        for fd in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fd)
    finally:
        for fd in others:
            os.close(fd)


def test_the_pid_is_written_down_as_soon_as_a_job_runs(house: House) -> None:
    job = make_job(house, shell(RUNS_ON))

    with running_executor(house):
        started(house, job)
        pid = pid_of(house, job)
        assert os.getsid(pid) == pid
        assert oct(Path(house.spool.path(job.id)).stat().st_mode & 0o777) == "0o700"
        house.jobs.cancel(job.id, CALLER, CancelAsked(signal="KILL"))
        wait(house, job)
