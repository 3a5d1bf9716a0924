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

    Attributes:
        statuses: with what it may end without such a reason.
        never_runs: it was canceled in the queue.
        is_lost: nobody can tell how it ended.
        may_be_lost: its executor has died while it started it.
        unheard: its executor may have died with a signal that it was to send.
        is_deleted: nobody knows it any more.
    """

    def __init__(self, job: Job, gate: Path, *, stubborn: bool, leaves_session: bool, reasons: set[JobState]) -> None:
        self.job = job
        self.gate = gate
        self.gate_fd = os.open(gate, os.O_RDWR | os.O_CLOEXEC)
        self.stubborn = stubborn
        self.leaves_session = leaves_session
        self.reasons = reasons
        self.statuses: set[ExitStatus] = set()
        self.signals = 0
        self.never_runs = self.is_lost = self.may_be_lost = self.unheard = self.is_deleted = False

    def __repr__(self) -> str:
        return f"<job {self.job.number}>"

    def lines(self, name: str) -> int:
        """Count what the job has written down outside its directory."""
        path = self.gate.with_name(f"{self.gate.name}.{name}")
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def runs(self) -> int:
        return self.lines("runs")

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
        ends: Ends = {(reason, status) for reason in self.reasons for status in told | self.statuses}
        ends |= {(JobState.SUCCEEDED if status.ok else JobState.FAILED, status) for status in self.statuses}
        if JobState.CANCELED in self.reasons and not self.runs:
            ends.add((JobState.CANCELED, None))
        if self.may_be_lost:
            ends.add((JobState.LOST, None))
        return ends
