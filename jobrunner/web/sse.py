"""Server-sent events (WHATWG HTML, 9.2): text that a browser's ``EventSource`` reads."""

import base64
from collections.abc import Iterator
from typing import Any

from jobrunner.web.render import to_json

HEARTBEAT = b":\n\n"
"""A comment: keeps proxies from closing a quiet connection."""

RETRY = b"retry: 1000\n\n"
"""Has a browser connect again after a second."""

_CONTINUES, _TWO, _THREE, _FOUR = 0x80, 0xC0, 0xE0, 0xF0


def render_event(name: str, event_id: str, data: Any) -> bytes:
    """Write an event; its data is JSON, so it has one line."""
    return f"event: {name}\nid: {event_id}\ndata: {to_json(data)}\n".encode()


class TextCutter:
    """Cuts the bytes of one stream into text, never within a character."""

    def __init__(self, at: int) -> None:
        self.at = at  # what was given out ends here
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Take the next bytes; return what can be told of them. The begin of a character waits for its rest."""
        data = self._rest + data
        end = _whole_characters(data)
        self._rest = data[end:]
        yield from self._tell(data[:end])

    def flush(self) -> Iterator[dict[str, Any]]:
        """Return what has waited for a rest that does not come."""
        rest, self._rest = self._rest, b""
        yield from self._tell(rest)

    def _tell(self, data: bytes) -> Iterator[dict[str, Any]]:
        try:
            good, bad = data.decode(), b""
        except UnicodeDecodeError as error:
            good, bad = data[: error.start].decode(), data[error.start :]
        if good:
            yield self._advance(len(data) - len(bad), {"text": good})
        if bad:
            yield self._advance(len(bad), {"base64": base64.b64encode(bad).decode()})

    def _advance(self, count: int, content: dict[str, str]) -> dict[str, Any]:
        told = {"offset": self.at, **content}
        self.at += count
        return told


def _whole_characters(data: bytes) -> int:
    """Return how many of the bytes can be decoded now: a character at the end may not be complete."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte < _CONTINUES:
            break
        if byte >= _TWO:
            length = 2 if byte < _THREE else 3 if byte < _FOUR else 4
            return len(data) - back if length > back else len(data)
    return len(data)
