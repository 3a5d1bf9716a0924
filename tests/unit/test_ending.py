"""What ``run`` and ``wait`` exit with, for every end that a job can have."""

from typing import Any

import pytest

from jobrunner.cli.ending import describe_end, exit_code, has_ended
from jobrunner.domain.job import ErrorCode
from jobrunner.domain.states import ACTIVE, JobState


def job(state: str, *, code: int | None = None, signal: str | None = None, error: str | None = None) -> dict[str, Any]:
    return {
        "state": state,
        "exit_code": code,
        "signal": signal,
        "error": {"code": error, "detail": "the system's words"} if error else None,
        "cancel": {"by": "ci"} if state == "canceled" else None,
        "timeout": 1.5,
    }


@pytest.mark.parametrize(
    ("document", "code", "words"),
    [
        (job("succeeded", code=0), 0, None),
        (job("failed", code=1), 1, None),
        (job("failed", code=255), 255, None),
        (job("failed", signal="SIGKILL"), 137, "ended by SIGKILL"),
        (job("failed", signal="SIGRTMIN+3"), 165, "ended by SIGRTMIN+3"),
        (job("failed", signal="SIG32"), 160, "ended by SIG32"),
        (job("timed_out", signal="SIGTERM"), 124, "timed out after 1.5 s"),
        (job("timed_out", code=0), 124, "timed out after 1.5 s"),
        (job("canceled"), 130, "canceled by ci"),
        (job("canceled", code=0), 130, "canceled by ci"),
        (job("canceled", signal="SIGTERM"), 130, "canceled by ci"),
        (job("output_limit", signal="SIGKILL"), 125, "output limit"),
        (job("lost", error="worker-lost"), 125, "worker-lost: the system's words"),
        (job("failed", error="not-found"), 127, "not-found: the system's words"),
        (job("failed", error="permission-denied"), 126, "permission-denied: the system's words"),
        (job("failed", error="exec-format"), 126, "exec-format: the system's words"),
        (job("failed", error="arguments-too-long"), 126, "arguments-too-long: the system's words"),
        (job("failed", error="bad-cwd"), 125, "bad-cwd: the system's words"),
    ],
)
def test_an_end_has_its_exit_code_and_its_words(document: dict[str, Any], code: int, words: str | None) -> None:
    assert (exit_code(document), describe_end(document)) == (code, words)


@pytest.mark.parametrize("error", ErrorCode)
def test_nothing_that_has_not_run_looks_as_if_it_had(error: ErrorCode) -> None:
    assert exit_code(job("failed", error=error)) in {125, 126, 127}


@pytest.mark.parametrize("state", JobState)
def test_every_state_is_an_end_or_none(state: JobState) -> None:
    document = job(state, code=0)
    assert has_ended(document) == (state not in ACTIVE)
    assert (exit_code(document) == 0) == (state in ACTIVE | {JobState.SUCCEEDED, JobState.FAILED})
