"""Whatever people and executors do to the rows, in whatever order, and whoever of them is late.

Each step of the machine is one transaction, as the service or the executor
makes it, or one step on the disk; a model in plain Python says what must come
of it. Several executors take part: one that another has taken over from goes
on as if nothing had happened, and one that crashes forgets what it had.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from sqlalchemy import Connection

from jobrunner.domain.access import ADMINISTRATOR, Caller
from jobrunner.domain.errors import JobNotEnded, JobNotFound, JobNotRunning
from jobrunner.domain.exitstatus import ExitStatus, parse_signal
from jobrunner.domain.job import CancelRequest, ErrorCode, IdempotencyKey, Job, JobEnd, JobError, SentSignal
from jobrunner.domain.states import ENDED, TRANSITIONS, JobState, Priority
from jobrunner.domain.streams import Hole, Stream
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.service.submitting import Accepted
from jobrunner.spool import MayHaveRun
from jobrunner.store import execution
from jobrunner.store.rows import to_job
from tests.factories import CALLER, argv, make_house
from tests.integration.stored import at, rows
from tests.machines import SETTINGS, Event, Machine, run_machine

T = TypeVar("T")


class Stage(Enum):
    """How far a thread of an executor is with its job."""

    CLAIMED = auto()
    PREPARED = auto()
    """The job has a directory."""

    TAKEN_OVER = auto()
    """Another executor had claimed it, and may have started it."""

    NEVER_STARTED = auto()
    """As the disk has told who took it over."""

    ENDING = auto()
    """It has a process, or will never have one: its end is to be written down."""


class Hold:
    """What a thread of an executor has in hand: a job that may be another's by now."""

    def __init__(self, executor: str, job: Job, stage: Stage) -> None:
        self.executor = executor
        self.job = job
        self.stage = stage

    def __repr__(self) -> str:
        return f"<job {self.job.number}, {self.stage.name} by {self.executor}>"


priorities = st.sampled_from(Priority)
callers = st.sampled_from([Caller("ann", ADMINISTRATOR), Caller("bob", ADMINISTRATOR)])
signals = st.sampled_from(["SIGTERM", "SIGUSR1", "SIGKILL"])
cancels = st.builds(CancelAsked, signals, st.sampled_from([None, 0.0, 5.0]))
ends = st.builds(
    JobEnd,
    st.sampled_from(sorted(ENDED)),
    st.just(at(0)),
    status=st.sampled_from([None, ExitStatus(code=0), ExitStatus(code=7), ExitStatus(signal=9)]),
    error=st.sampled_from([None, JobError(ErrorCode.WORKER_LOST, "nobody has seen it")]),
    signals=st.sampled_from([(), (SentSignal(15, at(0)),)]),
    stdout_bytes=st.integers(0, 9),
)
KEPT = ("state", "finished_at", "status", "error", "signals", "stdout_bytes", "stderr_bytes")
"""What a job has of its end."""


class Rows(Machine):
    """The store, the spool and the service over an empty data directory, and what must be in them."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        self.seconds = count(1)
        self.identities = count(1)
        self.executors: list[str] = []
        self.holds: list[Hold] = []
        # What the model says, by number.
        self.jobs: dict[int, Job] = {}
        self.deleted: set[int] = set()
        self.keys: dict[str, int] = {}
        self.signals: list[tuple[int, int]] = []
        self.runs: Counter[int] = Counter()
        # The rows after the step before, by number.
        self.seen: dict[int, Any] = {}

    @initialize(priorities=st.lists(priorities, min_size=1, max_size=4))
    def begin(self, priorities: list[Priority]) -> None:
        for priority in priorities:
            self.submit(None, priority)
        self.take_over()

    def teardown(self) -> None:
        with self.house.database.write() as connection:
            for table in ("job", "sqlite_sequence"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        shutil.rmtree(self.house.data_dir / "jobs")
        (self.house.data_dir / "jobs").mkdir()

    def events(self) -> list[Event]:
        found: list[Event] = []
        if len(self.in_state(JobState.QUEUED)) < 4:
            found.append(("submit", {"key": st.sampled_from([None, None, "a", "b"]), "priority": priorities}))
        if known := [*self.jobs, *self.deleted]:
            number = st.sampled_from(known)
            found.append(("cancel", {"number": number, "by": callers, "asked": cancels}))
            found.append(("signal", {"number": number, "name": signals}))
            found.append(("delete", {"number": number, "force": st.booleans()}))
        if self.holds or not self.executors:
            crashing = st.sampled_from([None, None, *self.executors])
            found.append(("change_executors", {"crashing": crashing, "starts": st.booleans()}))
        if self.executors:
            found.append(("claim", {"executor": st.sampled_from(self.executors), "limit": st.integers(1, 3)}))
            found.append(("control", {"executor": st.sampled_from(self.executors)}))
        if self.holds:
            hold = st.sampled_from(self.holds)
            work: Event = ("work", {"hold": hold, "steps": st.integers(1, 4), "end": ends, "limit": st.integers(0, 2)})
            found += [work] * 3
            found.append(("do_something_else", {"hold": hold, "size": st.integers(1, 9)}))
        return found

    def write(self, work: Callable[[Connection], T]) -> T:
        with self.house.database.write() as connection:
            return work(connection)

    def in_state(self, state: JobState) -> list[Job]:
        return [job for job in self.jobs.values() if job.state is state]

    def change(self, number: int, **values: Any) -> Job:
        self.jobs[number] = replace(self.jobs[number], **values)
        return self.jobs[number]

    def owns(self, hold: Hold) -> bool:
        """Tell whether the job is still in the name of the executor that has it in hand."""
        job = self.jobs.get(hold.job.number)
        return job is not None and (job.state, job.executor) == (JobState.RUNNING, hold.executor)

    # ── people ──

    def submit(self, key: str | None, priority: Priority) -> None:
        asked = argv("true", priority=priority, callback_url="https://example.com/")
        accepted = self.house.submissions.submit(asked, CALLER, key=IdempotencyKey(key, "the same") if key else None)
        if key in self.keys:
            assert accepted == Accepted(self.jobs[self.keys[key]], is_repeat=True)
            return
        job = accepted.job
        assert (accepted.is_repeat, job.state) == (False, JobState.QUEUED)
        assert job.number == len(self.jobs) + len(self.deleted) + 1, "a number comes once"
        self.jobs[job.number] = job
        if key is not None:
            self.keys[key] = job.number

    def cancel(self, number: int, by: Caller, asked: CancelAsked) -> None:
        if number in self.jobs:
            replied = self.house.jobs.cancel(str(number), by, asked)
            assert replied == self.canceled(number, by, asked)
        else:
            with pytest.raises(JobNotFound):
                self.house.jobs.cancel(str(number), by, asked)

    def canceled(self, number: int, by: Caller, asked: CancelAsked) -> Job:
        """Do in the model what a cancel has done; only when the first was made can't be foretold."""
        job = self.jobs[number]
        if job.state.is_ended:
            return job
        first = job.cancel
        if first is None:
            stored = self.house.jobs.get(str(number), CALLER).cancel
            assert stored is not None
            first = CancelRequest(by.name, stored.at, 0)
        assert asked.signal is not None
        request = replace(first, signal=parse_signal(asked.signal), grace=asked.grace)
        if job.state is JobState.QUEUED:
            return self.change(number, cancel=request, state=JobState.CANCELED, finished_at=request.at)
        return self.change(number, cancel=request)

    def signal(self, number: int, name: str) -> None:
        job = self.jobs.get(number)
        if job is not None and job.state is JobState.RUNNING:
            assert self.house.jobs.signal(str(number), CALLER, name) == job
            self.signals.append((number, parse_signal(name)))
        else:
            with pytest.raises(JobNotRunning if job else JobNotFound):
                self.house.jobs.signal(str(number), CALLER, name)

    def delete(self, number: int, force: bool) -> None:
        """Nobody waits for the end here: with force, a running job is told to end."""
        ask = partial(self.house.jobs.delete, str(number), CALLER, force=force, patience=0)
        job = self.jobs.get(number)
        if job is None:
            with pytest.raises(JobNotFound):
                ask()
        elif job.state is JobState.RUNNING or (job.state is JobState.QUEUED and not force):
            with pytest.raises(JobNotEnded):
                ask()
            if force:
                self.canceled(number, CALLER, CancelAsked("SIGKILL", 0))
        else:
            ask()
            assert not Path(self.house.spool.path(job.id)).exists()
            self.deleted.add(number)
            del self.jobs[number], self.runs[number]
            self.keys = {key: known for key, known in self.keys.items() if known != number}
            self.signals = [wanted for wanted in self.signals if wanted[0] != number]

    # ── executors ──

    def change_executors(self, crashing: str | None, starts: bool) -> None:
        """Have one crash, or one more start that believes that all others have; or both."""
        if crashing is not None:
            self.executors.remove(crashing)
            self.holds = [hold for hold in self.holds if hold.executor != crashing]
        if starts and len(self.executors) < 3:
            self.take_over()

    def take_over(self) -> None:
        executor = f"executor {next(self.identities)}"
        expected = [replace(job, executor=executor) for job in self.in_state(JobState.RUNNING)]
        taken = self.write(lambda connection: execution.take_over_jobs(connection, executor))
        assert taken == expected
        self.executors.append(executor)
        for job in taken:
            self.jobs[job.number] = job
            self.holds.append(Hold(executor, job, Stage.TAKEN_OVER))

    def work(self, hold: Hold, steps: int, end: JobEnd, limit: int) -> None:
        """Have a thread take its next steps."""
        for _ in range(steps):
            if hold in self.holds:
                self.go_on(hold, end, limit)
                self.all_is_well()

    def claim(self, executor: str, limit: int) -> None:
        now = at(next(self.seconds))
        jobs = self.write(lambda connection: execution.claim_jobs(connection, executor, limit, now))
        self.claimed(executor, jobs, limit, now)

    def claimed(self, executor: str, jobs: list[Job], limit: int, now: datetime) -> None:
        best = sorted(self.in_state(JobState.QUEUED), key=lambda job: (job.spec.priority.rank, job.number))[:limit]
        assert not [job for job in jobs if job.cancel], "who is told that a job will end never sees it start"
        assert jobs == [
            self.change(job.number, state=JobState.RUNNING, executor=executor, started_at=now) for job in best
        ]
        self.holds.extend(Hold(executor, job, Stage.CLAIMED) for job in jobs)

    def go_on(self, hold: Hold, end: JobEnd, limit: int) -> None:
        match hold.stage:
            case Stage.CLAIMED:
                hold.stage = self.prepare(hold.job)
            case Stage.PREPARED:
                hold.stage = self.start(hold.job)
            case Stage.TAKEN_OVER:
                started = self.house.spool.was_started(hold.job.id)
                hold.stage = Stage.ENDING if started else Stage.NEVER_STARTED
            case Stage.NEVER_STARTED:
                self.give_back(hold)
            case Stage.ENDING:
                self.record(hold, end.signals, {Stream.STDOUT: Hole(0, 1)})
                self.finish(hold, end, limit)

    def prepare(self, job: Job) -> Stage:
        try:
            self.house.spool.prepare(job.id, ())
        except MayHaveRun:
            return Stage.ENDING
        return Stage.PREPARED

    def start(self, job: Job) -> Stage:
        try:
            self.house.spool.open_streams(job.id, stdin=False, merge_stderr=False).close()
        except OSError:  # another has started it, or it was deleted
            return Stage.ENDING
        if job.number in self.jobs:
            self.runs[job.number] += 1
        return Stage.ENDING

    def give_back(self, hold: Hold) -> None:
        number = hold.job.number
        state, *repeated = [
            self.write(lambda connection: execution.requeue_job(connection, number, hold.executor)) for _ in range(2)
        ]
        assert repeated == [None]
        self.holds.remove(hold)
        if not self.owns(hold):
            assert state is None
        elif cancel := self.jobs[number].cancel:
            assert state is JobState.CANCELED
            self.change(number, state=state, executor=None, started_at=None, finished_at=cancel.at)
        else:
            assert state is JobState.QUEUED
            self.change(number, state=state, executor=None, started_at=None)

    def finish(self, hold: Hold, end: JobEnd, limit: int) -> None:
        """Write down an end, and claim in the same transaction what comes next. A timeout is one of these ends."""
        now = at(next(self.seconds))
        end = replace(end, finished_at=now)

        def write(connection: Connection) -> tuple[bool, list[Job]]:
            done = execution.finish_job(connection, hold.job.number, hold.executor, end)
            assert not execution.finish_job(connection, hold.job.number, hold.executor, end)
            return done, execution.claim_jobs(connection, hold.executor, limit, now)

        done, following = self.write(write)
        self.holds.remove(hold)
        assert done == self.owns(hold)
        if done:
            self.change(hold.job.number, **{name: getattr(end, name) for name in KEPT})
        self.claimed(hold.executor, following, limit, now)

    def do_something_else(self, hold: Hold, size: int) -> None:
        """Write something down while a job runs, or give it back, or fail to start it."""
        if hold.stage is Stage.ENDING:
            self.record(hold, (SentSignal(15, at(size)),), {Stream.STDOUT: Hole(0, size)})
        elif hold.stage is Stage.CLAIMED:
            self.give_back(hold)
        elif hold.stage is Stage.PREPARED:
            self.finish(hold, JobEnd(JobState.FAILED, at(0), error=JobError(ErrorCode.NOT_FOUND, "no such file")), 0)

    def record(self, hold: Hold, sent: tuple[SentSignal, ...], holes: dict[Stream, Hole]) -> None:
        """Write down what was sent to a job, and what is no longer kept of its output."""

        def work(connection: Connection) -> bool:
            execution.record_signals(connection, hold.job.number, hold.executor, sent, ending=JobState.CANCELED)
            return execution.record_holes(connection, hold.job.number, hold.executor, holes)

        done = self.write(work)
        assert done == self.owns(hold)
        if done:
            self.change(hold.job.number, signals=sent, holes=holes, ending=JobState.CANCELED)

    def control(self, executor: str) -> None:
        """Look for cancel requests and signals, and take those signals away that are sent or pointless."""
        with self.house.database.read() as connection:
            requests, wanted = execution.list_cancel_requests(connection), execution.list_signals(connection)
        running = {job.number: job for job in self.in_state(JobState.RUNNING)}
        assert requests == {number: job.cancel for number, job in running.items() if job.cancel}
        assert [(each.number, each.signal, each.is_running) for each in wanted] == [
            (number, signal, number in running) for number, signal in self.signals
        ]
        mine = {hold.job.number for hold in self.holds if hold.executor == executor}
        done = [each.row for each in wanted if each.number in mine or not each.is_running]
        self.write(lambda connection: execution.remove_signals(connection, done))
        self.signals = [each for each in self.signals if each[0] in running and each[0] not in mine]

    # ── what holds after every step ──

    @invariant()
    def all_is_well(self) -> None:
        found = {row.number: row for row in rows(self.house.database, "SELECT * FROM job")}
        # No acknowledged job is forgotten, and each that runs is in the name of one executor.
        assert {number: to_job(row) for number, row in found.items()} == self.jobs
        assert not [number for number, runs in self.runs.items() if runs > 1]
        owed = rows(self.house.database, "SELECT number FROM callback")
        assert {row.number for row in owed} == {number for number, job in self.jobs.items() if job.state.is_ended}
        for number, before in self.seen.items():
            self.check_step(before, found.get(number))
        self.seen = found

    def check_step(self, before: Any, after: Any) -> None:
        """Check what one step has made of a row, whatever the model says."""
        state = JobState(before.state)
        if after is None:
            assert before.number in self.deleted
        elif state.is_ended:
            assert after == before
        else:
            assert JobState(after.state) in {state, *TRANSITIONS[state]}


@pytest.mark.timeout(400)  # for the search for a short counterexample
def test_in_whatever_order_they_come_no_job_is_forgotten_run_twice_or_ended_twice(data_dir: Path) -> None:
    house = make_house(data_dir, database={"synchronous": "normal"})
    try:
        run_machine(lambda: Rows(house), settings(SETTINGS, max_examples=50, stateful_step_count=50))
    finally:
        house.database.close()
        house.hints.close()
