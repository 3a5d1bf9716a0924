"""Texts that JSON can write, but that are not Unicode."""

import re
from typing import Any

_HALF = re.compile(r"[\ud800-\udfff]")


def to_unicode(value: Any) -> Any:
    """Return a JSON value in which U+FFFD stands for each half of a surrogate pair."""
    match value:
        case str():
            return _HALF.sub("\ufffd", value)
        case list():
            return [to_unicode(part) for part in value]
        case dict():
            return type(value)((to_unicode(key), to_unicode(part)) for key, part in value.items())
    return value
