"""Jobs and executors of flesh and blood, in any order: each job ends once, and as foretold, whoever dies meanwhile.

The jobs wait for the machine, which decides when they exit, and with what.
Executors are processes of their own; this process is in the place of the
supervisor, and gets the orphans.
"""

import os
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from jobrunner.domain.access import ADMINISTRATOR, Caller
from jobrunner.domain.errors import JobNotEnded, JobNotFound, JobNotRunning
from jobrunner.domain.job import Job
from jobrunner.domain.states import JobState
from jobrunner.ends import End, EndsFile
from jobrunner.house import House
from jobrunner.proc import list_children, read_stat
from jobrunner.service.jobs import CancelAsked
from tests.factories import CALLER, is_dead, make_config, make_job, sequence
from tests.machines import SETTINGS, Event, Machine, run_machine
from tests.process.life import AFTER, BEFORE, KILLED, TEXT, Life
from tests.process.running import ExecutorProcess, all_ended, get, job_processes, parent_of_orphans
from tests.service import eventually

T = TypeVar("T")

SLOTS = 3


class Lives(Machine):
    """A data directory, its executors one after the other, and its jobs."""

    def __init__(self, directory: Path, empty_data_dir: Path) -> None:
        super().__init__()
        self.directory = directory
        shutil.copytree(empty_data_dir, directory / "data")
        self.house = House(make_config(directory / "data"))
        self.ends = EndsFile(self.house.data_dir / "run" / "ends")
        self.gates = count(1)
        self.lives: list[Life] = []
        self.ended: dict[int, Job] = {}
        self.executor: ExecutorProcess | None = None
        self.changes = self.steps = 0

    def events(self) -> list[Event]:
        """Offer the same in another order at each step: hypothesis likes to choose the same place again."""
        self.steps += 1
        life = self.one_of(*self.lives)
        leaves = self.one_of("", "sleep 300 &", "setsid sleep 300 &")
        change: Event = (
            "change_executor",
            {
                "ending": self.one_of("crash", "stop", "crash", "crash"),
                "reaping": self.one_of("told", "not told", "not reaped"),
                "starts": st.booleans(),
            },
        )
        return self.turn(
            [
                ("let_exit", {"life": life, "code": self.one_of(0, 1, 143)}),
                change,
                (
                    "submit",
                    {
                        "stubborn": st.booleans(),
                        "leaves": leaves,
                        "timeout": self.one_of(None, 0.3, None, 1.0),
                        "around": self.one_of((0, False), (2, True), (1, False), (0, True)),
                    },
                ),
                ("cancel", {"life": life}),
                ("reap", {"tells": st.booleans()}),
                ("signal", {"life": life, "fatal": st.booleans()}),
                change,
                ("wait", {}),
                ("delete", {"life": life}),
            ]
        )

    def one_of(self, *choices: T) -> st.SearchStrategy[T]:
        return st.sampled_from(self.turn(choices))

    def turn(self, choices: Sequence[T]) -> list[T]:
        begin = self.steps % len(choices)
        return [*choices[begin:], *choices[:begin]]

    def teardown(self) -> None:
        try:
            self.bring_to_an_end()
        finally:
            if self.executor is not None:
                self.executor.crash()
            for life in self.lives:
                os.close(life.gate_fd)
            self.house.database.close()
            self.house.hints.close()

    def bring_to_an_end(self) -> None:
        """Let everything end that was not told to yet, and look at what is left."""
        if self.executor is None:
            self.start_executor()
        running = {job.number for job in self.running()}
        for life in self.open():
            if life.job.number in running:
                assert eventually(lambda: self.is_known(life) or self.has_ended(life), within=30)  # noqa: B023
            if not life.is_decided or (life.unheard and not life.reasons):
                life.let_exit(0)
        assert eventually(lambda: all_ended(self.house), within=30), [get(self.house, life.job) for life in self.open()]
        self.all_is_well()
        self.stop_executor()
        assert eventually(lambda: not job_processes(self.directory))
        assert "Traceback" not in (self.house.data_dir / "executor.log").read_text()

    def has_ended(self, life: Life) -> bool:
        return get(self.house, life.job).state.is_ended

    def open(self) -> list[Life]:
        """Return the jobs that have not ended, as far as we have looked."""
        return [life for life in self.lives if not (life.is_deleted or life.job.number in self.ended)]

    # ── people ──

    @initialize(how_many=st.integers(1, 4))
    def begin(self, how_many: int) -> None:
        self.start_executor()
        for index in range(how_many):
            self.submit(stubborn=False, leaves="", timeout=None, around=(index % 3, index % 2 == 1))

    def submit(self, stubborn: bool, leaves: str, timeout: float | None, around: tuple[int, bool]) -> None:
        gate = self.directory / f"gate{next(self.gates)}"
        os.mkfifo(gate)
        before, after = around
        text = TEXT.format(ignore="trap '' TERM" if stubborn else "", leave=leaves)
        asked = sequence(
            *[BEFORE] * before,
            text,
            *[AFTER] * after,
            env={"GATE": str(gate)},
            timeout=timeout,
            grace=0.3 if stubborn else 5.0,
        )
        self.lives.append(
            Life(
                make_job(self.house, asked),
                gate,
                stubborn=stubborn,
                leaves_session=leaves.startswith("setsid"),
                reasons={JobState.TIMED_OUT} if timeout else set(),
                before=before,
                after=after,
            )
        )

    def let_exit(self, life: Life, code: int) -> None:
        if not life.is_decided and self.is_known(life):
            life.let_exit(code)

    def is_known(self, life: Life) -> bool:
        """Tell whether the next executor can tell a job from what it has started in a session of its own.

        By its record, or while it is alive.
        """
        record = self.house.spool.load_process(life.job.id)
        return not life.leaves_session or (record is not None and record.step >= life.before)

    def cancel(self, life: Life) -> None:
        """Cancel a job twice; the second does nothing more."""
        if life.is_deleted:
            with pytest.raises(JobNotFound):
                self.house.jobs.cancel(life.job.id, CALLER, CancelAsked())
            return
        before = get(self.house, life.job)
        first = self.house.jobs.cancel(life.job.id, CALLER, CancelAsked())
        second = self.house.jobs.cancel(life.job.id, Caller("another", ADMINISTRATOR), CancelAsked())
        if before.state.is_ended:
            assert first == second == before
        elif first.state is JobState.RUNNING:
            assert second.cancel == first.cancel
            life.reasons.add(JobState.CANCELED)
        else:
            assert second == first
            life.never_runs = first.started_at is None

    def signal(self, life: Life, fatal: bool) -> None:
        if life.is_deleted or not life.runs:  # before, it does not catch SIGUSR1 yet
            return
        try:
            self.house.jobs.signal(life.job.id, CALLER, "KILL" if fatal else "USR1")
        except JobNotRunning:
            assert get(self.house, life.job).state.is_ended
            return
        assert life.job.number not in self.ended
        if fatal:
            life.statuses.add(KILLED)
        else:
            life.signals += 1

    def delete(self, life: Life) -> None:
        if life.is_deleted:
            return
        try:
            self.house.jobs.delete(life.job.id, CALLER, force=False, patience=0)
        except JobNotEnded:
            assert life.job.number not in self.ended
            return
        life.is_deleted = True

    # ── executors ──

    def change_executor(self, ending: str, reaping: str, starts: bool) -> None:
        """Have the executor end, a job exit while nobody watches it, and the next executor start; or some of these."""
        self.changes += 1
        if self.changes > 4:  # each takes half a second
            return
        if self.executor is None:
            self.start_executor()
            return
        if ending == "crash":
            self.crash_executor()
        else:
            self.stop_executor()
        self.let_one_exit_unwatched(reaping)
        if starts:
            self.start_executor()

    def let_one_exit_unwatched(self, reaping: str) -> None:
        for life in self.open():
            record = self.house.spool.load_process(life.job.id)
            if record is not None and life.runs and not life.is_decided:
                life.let_exit(1)
                assert eventually(lambda: is_dead(record.pid))  # noqa: B023
                break
        if reaping != "not reaped":
            self.reap(tells=reaping == "told")

    def start_executor(self) -> None:
        """Start the next executor; all that runs is in its name then."""
        self.executor = ExecutorProcess(self.house, max_running=SLOTS)
        self.executor.__enter__()
        owner = f"{self.executor.pid}-"
        assert eventually(lambda: all((job.executor or "").startswith(owner) for job in self.running()), within=30)

    def running(self) -> list[Job]:
        jobs = [get(self.house, life.job) for life in self.open()]
        return [job for job in jobs if job.state is JobState.RUNNING]

    def stop_executor(self) -> None:
        assert self.executor is not None
        self.executor.__exit__()
        assert self.executor.process is not None
        assert self.executor.process.returncode == 0
        self.executor = None

    def crash_executor(self) -> None:
        assert self.executor is not None
        self.executor.crash()
        self.executor = None
        for life in self.open():
            job, spool = get(self.house, life.job), self.house.spool
            life.unheard = life.is_decided
            if job.state is JobState.RUNNING and spool.was_started(job.id) and spool.load_process(job.id) is None:
                life.may_be_lost = True

    def reap(self, tells: bool) -> None:
        """Reap orphans that have ended, as the supervisor does; or, when nobody watches them, without a word."""
        for pid in list_children(os.getpid()) or ():
            stat = read_stat(pid)
            if stat is None or not stat.is_zombie:
                continue
            if tells or self.executor is not None:
                self.ends.append(End(pid, stat.start_ticks, stat.exit_code))
            else:
                self.lose(pid)
            os.waitpid(pid, 0)

    def lose(self, pid: int) -> None:
        for life in self.open():
            record = self.house.spool.load_process(life.job.id)
            if record is None or record.pid != pid:
                continue
            job = get(self.house, life.job)
            # The end of a step before the one at which the row stands is known.
            if job.state is JobState.RUNNING and record.step == max(len(job.spans) - 1, 0):
                life.is_lost = True

    def wait(self) -> None:
        """All that runs and was told to end does."""
        if self.executor is None:
            return
        told = [life for life in self.open() if life.reasons or (life.is_decided and not life.unheard)]
        assert eventually(lambda: not {life.job.id for life in told} & {job.id for job in self.running()}, within=30)

    # ── what holds after every step ──

    @invariant()
    def all_is_well(self) -> None:
        for life in self.lives:
            # First the runs: who has been started is not queued any more, and never will be again.
            runs = life.runs
            life.check_steps(succeeded=False)
            if life.is_deleted:
                continue
            job = get(self.house, life.job)
            assert not (runs and (life.never_runs or job.state is JobState.QUEUED))
            assert life.lines("signals") <= life.signals
            if job.number in self.ended:
                assert job == self.ended[job.number]
            elif job.state.is_ended:
                self.ended[job.number] = job
                self.check_end(life, job)

    def check_end(self, life: Life, job: Job) -> None:
        assert (job.state, job.status) in life.foretold(), f"{job.state, job.status, job.error} of {life}: {vars(life)}"
        assert life.runs or life.before or job.status is None or job.status.code is None, "who exits has run"
        life.check_steps(succeeded=job.state is JobState.SUCCEEDED)
        record = self.house.spool.load_process(job.id)
        assert record is None or eventually(lambda: is_dead(record.pid))


@pytest.mark.timeout(300)  # for a counterexample, which may wait long for what does not come
def test_in_whatever_order_they_come_each_job_runs_once_and_ends_as_foretold(
    tmp_path: Path, empty_data_dir: Path
) -> None:
    names = count(1)

    def make() -> Lives:
        directory = tmp_path / str(next(names))
        directory.mkdir()
        return Lives(directory, empty_data_dir)

    with parent_of_orphans():
        # Without a search for a shorter counterexample: processes do not repeat themselves that exactly.
        run_machine(make, settings(SETTINGS, max_examples=8, stateful_step_count=16, phases=[Phase.generate]))
