"""What is done about a job when its run is over: written down, told to who waits, cleared away; or queued again."""

import logging
from collections.abc import Callable

from jobrunner.domain.exitstatus import signal_name
from jobrunner.domain.job import Job, JobEnd
from jobrunner.domain.masking import MaskRules
from jobrunner.domain.states import JobState
from jobrunner.executor.run import Run
from jobrunner.executor.surroundings import Surroundings
from jobrunner.hints import Hint, Hints

logger = logging.getLogger("jobrunner.executor")


class Aftermath:
    """What follows the runs of an executor. Works on their threads.

    Args:
        around: what every run shares.
        hints: how others are told.
        masks: what is secret of what jobs are given.
    """

    def __init__(self, around: Surroundings, hints: Hints, masks: MaskRules) -> None:
        self._around = around
        self._hints = hints
        self._masks = masks

    def finish(self, run: Run, end: JobEnd, may_claim: Callable[[], bool]) -> Job | None:
        """Write the end down, however long that takes; then reap, and tell who waits.

        Returns:
            The next job, claimed in the same transaction; None: there is none, or ``may_claim`` did not allow it.
        """
        if self._around.kill_leftovers:
            self._close(run.job.id)
        written = self._around.ledger.finish(run.job.number, end, may_claim)
        if written is None:
            run.leave()  # the zombie keeps the status for whoever comes next
            return None
        ended, following = written
        if ended:
            # The system's words may name the program.
            logger.info("%s", self._masks.mask(*run.job.spec.environments).hide(_describe(end)))
            self._hints.job_ended(run.job.id, owes_callback=run.job.spec.callback_url is not None)
        run.release()
        if ended:
            self._clear_away(run.job)
        return following

    def requeue(self, job: Job) -> None:
        """Put a job back for which no process was made."""
        state = self._around.ledger.requeue(job.number)
        if state is JobState.QUEUED:
            logger.info("was claimed but never started; queued again")
            self._hints.wake_executor(Hint.QUEUED)
        elif state is not None:
            logger.info("was canceled before it was started")
            self._hints.job_ended(job.id, owes_callback=job.spec.callback_url is not None)

    def _close(self, job_id: str) -> None:
        """Close the job's directory to other jobs, where they run as another user: nothing of this one is left."""
        try:
            self._around.spool.close(job_id)
        except OSError as error:
            logger.warning("can't close the job's directory: %s", error)

    def _clear_away(self, job: Job) -> None:
        """Remove what an ended job does not keep. What can't be removed is left to gc."""
        try:
            if job.spec.drops_scratch:
                self._around.spool.drop_scratch(job.id)
            else:
                self._around.spool.clear_away(job.id)
        except OSError as error:
            logger.warning("can't remove the job's scratch directory, gc will try again: %s", error)


def _describe(end: JobEnd) -> str:
    """Say in a few words how a job ended."""
    words = [end.state.value]
    if end.status is not None:
        status = end.status
        words.append(signal_name(status.signal) if status.signal is not None else f"exit code {status.code}")
    if end.error is not None:
        words.append(f"{end.error.code.value}: {end.error.detail}")
    return ", ".join(words)
