"""The states of a job: one table says which may follow which."""

import pytest

from jobrunner.domain.states import ACTIVE, ENDED, TRANSITIONS, JobState, Priority, StepState


def test_a_step_can_be_in_every_state_of_a_job_or_skipped() -> None:
    assert {state.value for state in StepState} == {state.value for state in JobState} | {"skipped"}


def test_every_state_has_its_line_in_the_table_of_transitions() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_every_state_is_either_active_or_ended() -> None:
    assert set(JobState) == ACTIVE | ENDED
    assert not ACTIVE & ENDED


@pytest.mark.parametrize("state", sorted(ENDED))
def test_nothing_follows_an_ended_state(state: JobState) -> None:
    assert state.is_ended
    assert TRANSITIONS[state] == frozenset()


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_an_active_state_is_followed_by_others_and_never_by_itself(state: JobState) -> None:
    assert not state.is_ended
    assert TRANSITIONS[state] - {state} == TRANSITIONS[state] != frozenset()


def test_a_queued_job_starts_or_is_canceled_and_cannot_end_otherwise() -> None:
    assert TRANSITIONS[JobState.QUEUED] == {JobState.RUNNING, JobState.CANCELED}


def test_every_state_can_be_reached_from_the_first() -> None:
    reached = {JobState.QUEUED}
    for _ in JobState:
        reached |= {following for state in reached for following in TRANSITIONS[state]}

    assert reached == set(JobState)


def test_the_words_of_the_states_are_those_of_the_contract() -> None:
    assert {state.value for state in JobState} == {
        "queued", "running", "succeeded", "failed", "timed_out", "canceled", "output_limit", "lost",
    }  # fmt: skip


def test_high_priority_comes_first_and_low_last() -> None:
    assert sorted(Priority, key=lambda priority: priority.rank) == [Priority.HIGH, Priority.NORMAL, Priority.LOW]


@pytest.mark.parametrize("priority", Priority)
def test_a_stored_rank_turns_back_into_its_priority(priority: Priority) -> None:
    assert Priority.from_rank(priority.rank) is priority
