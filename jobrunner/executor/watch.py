"""While a step runs: when it has to end, who wants what of it, and what the job has left behind in the end."""

import logging
import signal
import time
from math import inf

from jobrunner.domain.exitstatus import ExitStatus, signal_name
from jobrunner.domain.job import CancelRequest, ErrorCode, Job, JobError
from jobrunner.domain.states import JobState
from jobrunner.executor.ending import Ending
from jobrunner.executor.leftovers import end_leftovers
from jobrunner.executor.limits import OutputLimit
from jobrunner.executor.members import Members
from jobrunner.executor.surroundings import Surroundings
from jobrunner.executor.wishes import Wishes

logger = logging.getLogger("jobrunner.executor")


class GivenUp(Exception):
    """Nobody is to watch the job any longer."""


class Watch:
    """Watches the processes of a job, one step after the other, on the job's own thread.

    Attributes:
        ending: whether, and how, the job was told to end.
    """

    def __init__(self, job: Job, around: Surroundings, wishes: Wishes, members: Members, output: OutputLimit) -> None:
        assert job.started_at is not None
        self.ending = Ending(job, around.ledger, around.now)
        self._spec = job.spec
        self._wishes = wishes
        self._members = members
        self._output = output
        self._kills_leftovers = around.kill_leftovers
        self._step = 0
        # The row has an absolute time; inside a process only the monotonic
        # clock counts, so that a jump of the wall clock ends no job.
        self.set_deadline(max((around.now() - job.started_at).total_seconds(), 0))
        self._step_deadline = inf

    def set_deadline(self, used: float) -> None:
        """Have the job end in time, of which it has had so many seconds."""
        self._deadline = time.monotonic() + self._spec.timeout - used

    def begin_step(self, step: int, used: float = 0) -> None:
        """Have a step end in time; ``used`` seconds of it are over."""
        self._step = step
        timeout = self._spec.steps[step].timeout
        self._step_deadline = time.monotonic() + timeout - used if timeout is not None else inf

    def may_go_on(self) -> bool:
        """Tell whether another step may begin: nobody wants the job to end, and it has time left.

        Raises:
            GivenUp: not by us.
        """
        if self._wishes.is_given_up:
            raise GivenUp
        self._step_deadline = inf  # that of the step before
        self._accept_request()
        self._accept_deadline()
        return self.ending.state is None

    def is_told(self) -> bool:
        """Tell whether the job was told to end, or has to be: its step may have written too much in the last moment."""
        if self._output.enforce():
            self.ending.begin(JobState.OUTPUT_LIMIT, self._output.excess)
        return self.ending.state is not None

    def until_exit(self) -> ExitStatus:
        """Watch until the step's process has ended.

        Raises:
            StatusUnknown: nobody can tell how.
            GivenUp: it may run on.
        """
        process = self._members.process
        assert process is not None
        while not self._wishes.is_given_up:
            if (status := process.exit_status()) is not None:
                return status
            self._act()
            self._wishes.wait(self._pause(), process.pidfd)
        self._send_asked()  # who comes next does not know of them any more
        raise GivenUp

    def _pause(self) -> float:
        """Return the seconds until something is due."""
        deadline = min(self._deadline, self._step_deadline) if self.ending.state is None else None
        due = [at for at in (self.ending.kill_at, deadline) if at is not None]
        # A little late rather than early; and never longer than poll(2) takes.
        return min(max(min(due) - time.monotonic(), 0) + 0.001, 86400.0) if due else 86400.0

    def _act(self) -> None:
        """Do what is due: signals asked for, a cancel, the deadline, too much output, the end of the grace period."""
        self._send_asked()
        if (request := self._accept_request()) is not None:
            self._tell(request.signal, self.ending.grace(request))
        if self._accept_deadline():
            self._tell(signal.SIGTERM, self.ending.grace())
        if self._output.enforce():
            if self.ending.begin(JobState.OUTPUT_LIMIT, self._output.excess):
                logger.info("has written too much")
                self._tell(signal.SIGTERM, self.ending.grace())
            else:
                self.ending.kill_within(0)  # it was told, and writes on
        if self.ending.is_kill_due():
            self.ending.kill_at = None
            self._signal(signal.SIGKILL)

    def _send_asked(self) -> None:
        for number in self._wishes.take_signals():
            if self._members.signal_group(number):
                logger.info("sent %s", signal_name(number))

    def _accept_request(self) -> CancelRequest | None:
        """Return a cancel that was not looked at yet: the job will end in that, if in nothing else."""
        request = self._wishes.new_request()
        if request is not None and self.ending.begin(JobState.CANCELED):
            logger.info("canceled by %s", request.by)
        return request

    def _accept_deadline(self) -> bool:
        """Tell whether the job must end because its time, or that of its step, is over."""
        if time.monotonic() < min(self._deadline, self._step_deadline):
            return False
        error, seconds = None, self._spec.timeout
        if self._step_deadline < self._deadline:
            seconds = self._spec.steps[self._step].timeout or 0.0
            error = JobError(
                ErrorCode.STEP_TIMEOUT, f"step {self._step} has run for {seconds:g} s, which is its timeout"
            )
        if not self.ending.begin(JobState.TIMED_OUT, error):
            return False
        logger.info("timed out after %g s", seconds)
        return True

    def _tell(self, number: int, grace: float) -> None:
        """Tell the job to end, with a signal that it was not sent yet, and when it will be killed."""
        if not self.ending.was_sent(number):
            self._signal(number)
        self.ending.kill_within(grace)

    def _signal(self, number: int) -> None:
        """Signal all of the job, because it is to end."""
        # Before: an executor that finds the job dead must know of what, though this one was killed meanwhile.
        self.ending.note(number)
        if self._members.signal_all(number):
            logger.info("sent %s", signal_name(number))

    def clear(self) -> None:
        """End what the job has left behind; now it writes no more.

        Raises:
            GivenUp: not by us.
        """
        members = self._members
        is_sought = self._kills_leftovers and members.may_be_left()
        if is_sought and not end_leftovers(members.look, members.send, self.ending, self._doze):
            raise GivenUp
        self._output.enforce(may_write_on=False)

    def _doze(self, seconds: float) -> bool:
        """Sleep while what is left behind ends; a cancel hurries it, as does too much output.

        Returns:
            False when the run was given up.
        """
        self._wishes.wait(seconds)
        if (request := self._wishes.new_request()) is not None:
            self.ending.kill_within(self.ending.grace(request))
        if self._output.enforce():
            self.ending.kill_within(0)
        return not self._wishes.is_given_up
