"""How often, and how long, something is tried again."""

import pytest

from jobrunner.client import NeverSent, Patience, ServiceError
from jobrunner.domain.errors import Forbidden, JobNotFound, JobrunnerError, TooBusy, Unreachable


class Stopped(Exception):
    """The test has seen enough."""


def pauses_of(error: JobrunnerError, number: int, seconds: float = 1000.0, *, was_there: bool = False) -> list[float]:
    """Return the pauses of so many failures in a row; they take no time here."""
    pauses: list[float] = []
    patience = Patience(seconds, pause=lambda pause, _: pauses.append(pause))
    if was_there:
        patience.renew()
    for _ in range(number):
        patience.endure(error)
    return pauses


def test_pauses_grow_to_a_limit_and_are_not_the_same_for_all() -> None:
    one, other = (pauses_of(Unreachable("away"), 12) for _ in range(2))

    assert one != other
    for pauses in (one, other):
        assert 0.05 <= pauses[0] <= 0.1
        assert pauses[6] > pauses[0]
        assert all(2.5 <= pause <= 5 for pause in pauses[8:])


def test_the_service_says_how_long_to_wait_at_least() -> None:
    assert min(pauses_of(TooBusy("full", retry_after=7), 3)) >= 7


@pytest.mark.parametrize("error", [JobNotFound(), Forbidden("no"), ServiceError("a mistake", 500)])
def test_what_does_not_pass_is_not_tried_again(error: JobrunnerError) -> None:
    with pytest.raises(type(error)):
        pauses_of(error, 1)


@pytest.mark.parametrize("error", [Unreachable("x"), TooBusy("x", retry_after=0), ServiceError("bad gateway", 502)])
def test_what_may_pass_is_tried_until_the_time_is_up(error: JobrunnerError) -> None:
    assert pauses_of(error, 3)
    with pytest.raises(type(error)):
        pauses_of(error, 1, seconds=0)


def test_who_has_never_been_there_is_not_waited_for() -> None:
    with pytest.raises(NeverSent):
        pauses_of(NeverSent("refused"), 1)
    assert len(pauses_of(NeverSent("refused"), 3, was_there=True)) == 3

    patience = Patience(pause=lambda *_: None)
    patience.endure(TooBusy("full", retry_after=0))
    patience.endure(NeverSent("refused"))


def test_a_pause_that_is_too_long_is_not_begun() -> None:
    with pytest.raises(TooBusy):
        pauses_of(TooBusy("drained", retry_after=30), 1, seconds=29)


def test_after_a_success_all_begins_anew() -> None:
    pauses: list[float] = []
    patience = Patience(1000, pause=lambda pause, _: pauses.append(pause))
    for _ in range(8):
        patience.endure(Unreachable("away"))
    patience.renew()
    patience.endure(Unreachable("away"))

    assert pauses[-1] <= 0.1


def test_who_pauses_is_told_why_and_can_end_it() -> None:
    def pause(_: float, error: JobrunnerError) -> None:
        raise Stopped(str(error))

    with pytest.raises(Stopped, match="away"):
        Patience(pause=pause).endure(Unreachable("away"))


def test_it_insists_until_there_is_an_answer() -> None:
    answers = [Unreachable("1"), TooBusy("2", retry_after=0), None]

    def ask() -> str:
        error = answers.pop(0)
        if error:
            raise error
        return "yes"

    assert Patience(pause=lambda *_: None).insist(ask) == "yes"
    assert answers == []
