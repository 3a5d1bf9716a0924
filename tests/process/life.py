"""A job that waits for a test, which decides when it exits, and with what; and what may come of it."""

import os
import signal
from pathlib import Path

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import Job
from jobrunner.domain.states import JobState

TEXT = """\
exec 3<>"$GATE"  # open for writing too, it has no end
trap 'echo got >> "$GATE.signals"' USR1
{ignore}
echo run >> "$GATE.runs"
{leave}
until read -r code <&3; do :; done  # a signal interrupts it
exit "$code"
"""

BEFORE = 'trap "" USR1; echo "$JOBRUNNER_JOB_STEP" >> "$GATE.before"'
AFTER = 'trap "" USR1; echo "$JOBRUNNER_JOB_STEP" >> "$GATE.after"'
"""Steps that may be around that one."""

GOOD = ExitStatus(code=0)
KILLED = ExitStatus(signal=signal.SIGKILL)
TERMINATED = ExitStatus(signal=signal.SIGTERM)

Ends = set[tuple[JobState, ExitStatus | None]]


class Life:
    """A job, and what has been done to it.

    Args:
        gate: a FIFO that the job reads its exit code from.
        stubborn: it ignores SIGTERM.
        leaves_session: it starts something in a session of its own.
        reasons: why it is to end: canceled, timed out.
        before: how many steps come before the one that waits.
        after: whether one comes after it.

    Attributes:
        statuses: with what it may end without such a reason.
        never_runs: it was canceled in the queue.
        is_lost: nobody can tell how it ended.
        may_be_lost: its executor has died while it started it.
        unheard: its executor may have died with a signal that it was to send.
        is_deleted: nobody knows it any more.
    """

    def __init__(
        self,
        job: Job,
        gate: Path,
        *,
        stubborn: bool,
        leaves_session: bool,
        reasons: set[JobState],
        before: int = 0,
        after: bool = False,
    ) -> None:
        self.job = job
        self.gate = gate
        self.gate_fd = os.open(gate, os.O_RDWR | os.O_CLOEXEC)
        self.stubborn = stubborn
        self.leaves_session = leaves_session
        self.reasons = reasons
        self.before = before
        self.after = after
        self.statuses: set[ExitStatus] = set()
        self.signals = 0
        self.never_runs = self.is_lost = self.may_be_lost = self.unheard = self.is_deleted = False

    def __repr__(self) -> str:
        return f"<job {self.job.number}>"

    def lines(self, name: str) -> int:
        """Count what the job has written down outside its directory."""
        return len(self.texts(name))

    def texts(self, name: str) -> list[str]:
        """Return the lines of it."""
        path = self.gate.with_name(f"{self.gate.name}.{name}")
        return path.read_text().splitlines() if path.exists() else []

    @property
    def runs(self) -> int:
        return self.lines("runs")

    def check_steps(self, *, succeeded: bool) -> None:
        """See that no step has run twice, or out of turn."""
        after, runs, before = (self.texts(name) for name in ("after", "runs", "before"))  # they grow in the other order
        assert before == [str(index) for index in range(len(before))]
        assert len(before) <= self.before
        assert len(after) <= len(runs) <= 1
        assert not runs or len(before) == self.before
        assert not succeeded or (len(runs), len(after)) == (1, self.after)

    @property
    def is_decided(self) -> bool:
        """Whether it was told to end, in one way or another."""
        return bool(self.reasons or self.statuses or self.never_runs)

    def let_exit(self, code: int) -> None:
        self.statuses.add(ExitStatus(code=code))
        os.write(self.gate_fd, b"%d\n" % code)

    def foretold(self) -> Ends:
        """Return how the job may have ended."""
        if self.never_runs:
            return {(JobState.CANCELED, None)}
        if self.is_lost:
            return {(JobState.LOST, None)}
        told = {KILLED} if self.stubborn or self.unheard else set()
        if not (self.stubborn and self.runs):
            told.add(TERMINATED)  # a stubborn one too, before it has begun to ignore it
        statuses = set(self.statuses)
        if self.after and self.signals:
            statuses.add(ExitStatus(signal=signal.SIGUSR1))  # that came before the last step could ignore it
        ends: Ends = {(reason, status) for reason in self.reasons for status in told | statuses}
        if self.before or self.after:
            # In, or between, two of the others, which can all be ended.
            ends |= {(reason, status) for reason in self.reasons for status in (GOOD, TERMINATED, None)}
        ends |= {(JobState.SUCCEEDED if status.ok else JobState.FAILED, status) for status in statuses}
        if JobState.CANCELED in self.reasons and not self.runs:
            ends.add((JobState.CANCELED, None))
        if self.may_be_lost:
            ends.add((JobState.LOST, None))
        return ends
