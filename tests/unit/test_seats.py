"""A few seats, and a queue."""

from jobrunner.seats import Seats


def test_those_who_wait_get_a_seat_in_order_or_are_sent_away() -> None:
    begun: list[str] = []
    seats = Seats[str](2, 10.0, begun.append)

    for at, who in enumerate("abcde"):
        seats.enter(who, float(at))
    assert begun == ["a", "b"]
    seats.leave()
    assert begun == ["a", "b", "c"]
    assert seats.expired(12.9) == []
    assert seats.expired(13.0) == ["d"]
    seats.leave()
    assert begun == ["a", "b", "c", "e"]
    seats.leave()
    seats.leave()
    seats.enter("f", 20.0)
    assert begun[-1] == "f"
