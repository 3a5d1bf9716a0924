"""The wall clock. Passed around as a function, so that a test can set it."""

from collections.abc import Callable
from datetime import UTC, datetime

Now = Callable[[], datetime]
"""Returns the current time, aware and in UTC."""


def utc_now() -> datetime:
    """Return the time of the system's clock."""
    return datetime.now(UTC)
