"""Many jobs at a time: slots, the order of the queue, bursts, stopping, storage that refuses."""

import os
import resource
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import Job
from jobrunner.domain.states import JobState, Priority
from jobrunner.executor.run import Run
from jobrunner.executor.slots import Threads
from jobrunner.executor.surroundings import Surroundings
from jobrunner.hints import Hints
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.store import execution
from tests.factories import CALLER, is_dead, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import (
    ExecutorProcess,
    LostHints,
    all_ended,
    background,
    count,
    get,
    is_alive,
    make_executor,
    open_descriptors,
    pid_of,
    process_file,
    scratch,
    started,
    wait,
)
from tests.service import eventually


def make_jobs(house: House, number: int, text: str = "true") -> list[Job]:
    return [make_job(house, shell(text)) for _ in range(number)]


# ── slots ──


def test_all_slots_are_used_and_never_more(new_house: NewHouse, tmp_path: Path) -> None:
    house = new_house(executor={"max_running": 3})
    log = tmp_path / "log"
    jobs = make_jobs(house, 15, f"echo + >> {log}; sleep 0.1; echo - >> {log}")

    with running_executor(house):
        ended = [wait(house, job) for job in jobs]

    assert {job.state for job in ended} == {JobState.SUCCEEDED}
    at_once, most = 0, 0
    for line in log.read_text().split():
        at_once += 1 if line == "+" else -1
        most = max(most, at_once)
    assert most == 3


def test_the_queue_is_ordered_by_priority_and_then_by_number(new_house: NewHouse, tmp_path: Path) -> None:
    house = new_house(executor={"max_running": 1})
    order = [Priority.LOW, Priority.NORMAL, Priority.HIGH] * 4
    text = f"echo $JOBRUNNER_JOB_NUMBER >> {tmp_path}/log"
    jobs = [make_job(house, shell(text, priority=priority)) for priority in order]

    with running_executor(house):
        assert eventually(lambda: all_ended(house))

    wanted = sorted(jobs, key=lambda job: (job.spec.priority.rank, job.number))
    assert list(map(int, (tmp_path / "log").read_text().split())) == [job.number for job in wanted]


def test_a_job_that_is_more_urgent_overtakes_those_that_wait(new_house: NewHouse, tmp_path: Path) -> None:
    house = new_house(executor={"max_running": 1})
    first = make_job(house, shell("echo > ready; while [ ! -e go ]; do sleep 0.02; done"))
    text = f"echo $JOBRUNNER_JOB_NUMBER >> {tmp_path}/log"

    with running_executor(house):
        started(house, first)
        slow = make_job(house, shell(text, priority=Priority.LOW))
        urgent = make_job(house, shell(text, priority=Priority.HIGH))
        (scratch(house, first) / "go").touch()
        assert eventually(lambda: all_ended(house))

    assert (tmp_path / "log").read_text().split() == [str(urgent.number), str(slow.number)]


@pytest.mark.parametrize("lost", [False, True], ids=["with hints", "all hints lost"])
def test_in_a_burst_a_slot_goes_on_to_the_next_job_by_itself(new_house: NewHouse, lost: bool) -> None:
    """It would be a pause for each job if all of them were found by who looks for work."""
    house = new_house(executor={"max_running": 4})
    if lost:
        vars(house)["hints"] = LostHints(house.data_dir / "run")
    jobs = make_jobs(house, 150)
    executor = make_executor(house)
    claim, found = executor._ledger.claim, []

    def note(most: int) -> list[Job]:
        claimed = claim(most)
        found.extend(claimed)
        return claimed

    vars(executor._ledger)["claim"] = note
    with background(executor, house.executor_lock):
        assert eventually(lambda: all_ended(house), within=100), f"{count(house, JobState.QUEUED)} jobs still wait"

    assert {get(house, job).state for job in jobs} == {JobState.SUCCEEDED}
    assert 4 <= len(found) < 50


@pytest.mark.parametrize("lost", [False, True], ids=["with hints", "all hints lost"])
def test_jobs_that_come_one_by_one_are_all_run(new_house: NewHouse, lost: bool) -> None:
    """Each comes at the moment when the slots run dry, or nearly so."""
    house = new_house(executor={"max_running": 2})
    if lost:
        vars(house)["hints"] = LostHints(house.data_dir / "run")

    with running_executor(house):
        for index in range(60):
            make_job(house)
            time.sleep(0.0005 * (index % 20))
        assert eventually(lambda: all_ended(house), within=10)

    assert count(house, JobState.SUCCEEDED) == 60


def test_jobs_submitted_while_the_run_directory_can_not_be_used_are_run(new_house: NewHouse) -> None:
    """Somebody has removed the socket under a running executor."""
    house = new_house()

    with running_executor(house):
        wait(house, make_job(house))
        (house.data_dir / "run" / "executor.sock").unlink()
        assert wait(house, make_job(house), 5).state is JobState.SUCCEEDED


def test_two_executors_by_mistake_run_each_job_once(new_house: NewHouse, tmp_path: Path) -> None:
    houses = [new_house(executor={"max_running": 4}) for _ in range(2)]
    first, second = (make_executor(each) for each in houses)

    with background(first, tmp_path / "one.lock") as one, background(second, tmp_path / "two.lock") as two:
        assert one.ready.wait(10)
        assert two.ready.wait(10)
        jobs = make_jobs(houses[0], 200, f"echo $JOBRUNNER_JOB_NUMBER >> {tmp_path}/log")
        assert eventually(lambda: all_ended(houses[0]), within=20)

    runs = Counter(map(int, (tmp_path / "log").read_text().split()))
    assert runs == {job.number: 1 for job in jobs}
    assert {get(houses[0], job).state for job in jobs} == {JobState.SUCCEEDED}


class HeldUpHints(Hints):
    """Telling who waits takes long."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def job_ended(self, job_id: str, *, owes_callback: bool = False) -> None:  # noqa: ARG002 the signature of Hints
        self.reached.set()
        self.go_on.wait(10)


def test_no_signal_is_lost_while_a_slot_goes_on_to_the_next_job(new_house: NewHouse) -> None:
    """The row says that the job runs, so a signal for it is accepted; its process is still to be made."""
    house = new_house(executor={"max_running": 1})
    hints = HeldUpHints(house.data_dir / "run")
    make_job(house)
    job = make_job(house, shell("exec sleep 60"))
    try:
        with background(make_executor(house, hints=hints), house.executor_lock):
            assert hints.reached.wait(10)
            assert get(house, job).state is JobState.RUNNING
            house.jobs.signal(job.id, CALLER, "KILL")
            # Whoever passes it on meanwhile finds no process: it is kept until there is one.
            assert not eventually(lambda: not _has_signals(house), within=1)
            hints.go_on.set()
            assert eventually(lambda: get(house, job).state.is_ended, within=3), "the signal is lost"
    finally:
        hints.go_on.set()
        hints.close()
    assert get(house, job).status == ExitStatus(signal=signal.SIGKILL)


def _has_signals(house: House) -> bool:
    with house.database.read() as connection:
        return bool(execution.list_signals(connection))


def test_threads_and_descriptors_do_not_grow(new_house: NewHouse) -> None:
    house = new_house(executor={"max_running": 4})
    # The database keeps as many connections as were ever needed at once, whenever that was.
    database = house.database.path
    with running_executor(house):
        make_jobs(house, 8, "sleep 0.2")  # all slots at once
        assert eventually(lambda: all_ended(house))
        threads, descriptors = threading.active_count(), open_descriptors(besides=database)

        make_jobs(house, 200)
        assert eventually(lambda: all_ended(house), within=20)

        assert threading.active_count() <= threads
        assert eventually(lambda: open_descriptors(besides=database) <= descriptors)
        # At most one reader a slot, the executor's own and this test's; two files each, three for the writer.
        assert open_descriptors() - open_descriptors(besides=database) <= 2 * (4 + 2) + 5


def test_more_jobs_than_the_usual_number_of_descriptors(new_house: NewHouse) -> None:
    """``max_running`` may be 1024, and so is the usual soft limit of descriptors; a running job holds four."""
    house = new_house()
    with ExecutorProcess(house, "ulimit -Sn 64", max_running=50) as executor:
        jobs = make_jobs(house, 50, "sleep 0.5")
        assert eventually(lambda: all_ended(house) or not executor.is_alive, within=15)

        assert executor.is_alive, executor.log.read_text()[-2000:]
        assert _states(house, jobs) == {JobState.SUCCEEDED: 50}


def _states(house: House, jobs: list[Job]) -> Counter[JobState]:
    return Counter(get(house, job).state for job in jobs)


def test_crashes_during_a_burst_run_nothing_twice(new_house: NewHouse, tmp_path: Path) -> None:
    """What was about to start, or ended unseen, may be lost; most is not."""
    house = new_house()
    jobs = make_jobs(house, 200, f"echo $JOBRUNNER_JOB_NUMBER >> {tmp_path}/log")
    for done in (20, 80):
        with ExecutorProcess(house, max_running=4) as executor:
            assert eventually(lambda: count(house, JobState.SUCCEEDED) >= done, every=0.002)  # noqa: B023
            executor.crash()
    with ExecutorProcess(house, max_running=4) as executor:
        assert eventually(lambda: all_ended(house), within=20)

    states = _states(house, jobs)
    assert set(states) <= {JobState.SUCCEEDED, JobState.LOST}
    assert states[JobState.LOST] <= 8, "not more than ran at the two crashes"
    runs = Counter(map(int, (tmp_path / "log").read_text().split()))
    assert set(runs.values()) == {1}
    assert all(runs[job.number] for job in jobs if get(house, job).state is JobState.SUCCEEDED)
    assert "Traceback" not in executor.log.read_text()


# ── stopping ──


def test_an_executor_that_stops_leaves_no_running_row_without_a_process(new_house: NewHouse) -> None:
    house = new_house(executor={"max_running": 8})
    jobs = make_jobs(house, 150, "sleep 0.02")

    with running_executor(house):
        assert eventually(lambda: count(house, JobState.SUCCEEDED) >= 20, every=0.005)

    seen = [get(house, job) for job in jobs]
    left = [job for job in seen if job.state is JobState.RUNNING]
    assert all(process_file(house, job).exists() for job in left)
    assert not any(Path(house.spool.path(job.id)).exists() for job in seen if job.state is JobState.QUEUED)
    assert {job.state for job in seen} <= {JobState.SUCCEEDED, JobState.RUNNING, JobState.QUEUED}
    assert any(job.state is JobState.QUEUED for job in seen), "it went on with the queue"

    with running_executor(house):
        assert eventually(lambda: all_ended(house), within=20)
    assert {get(house, job).state for job in jobs} == {JobState.SUCCEEDED}


def test_restarts_during_a_burst_lose_nothing_and_run_nothing_twice(new_house: NewHouse, tmp_path: Path) -> None:
    house = new_house(executor={"max_running": 4})
    jobs = make_jobs(house, 150, f"echo $JOBRUNNER_JOB_NUMBER >> {tmp_path}/log")
    for done in range(0, 100, 10):
        with running_executor(house):
            assert eventually(lambda: count(house, JobState.SUCCEEDED) >= done, every=0.002)  # noqa: B023
    with running_executor(house):
        assert eventually(lambda: all_ended(house), within=20)

    assert _states(house, jobs) == {JobState.SUCCEEDED: 150}
    runs = Counter(map(int, (tmp_path / "log").read_text().split()))
    assert runs == {job.number: 1 for job in jobs}


def test_on_stop_kill_ends_running_jobs_in_the_name_of_the_service(new_house: NewHouse) -> None:
    house = new_house(executor={"on_stop": "kill", "max_running": 2, "grace": 0.5})
    polite = make_job(house, shell("trap 'exit 0' TERM; echo > ready; while :; do sleep 0.05; done"))
    stubborn = make_job(house, shell("trap '' TERM; echo > ready; while :; do sleep 0.05; done"))
    waiting = make_job(house)

    with running_executor(house):
        started(house, polite)
        started(house, stubborn)

    ended = [get(house, job) for job in (polite, stubborn)]
    assert [job.state for job in ended] == [JobState.CANCELED] * 2
    assert [job.cancel and job.cancel.by for job in ended] == ["service"] * 2
    assert [job.status for job in ended] == [ExitStatus(code=0), ExitStatus(signal=signal.SIGKILL)]
    assert get(house, waiting).state is JobState.QUEUED


def test_on_stop_kill_does_not_put_itself_in_the_place_of_who_canceled_before(new_house: NewHouse) -> None:
    house = new_house(executor={"on_stop": "kill", "grace": 0.3})
    job = make_job(house, shell("trap '' TERM; echo > ready; while :; do sleep 0.05; done"))

    with running_executor(house):
        started(house, job)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=60))
        assert eventually(lambda: get(house, job).signals)

    ended = get(house, job)
    assert ended.state is JobState.CANCELED
    assert ended.cancel is not None
    assert ended.cancel.by == "tester"


def test_an_executor_may_be_stopped_again_after_it_has_stopped(house: House) -> None:
    """A second SIGTERM may arrive at any time."""
    executor = make_executor(house)
    with background(executor, house.executor_lock):
        wait(house, make_job(house))

    executor.stop()


def test_an_executor_that_waits_for_the_lock_can_be_stopped(new_house: NewHouse) -> None:
    house, other = new_house(), new_house()
    with running_executor(house), running_executor(other):
        wait(house, make_job(house))


def test_an_executor_process_ends_on_sigterm_and_leaves_its_jobs(house: House) -> None:
    job = make_job(house, shell("echo > ready; exec sleep 60"))
    with ExecutorProcess(house) as executor:
        started(house, job)
        pid = pid_of(house, job)
        os.kill(executor.pid, signal.SIGTERM)
        assert executor.process is not None
        assert executor.process.wait(10) == 0

    assert is_alive(pid)
    assert get(house, job).state is JobState.RUNNING
    assert "Traceback" not in executor.log.read_text()


# ── storage that refuses ──


def test_an_end_that_can_not_be_written_is_written_later(house: House) -> None:
    """RLIMIT_FSIZE makes every write of the executor fail, like a disk that has become read-only."""
    with ExecutorProcess(house) as executor:
        jobs = [
            make_job(house, shell(f"echo > ready; while [ ! -e go ]; do sleep 0.02; done; exit {n}")) for n in (0, 3)
        ]
        pids = [pid_of(house, job) for job in jobs]
        for job in jobs:
            started(house, job)
        executor.limit(resource.RLIMIT_FSIZE, 4096)
        for job in jobs:
            (scratch(house, job) / "go").touch()
        assert eventually(lambda: all(is_dead(pid) for pid in pids))
        assert eventually(lambda: executor.log.read_text().count("can't write what became of the job") >= 2)
        late = make_job(house)
        assert [get(house, job).state for job in (*jobs, late)] == [JobState.RUNNING, JobState.RUNNING, JobState.QUEUED]

        executor.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)

        ended = [wait(house, job) for job in (*jobs, late)]
        assert executor.is_alive
    assert [job.status for job in ended] == [ExitStatus(code=0), ExitStatus(code=3), ExitStatus(code=0)]
    assert "Traceback" not in executor.log.read_text()


def test_a_cancel_works_while_nothing_can_be_written(house: House) -> None:
    """What is to be sent is not held up by what is to be remembered."""
    with ExecutorProcess(house) as executor:
        job = make_job(house, shell("trap '' TERM; echo > ready; while :; do sleep 0.05; done", grace=0.3))
        started(house, job)
        pid = pid_of(house, job)
        executor.limit(resource.RLIMIT_FSIZE, 4096)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        assert eventually(lambda: is_dead(pid), within=5)
        executor.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        ended = wait(house, job)

    assert ended.state is JobState.CANCELED
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]


# ── what can't be started ──


class Reluctant:
    """Makes no run of a job, for want of a descriptor, until it has failed so often."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def __call__(self, job: Job, around: Surroundings) -> Run:
        if self.failures:
            self.failures -= 1
            raise OSError(24, "Too many open files")
        return Run(job, around)


FOR_EVER = 1 << 30


def test_a_job_that_can_not_be_started_at_first_is_started_later(house: House) -> None:
    jobs = [make_job(house, shell("exit 3")) for _ in range(5)]

    with background(make_executor(house, make_run=Reluctant(3)), house.executor_lock):
        assert eventually(lambda: all_ended(house))

    assert [get(house, job).status for job in jobs] == [ExitStatus(code=3)] * 5


def test_what_was_never_started_is_queued_again_when_the_executor_stops(house: House) -> None:
    jobs = [make_job(house, shell("exit 3")) for _ in range(3)]
    with background(make_executor(house, make_run=Reluctant(FOR_EVER)), house.executor_lock):
        assert eventually(lambda: all(get(house, job).state is JobState.RUNNING for job in jobs))

    assert [get(house, job).state for job in jobs] == [JobState.QUEUED] * 3
    with running_executor(house):
        assert all(wait(house, job).status == ExitStatus(code=3) for job in jobs)


def test_a_job_that_is_canceled_while_it_can_not_be_started_is_never_started(house: House, tmp_path: Path) -> None:
    reluctant = Reluctant(FOR_EVER)
    executor = make_executor(house, make_run=reluctant)
    job = make_job(house, shell(f"echo run >> {tmp_path}/log"))
    with background(executor, house.executor_lock):
        assert eventually(lambda: get(house, job).state is JobState.RUNNING)
        house.jobs.cancel(job.id, CALLER, CancelAsked())
        assert eventually(lambda: job.number in executor._runs.canceled)
        reluctant.failures = 0
        ended = wait(house, job)

    assert (ended.state, ended.started_at, ended.status) == (JobState.CANCELED, None, None)
    assert not (tmp_path / "log").exists()


def test_a_thread_that_fails_gives_its_slot_back() -> None:
    idle: list[str] = []
    threads = Threads(lambda: idle.append("idle"))

    def fail() -> None:
        raise KeyError("a mistake")

    for _ in range(3):
        threads.start(fail)
    assert eventually(lambda: len(idle) == 3)
    threads.close()
    assert threads.join(10)
