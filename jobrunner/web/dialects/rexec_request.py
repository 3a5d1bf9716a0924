"""What rexec is asked, and the lines that it answers with, as programs in Rust read and write them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

HERE = "."
"""Where a program starts if the client does not say."""

LINE_MAX = 65536
"""A line that is longer comes in parts."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client wants to be run."""

    alias: str
    cmd: str
    args: tuple[str, ...] = ()
    cwd: str = HERE
    envs: Mapping[str, str] = field(default_factory=dict)


class BadRequest(Exception):
    """A body that asks for nothing that could be run; the message is what Rust says."""


class _Object(list[tuple[str, Any]]):
    """The members of an object, each as often as it is there."""


def parse(body: bytes) -> Asked:
    """Read a body.

    Raises:
        BadRequest: it is not UTF-8 (with where), not JSON, or has not the right members (without words).
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(utf8_text(error)) from None
    try:
        value = _DECODER.decode(text)
        if not isinstance(value, _Object):
            raise TypeError("is not an object")
        known = dict(_once((key, each) for key, each in value if key in _READ))
        return Asked(**{name: _READ[name](value) for name, value in known.items()})
    except (ValueError, TypeError, RecursionError):
        raise BadRequest("") from None


def utf8_text(error: UnicodeDecodeError) -> str:
    """Say what ``Utf8Error`` says."""
    if error.reason == "unexpected end of data":
        return f"incomplete utf-8 byte sequence from index {error.start}"
    return f"invalid utf-8 sequence of {error.end - error.start} bytes from index {error.start}"


def _once(pairs: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    names = set()
    for name, value in pairs:
        if name in names:
            raise ValueError("is there twice")
        names.add(name)
        yield name, value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("is not a string")
    value.encode()  # half of a surrogate pair is no character
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, _Object) or not isinstance(value, list):
        raise TypeError("is not an array")
    return tuple(map(_text, value))


def _map_of_texts(value: Any) -> dict[str, str]:
    if not isinstance(value, _Object):
        raise TypeError("is not an object")
    return {_text(name): _text(each) for name, each in _once(value)}


_READ: dict[str, Any] = {"alias": _text, "cmd": _text, "args": _texts, "cwd": _text, "envs": _map_of_texts}


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_constant=_refuse, parse_int=float)


def rejoin(pieces: Iterable[bytes]) -> Iterator[bytes]:
    r"""Return whole lines, each ended by ``\n``, whatever ended it before."""
    rest, is_begun = b"", False
    for piece in pieces:
        lines, end, rest = (rest + piece).rpartition(b"\n")
        if end:
            yield (lines + end).replace(b"\r\n", b"\n")
            is_begun = False
        if len(rest) > LINE_MAX:
            kept = rest[-1:] if rest.endswith(b"\r") else b""  # it may be the begin of an end
            yield rest.removesuffix(b"\r")
            rest, is_begun = kept, True
    if rest or is_begun:
        yield rest + b"\n"
