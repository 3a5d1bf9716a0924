"""Habits of programs in Go, which several originals are: JSON, times, durations, and words for ends."""

import codecs
import json
import os
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import Job, JobError
from jobrunner.web.dialects.starting import STARTED, find_errno
from jobrunner.web.dialects.unicode import to_unicode
from jobrunner.web.dialects.written import LongText

ZERO_TIME = datetime(1, 1, 1)  # noqa: DTZ001 it is only ever written
"""What Go has for no time."""

_SIGNALS = (
    "hangup", "interrupt", "quit", "illegal instruction", "trace/breakpoint trap", "aborted", "bus error",
    "floating point exception", "killed", "user defined signal 1", "segmentation fault", "user defined signal 2",
    "broken pipe", "alarm clock", "terminated",
)  # fmt: skip

# ── texts ──


def _replace_one(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error("jobrunner.go", _replace_one)


def to_text(data: bytes) -> str:
    """Read UTF-8; each byte that is none becomes U+FFFD."""
    return data.decode(errors="jobrunner.go")


def to_long_text(pieces: Iterable[bytes]) -> LongText:
    """As `to_text`, bit by bit."""
    return LongText(pieces, "jobrunner.go")


def quote(text: str) -> str:
    """Write a text as ``%q`` does."""
    return f'"{"".join(map(_quoted, text))}"'


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


def _quoted(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if 0xD800 <= code < 0xE000:
        return "\ufffd"
    if character.isprintable():
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# ── JSON ──

_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def to_json(document: Any) -> str:
    """Write a document as Go's encoder does, on one line and without a line feed."""
    # These characters can stand in strings only.
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).translate(_HTML)


class Members(dict[str, Any]):
    """The members of an object, found as Go finds the fields of a struct: whatever their case."""

    def find(self, name: str) -> Any:
        """Return a member; None: there is none, or it is null."""
        found = None
        for key, value in self.items():
            if value is not None and key.casefold() == name.casefold():
                found = value  # the last one counts
        return found


def parse_json(body: bytes) -> Any:
    """Read the first JSON value of a body, and nothing behind it. Objects are `Members`.

    Raises:
        ValueError: there is none; with words for people.
    """
    text = to_text(body).lstrip(" \t\r\n")
    if not text:
        raise ValueError("EOF")
    try:
        value, _ = _DECODER.raw_decode(text)
        # What is half of a surrogate pair is no character.
        return to_unicode(value)
    except RecursionError:
        raise ValueError("exceeded max depth") from None


def _object(pairs: list[tuple[str, Any]]) -> Members:
    members = Members()
    for key, value in pairs:
        if value is not None or key not in members:
            members.pop(key, None)  # it stands where it comes last
            members[key] = value
    return members


def _refuse(name: str) -> Any:
    raise ValueError(f"invalid character '{name[0]}' looking for beginning of value")


# Nothing here wants a number, and whole ones may be too long to be read.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse, parse_int=float)


# ── times ──


def to_rfc3339(at: datetime | None) -> str:
    """Write a time as Go's JSON has it: with as many digits as it needs; None is the zero time."""
    at = at or ZERO_TIME
    return f"{at.year:04d}-{at:%m-%dT%H:%M:%S}{_fraction(at)}Z"


def to_string(at: datetime | None) -> str:
    """Write a time as ``Time.String`` does, in UTC; None is the zero time."""
    at = at or ZERO_TIME
    return f"{at.year:04d}-{at:%m-%d %H:%M:%S}{_fraction(at)} +0000 UTC"


def _fraction(at: datetime) -> str:
    return f".{at.microsecond:06d}".rstrip("0") if at.microsecond else ""


_SECOND = 1_000_000_000


def duration(nanoseconds: int) -> str:
    """Write a duration that is not negative as ``Duration.String`` does: ``721.272407ms``, ``1.5s``, ``2m3.5s``."""
    if nanoseconds < _SECOND:
        for unit, size in (("ms", 1_000_000), ("µs", 1000), ("ns", 1)):
            if nanoseconds >= size:
                return _decimal(nanoseconds, size) + unit
        return "0s"
    minutes, rest = divmod(nanoseconds, 60 * _SECOND)
    text = f"{_decimal(rest, _SECOND)}s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"
    return text


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    digits = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


# ── ends ──


def signal_text(number: int) -> str:
    """Name a signal."""
    return _SIGNALS[number - 1] if number <= len(_SIGNALS) else f"signal {number}"


def exit_text(status: ExitStatus) -> str:
    """Say how a process ended; empty: with 0."""
    if status.signal is not None:
        return f"signal: {signal_text(status.signal)}"
    return f"exit status {status.code}" if status.code else ""


def start_text(error: JobError, path: str) -> str:
    """Say why a process could not be made of this file."""
    number = find_errno(error)
    words = os.strerror(number) if number is not None else error.detail
    return f"fork/exec {path}: {words[:1].lower()}{words[1:]}"


def end_text(job: Job, path: str) -> str:
    """Say what became of a job that has ended; empty: its process has ended with 0.

    Args:
        job: which.
        path: of the file that was to be executed.
    """
    if job.status is not None:
        return exit_text(job.status)
    if job.error is not None and job.error.code not in STARTED:
        return start_text(job.error, path)
    # It was canceled before it began; or nobody knows, as when another has reaped the process.
    return "signal: killed" if job.cancel is not None else "wait: no child processes"
