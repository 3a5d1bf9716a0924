"""Text that came from somebody else, before people get to see it."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    """Make visible what would begin a new line, steer a terminal, or turn a line around."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
