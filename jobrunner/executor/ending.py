"""How a job is told to end: why, by which signals, and when it is killed."""

import signal
import time

from jobrunner.clock import Now
from jobrunner.domain.job import CancelRequest, Job, JobError, SentSignal
from jobrunner.domain.states import JobState
from jobrunner.executor.ledger import Ledger


class Ending:
    """Keeps account of it, and of what the row says: an executor that takes over goes on from there.

    Attributes:
        state: what the job will end in, whatever its exit status is; None: it was not told to end.
        error: why, where the state does not say it.
        kill_at: when what is left of it is killed (monotonic); None: nothing is to be killed, or everything was.
        signals: what it was sent so far.
    """

    def __init__(self, job: Job, ledger: Ledger, now: Now) -> None:
        self._job = job
        self._ledger = ledger
        self._now = now
        self.state = job.ending
        self.error = job.error
        self.kill_at: float | None = None
        self.signals = list(job.signals)
        if self.signals:
            # A cancel that was asked for later does not change why it was told to end.
            request = job.cancel if self.state is JobState.CANCELED else None
            used = max((now() - self.signals[0].at).total_seconds(), 0)
            self.kill_within(self.grace(request) - used)
            if self.was_sent(signal.SIGKILL):
                self.kill_at = time.monotonic()  # that was written down, but perhaps not sent

    def begin(self, state: JobState, error: JobError | None = None) -> bool:
        """Decide what the job will end in. False when that was decided before, which stays."""
        if self.state is not None:
            return False
        self.state, self.error = state, error
        return True

    def grace(self, request: CancelRequest | None = None) -> float:
        """Return the seconds between the first signal and SIGKILL."""
        return request.grace if request is not None and request.grace is not None else self._job.spec.grace

    def kill_within(self, seconds: float) -> None:
        """Have it killed so soon, or sooner if that was said before; not twice."""
        if not self.was_sent(signal.SIGKILL):
            at = time.monotonic() + seconds
            self.kill_at = at if self.kill_at is None else min(at, self.kill_at)

    def is_kill_due(self) -> bool:
        """Tell whether it is time."""
        return self.kill_at is not None and time.monotonic() >= self.kill_at

    def was_sent(self, number: int) -> bool:
        """Tell whether the job was sent this signal."""
        return any(sent.signal == number for sent in self.signals)

    def note(self, number: int) -> None:
        """Write down that the job is sent this signal, once."""
        assert self.state is not None
        if self.was_sent(number):
            return  # by the executor before us, or perhaps not
        self.signals.append(SentSignal(number, self._now()))
        self._ledger.record_signals(self._job.number, self.signals, self.state, self.error)
