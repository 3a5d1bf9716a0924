"""What a job's row says of its steps."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, Job, JobError, StepResult, StepSpan
from jobrunner.domain.spec import JobSpec, Step, StepKind
from jobrunner.domain.states import ENDED, JobState, StepState

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = ExitStatus(code=0)


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def make(state: JobState, *, steps: int = 3, **members: Any) -> Job:
    spec = JobSpec((Step(StepKind.ARGV, ("true",)),) * steps, timeout=60.0, grace=1.0)
    return Job(1, "id", "tester", "v1", spec, state, BEGIN, **members)


def test_the_steps_of_a_queued_job_wait() -> None:
    assert make(JobState.QUEUED).step_results() == (StepResult(StepState.QUEUED),) * 3


def test_the_steps_of_a_job_that_never_ran_are_skipped() -> None:
    job = make(JobState.CANCELED, finished_at=at(1))

    assert job.step_results() == (StepResult(StepState.SKIPPED),) * 3


def test_of_a_running_job_one_step_runs() -> None:
    first = make(JobState.RUNNING, started_at=at(1))
    second = make(JobState.RUNNING, started_at=at(1), spans=(StepSpan(at(1), at(2)), StepSpan(at(3))))

    waits, runs = StepResult(StepState.QUEUED), StepState.RUNNING
    assert first.step_results() == (StepResult(runs, at(1)), waits, waits)
    assert second.step_results() == (
        StepResult(StepState.SUCCEEDED, at(1), at(2), GOOD), StepResult(runs, at(3)), waits
    )  # fmt: skip


@pytest.mark.parametrize("state", sorted(ENDED))
def test_the_last_step_that_began_is_what_the_job_is(state: JobState) -> None:
    error = JobError(ErrorCode.STEP_TIMEOUT, "why")
    spans = (StepSpan(at(1), at(2)), StepSpan(at(2)))
    job = make(state, started_at=at(1), finished_at=at(5), spans=spans, status=ExitStatus(signal=9), error=error)

    assert job.step_results() == (
        StepResult(StepState.SUCCEEDED, at(1), at(2), GOOD),
        StepResult(StepState(state.value), at(2), at(5), ExitStatus(signal=9), error),
        StepResult(StepState.SKIPPED),
    )


def test_the_only_step_of_a_job_is_what_the_job_is() -> None:
    job = make(JobState.FAILED, steps=1, started_at=at(1), finished_at=at(2), status=ExitStatus(code=3))

    assert job.step_results() == (StepResult(StepState.FAILED, at(1), at(2), ExitStatus(code=3)),)
