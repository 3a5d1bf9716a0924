"""How wrong tokens are counted."""

from jobrunner.service.failures import MOST_CLIENTS, Failures


def test_who_fails_too_often_waits_until_the_window_is_over() -> None:
    failures = Failures(3, 60.0)
    assert not failures

    for at in (0.0, 10.0, 20.0):
        assert failures.waiting_time("a", at) is None
        failures.add("a", at)
    assert failures.waiting_time("a", 20.0) == 40.0
    failures.add("a", 50.0)
    assert failures.waiting_time("a", 50.0) == 10.0, "to fail again makes it no longer"
    assert failures.waiting_time("b", 50.0) is None
    assert failures.waiting_time("a", 60.0) is None
    assert not failures, "nothing is kept of it"


def test_those_whom_nobody_knows_are_counted_together() -> None:
    failures = Failures(2, 60.0)
    failures.add(None, 0.0)
    failures.add(None, 0.0)
    assert failures.waiting_time(None, 0.0) == 60.0


def test_only_so_many_are_remembered_and_the_oldest_is_forgotten() -> None:
    failures = Failures(1, 60.0)
    for number in range(MOST_CLIENTS + 1):
        failures.add(str(number), 0.0)

    assert failures.waiting_time("0", 1.0) is None
    assert failures.waiting_time("1", 1.0) is not None
    assert failures.waiting_time(str(MOST_CLIENTS), 1.0) is not None
