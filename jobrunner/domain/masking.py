"""Secrets that jobs are given in their environment, kept out of what is logged."""

from collections.abc import Iterable, Mapping

from jobrunner.domain.patterns import matches

MASK = "***"

SHORTEST = 4
"""Characters of a value that is worth hiding: what is shorter (``1``, ``yes``) is in every other word."""

ARGV_MOST = 1000
"""Most characters of a command line that are shown."""


class Mask:
    """Hides some texts wherever they stand, whole and as they are: one that was quoted or encoded is another.

    Args:
        secrets: with white space around them or not.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        stripped = {secret.strip() for secret in secrets}
        self._secrets = sorted((secret for secret in stripped if len(secret) >= SHORTEST), key=len, reverse=True)

    def hide(self, text: str, most: int | None = None) -> str:
        """Return a text, without secrets; of at most so many of its characters, or of a few more.

        A secret that begins before the cut is hidden as a whole.
        """
        end = len(text) if most is None else min(most, len(text))
        spans = sorted(span for secret in self._secrets for span in _find(text, secret, end))
        pieces: list[str] = []
        at = 0
        for start, stop in spans:
            if start >= at:
                pieces += [text[at:start], MASK]
            at = max(at, stop)  # secrets that overlap are one
        pieces.append(text[at:end])
        return "".join(pieces) + ("…" if max(at, end) < len(text) else "")

    def hide_words(self, words: Iterable[str], most: int = ARGV_MOST) -> list[str]:
        """Return the words of a command line without secrets, as many as fit."""
        shown = list(words)
        # No word can hold NUL; and one search is enough, however many words there are.
        return self.hide("\0".join(shown), most).split("\0") if shown else []


class MaskRules:
    """Which variables of an environment are secret.

    Args:
        patterns: of names (fnmatch), whatever their case.
        base: the environment that all jobs get.
    """

    def __init__(self, patterns: Iterable[str], base: Mapping[str, str]) -> None:
        self._patterns = tuple(pattern.upper() for pattern in patterns)
        self._base = self._secrets(base)

    def mask(self, *given: Mapping[str, str]) -> Mask:
        """Return what hides the secrets of a job with these variables of its own, and of its steps."""
        return Mask([*self._base, *(secret for env in given for secret in self._secrets(env))])

    def _secrets(self, env: Mapping[str, str]) -> list[str]:
        return [value for name, value in env.items() if matches(name.upper(), self._patterns)]


def _find(text: str, secret: str, end: int) -> Iterable[tuple[int, int]]:
    """Return where a secret begins, before this end, and where it is over."""
    at = text.find(secret, 0, end + len(secret) - 1)
    while at >= 0:
        yield at, at + len(secret)
        at = text.find(secret, at + 1, end + len(secret) - 1)
