"""What happens to a job, read from server-sent events (WHATWG HTML, 9.2.6).

The parser is our own: of the libraries for requests, sseclient-py takes half
an event at a broken end for a whole one, and requests-sse a cut between CR
and LF for an empty line. Here both would falsify output.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobrunner.client.transport import Document, ServiceError
from jobrunner.domain.streams import Stream

MEDIA_TYPE = "text/event-stream"

_BOM = b"\xef\xbb\xbf"

_NAMES = frozenset({"stdout", "stderr", "dropped", "state", "end"})


@dataclass(frozen=True, slots=True)
class Output:
    """The job has written these bytes; they join those of the event before of this stream.

    Attributes:
        id: of the event, as for all others: `Client.events` goes on behind it.
        offset: of the first byte.
    """

    id: str
    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """These bytes are no longer kept; `stop` is the first behind them that is."""

    id: str
    stream: Stream
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Moved:
    """The job is in a state, at first and when it changes."""

    id: str
    job: Document


@dataclass(frozen=True, slots=True)
class Ended:
    """The job has ended and all was told: the last event."""

    id: str
    job: Document


Event = Output | Dropped | Moved | Ended


def event_id(*, stdout: int, stderr: int) -> str:
    """Return the id to begin with at these offsets. A stream tells nothing before its offset."""
    return f"{stdout}-{stderr}"


class Message(NamedTuple):
    """An event as the format has it."""

    name: str
    id: str
    data: str


class MessageParser:
    """Makes messages of the bytes of a stream, wherever they are cut. What is not finished is nothing."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # of a line whose end has not come
        self._after_cr = False
        self._is_first_line = True
        self._id = ""
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take the next bytes; return the messages that they complete."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]  # of a line end that was cut in two
            self._after_cr = False
        if not data:
            return
        self._after_cr = data.endswith(b"\r")
        for line in data.splitlines(keepends=True):
            self._pieces.append(line)
            if line.endswith((b"\r", b"\n")):
                whole = b"".join(self._pieces).rstrip(b"\r\n")
                self._pieces.clear()
                yield from self._take(whole)

    def _take(self, line: bytes) -> Iterator[Message]:
        if self._is_first_line:
            line = line.removeprefix(_BOM)
            self._is_first_line = False
        if not line:
            yield from self._dispatch()
            return
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value

    def _dispatch(self) -> Iterator[Message]:
        data, self._data = self._data, []
        name, self._name = self._name, ""
        if data:
            yield Message(name or "message", self._id, "\n".join(data))


def parse_events(pieces: Iterable[bytes]) -> Iterator[Event]:
    """Return the events in the bytes of an answer, as they come. Kinds that are not known are passed over.

    Raises:
        ServiceError: what is sent makes no sense.
    """
    parser = MessageParser()
    for piece in pieces:
        for message in parser.feed(piece):
            try:
                event = _to_event(message)
            except (ValueError, KeyError, TypeError) as error:
                raise ServiceError(f"the event {message.name!r} {message.id} makes no sense: {error!r}", 200) from error
            if event is not None:
                yield event


def _to_event(message: Message) -> Event | None:
    if message.name not in _NAMES:
        return None
    data: Any = json.loads(message.data)
    match message.name:
        case "dropped":
            return Dropped(message.id, Stream(data["stream"]), int(data["from"]), int(data["to"]))
        case "state":
            return Moved(message.id, data)
        case "end":
            return Ended(message.id, data)
    content = base64.b64decode(data["base64"], validate=True) if "base64" in data else data["text"].encode()
    return Output(message.id, Stream(message.name), int(data["offset"]), content)
