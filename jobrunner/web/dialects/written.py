"""JSON that is written bit by bit: the documents of some dialects have all that a job has written in them."""

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

GATHERED = 1 << 16
"""Least bytes of a piece of what is sent, but for the last."""


class LongText:
    """A string of a document, of bytes that are UTF-8 or not; to be read once.

    Args:
        pieces: the bytes; not all of them are in memory at once.
        errors: what becomes of what is no UTF-8, for `bytes.decode`.
    """

    def __init__(self, pieces: Iterable[bytes], errors: str) -> None:
        source = iter(pieces)
        first = next(source, b"")
        self._pieces = chain([first], source)
        self._errors = errors
        self.is_empty = not first

    def __bool__(self) -> bool:
        """Tell whether there is anything in it."""
        return not self.is_empty

    def __iter__(self) -> Iterator[str]:
        """Read it."""
        decoder = codecs.getincrementaldecoder("utf-8")(self._errors)
        for piece in self._pieces:
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)


def write_object(document: Mapping[str, Any], to_json: Callable[[Any], str]) -> Iterator[str]:
    """Write an object as ``to_json`` does; members may be `LongText`."""
    before = "{"
    for name, value in document.items():
        yield f"{before}{to_json(name)}:"
        if isinstance(value, LongText):
            yield '"'
            for text in value:
                yield to_json(text)[1:-1]  # each character is written for itself
            yield '"'
        else:
            yield to_json(value)
        before = ","
    yield "{}" if before == "{" else "}"


def gather(pieces: Iterable[str]) -> Iterator[bytes]:
    """Encode a text, and put small pieces of it together."""
    found: list[bytes] = []
    size = 0
    for piece in pieces:
        data = piece.encode()
        found.append(data)
        size += len(data)
        if size >= GATHERED:
            yield b"".join(found)
            found, size = [], 0
    if found:
        yield b"".join(found)
