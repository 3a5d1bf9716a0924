"""What a job writes, and what was left out of it."""

from enum import StrEnum
from typing import NamedTuple


class Stream(StrEnum):
    """What a job writes to."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Hole(NamedTuple):
    """Bytes of a stream that are no longer kept; offsets count on through it.

    Attributes:
        start: the first byte that is gone.
        stop: the first byte behind it that is kept.
    """

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many bytes are gone."""
        return self.stop - self.start
