"""Patterns of names and paths, as settings and tokens have them."""

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(text: str, patterns: Iterable[str]) -> bool:
    """Tell whether a text is of one of these patterns (fnmatch: ``*`` takes slashes too)."""
    return find_match(text, patterns) is not None


def find_match(text: str, patterns: Iterable[str]) -> str | None:
    """Return the first of these patterns that a text is of (fnmatch: ``*`` takes slashes too), if there is one."""
    return next((pattern for pattern in patterns if fnmatchcase(text, pattern)), None)


def pattern_problem(pattern: str) -> str | None:
    """Say why no program can be of this pattern, or return None."""
    if pattern[:1] not in {"/", "*", "?", "["}:
        return f"{pattern!r} is no pattern of absolute paths, like /usr/bin/git or /opt/tools/*"
    return None
