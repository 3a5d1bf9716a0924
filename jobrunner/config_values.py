"""How the text of a setting becomes a value, and back: each of these reads a text, or makes a function that does.

What can't be read is a `ValueError` that says what was expected; where the
text stands is the business of `jobrunner.config_loading`.
"""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from dataclasses import field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from jobrunner.domain.access import NO_COMMANDS
from jobrunner.domain.addresses import Rule, parse_rule
from jobrunner.domain.patterns import pattern_problem

Parser = Callable[[str], Any]
Network = IPv4Network | IPv6Network

SECRET_PREFIX = "whsec_"  # noqa: S105 of all secrets of this kind


def setting(default: Any, parse: Parser, doc: str) -> Any:
    """Describe one setting: its default, how its text is read, and what it means."""
    return field(default=default, metadata={"parse": parse, "doc": doc}, repr=parse not in {secret, secrets})


def parse_duration(text: str) -> float:
    """Read seconds: a plain number, or one with ``s m h d w`` (``30d``).

    Raises:
        ValueError: the text is none of these.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)([smhdw]?)", text, re.ASCII)
    if not found:
        raise ValueError("expected seconds, or a number with s, m, h, d or w, like 30d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]


def parse_size(text: str) -> int:
    """Read bytes: a plain number, or one with ``K M G T`` (powers of 1024).

    Raises:
        ValueError: the text is none of these.
    """
    found = re.fullmatch(r"(\d{1,18})([KMGT]?)", text, re.ASCII | re.IGNORECASE)
    if not found:
        raise ValueError("expected bytes, or a number with K, M, G or T, like 10G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()]


def yes_no(text: str) -> bool:
    """Read ``yes`` or ``no``."""
    try:
        return {"yes": True, "no": False}[text.lower()]
    except KeyError:
        raise ValueError("expected yes or no") from None


def whole(low: int, high: int | None = None) -> Parser:
    """Read whole numbers, both bounds included."""

    def parse(text: str) -> int:
        expected = f"a whole number from {low} to {high}" if high is not None else f"a whole number of at least {low}"
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < low or (high is not None and int(text) > high):
            raise ValueError(f"expected {expected}")
        return int(text)

    return parse


def size(low: int = 0) -> Parser:
    """Read sizes of at least so many bytes."""

    def parse(text: str) -> int:
        value = parse_size(text)
        if value < low:
            raise ValueError(f"expected at least {low}")
        return value

    return parse


LONGEST = 100 * 365 * 86400.0
"""Most seconds of any duration: a hundred years from now still is a date."""


def seconds(low: float = 0.0) -> Parser:
    """Read durations of at least so many seconds."""

    def parse(text: str) -> float:
        value = parse_duration(text)
        if not low <= value <= LONGEST:
            raise ValueError(f"expected at least {low:g} seconds, and at most {LONGEST:.0f}, a hundred years")
        return value

    return parse


def one_of(*choices: str) -> Parser:
    """Read one of these words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {' or '.join(choices)}")
        return text

    return parse


def words(text: str) -> list[str]:
    """Take a list apart at its commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def word_list(text: str) -> tuple[str, ...]:
    """Read words, as they are written."""
    return tuple(words(text))


def names(text: str) -> tuple[str, ...]:
    """Read names of hosts, in lower case."""
    return tuple(name.lower() for name in words(text))


def patterns(text: str) -> tuple[str, ...]:
    """Read patterns of names (fnmatch)."""
    return tuple(words(text))


def cgroup(text: str) -> str:
    """Read where control groups are made."""
    if text not in {"auto", "no"} and not text.startswith("/"):
        raise ValueError("expected auto, no, or the absolute path of a control group")
    return text


def user(text: str) -> str:
    """Read the name of a user, with or without a group."""
    if not re.fullmatch(r"[^\s:]+(:[^\s:]+)?", text):
        raise ValueError("expected the name of a user, or user:group")
    return text


def path(text: str) -> Path:
    """Read the path of a file or directory."""
    if not text:
        raise ValueError("expected a path")
    return Path(text)


def text(text: str) -> str:
    """Read a text that says something."""
    if not text:
        raise ValueError("expected a text")
    return text


def networks(text: str) -> tuple[Network, ...]:
    """Read networks and addresses."""
    try:
        return tuple(map(ipaddress.ip_network, words(text)))
    except ValueError as error:
        raise ValueError(f"expected networks like 10.0.0.0/8: {error}") from None


def host(text: str) -> str:
    """Read an address or a name to listen on."""
    if not text or re.search(r"[\s/]", text):
        raise ValueError("expected an address or a host name")
    return text


class Secret:
    """A text that is not shown: not in a log, not by ``config show``."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "(not shown)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def secret(text: str) -> Secret:
    """Read what two sides know: printable ASCII, as a header can have it."""
    if not text or not text.isascii() or not text.isprintable():
        raise ValueError("expected printable ASCII characters")
    return Secret(text)


def commands(text: str) -> tuple[str, ...]:
    """Read patterns of programs: of absolute paths, for these are what they are held against."""
    found = tuple(words(text))
    if not found or (found != NO_COMMANDS and any(map(pattern_problem, found))):
        raise ValueError("expected none, or patterns of absolute paths, like /usr/bin/git or /opt/tools/*")
    return found


def secrets(text: str) -> tuple[Secret, ...]:
    """Read secrets that sign callbacks, as the Standard Webhooks have them."""
    found = words(text)
    for word in found:
        try:
            key = base64.b64decode(word.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not word.startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
            raise ValueError(f"expected {SECRET_PREFIX} and the base64 of 24 to 64 random bytes")
    return tuple(map(Secret, found))


def schedule(text: str) -> tuple[float, ...]:
    """Read durations, at least one."""
    found = tuple(map(seconds(), words(text)))
    if not found:
        raise ValueError("expected at least one duration")
    return found


def rules(text: str) -> tuple[Rule, ...]:
    """Read hosts and networks."""
    return tuple(map(parse_rule, words(text)))


def render_value(value: Any) -> str | None:
    """Write a value as the INI file has it; None is one that is not set."""
    match value:
        case None | ():
            return None
        case bool():
            return "yes" if value else "no"
        case tuple():
            return ", ".join(str(render_value(part)) for part in value)
        case float():
            return f"{value:.15g}"
        case _:
            return str(value)
