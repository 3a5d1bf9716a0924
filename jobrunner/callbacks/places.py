"""How many callbacks may be under way at a time, so that no receiver is in the way of the others."""

from collections import Counter
from collections.abc import Iterable, Sequence


class Places:
    """Places for attempts: so many in all, and so many for one receiver.

    A receiver that did not answer in time is slow until it does: it gets one
    place, and all slow ones together get half of them at most. So a network
    that swallows everything leaves places for those that can be reached.

    Not for several threads at once.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._taken: Counter[str] = Counter()
        self._slow: set[str] = set()

    def share(self, receivers: Sequence[str]) -> dict[str, int]:
        """Return how many more each receiver may be sent now.

        Args:
            receivers: who is due something; the first ones are served first.
        """
        free = self._most - self._taken.total()
        free_of_slow = max(self._most // 2, 1) - sum(self._taken[receiver] for receiver in self._slow)
        shares: dict[str, int] = {}
        for receiver in receivers:
            is_slow = receiver in self._slow
            room = 1 if is_slow else self._most_of_one
            share = min(room - self._taken[receiver], free, free_of_slow if is_slow else free)
            if share > 0:
                shares[receiver] = share
                free -= share
                free_of_slow -= share if is_slow else 0
        return shares

    def take(self, receiver: str) -> None:
        """Take a place for an attempt."""
        self._taken[receiver] += 1

    def give(self, receiver: str, *, is_slow: bool | None) -> None:
        """Give a place back; ``is_slow`` tells whether the receiver did not answer in time (None: it is not known)."""
        self._taken[receiver] -= 1
        if not self._taken[receiver]:
            del self._taken[receiver]
        if is_slow:
            self._slow.add(receiver)
        elif is_slow is not None:
            self._slow.discard(receiver)

    def forget_all_but(self, receivers: Iterable[str]) -> None:
        """Forget who was slow and is owed nothing any more."""
        self._slow.intersection_update({*receivers, *self._taken})
