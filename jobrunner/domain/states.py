"""The states of a job, and which may follow which.

queued ──▶ running ──▶ succeeded | failed | timed_out | canceled | output_limit | lost
   │          │
   │          └──▶ queued      (claimed, but no process was ever made)
   └──▶ canceled
"""

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is on its way. An ended state never changes."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    OUTPUT_LIMIT = "output_limit"
    LOST = "lost"

    @property
    def is_ended(self) -> bool:
        """Whether no state follows."""
        return self not in ACTIVE


class StepState(StrEnum):
    """Where a step is: what a job can be, or never begun because of how another step ended."""

    QUEUED = JobState.QUEUED.value
    RUNNING = JobState.RUNNING.value
    SUCCEEDED = JobState.SUCCEEDED.value
    FAILED = JobState.FAILED.value
    TIMED_OUT = JobState.TIMED_OUT.value
    CANCELED = JobState.CANCELED.value
    OUTPUT_LIMIT = JobState.OUTPUT_LIMIT.value
    LOST = JobState.LOST.value
    SKIPPED = "skipped"


ACTIVE = frozenset({JobState.QUEUED, JobState.RUNNING})
ENDED = frozenset(JobState) - ACTIVE

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED}),
    JobState.RUNNING: ENDED | {JobState.QUEUED},
    **{state: frozenset() for state in ENDED},
}


class Priority(StrEnum):
    """Strict order of the queue; first in, first out within one priority."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def rank(self) -> int:
        """What the queue sorts by, ascending."""
        return _RANKS[self]

    @classmethod
    def from_rank(cls, rank: int) -> "Priority":
        """Turn a stored rank back into its word."""
        return _BY_RANK[rank]


_RANKS = {priority: rank for rank, priority in enumerate(Priority)}
_BY_RANK = {rank: priority for priority, rank in _RANKS.items()}
