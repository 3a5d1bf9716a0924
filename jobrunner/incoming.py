"""Tells when enough of a request has come to be answered without waiting for its client.

This looks for the end of the head, and for how long the body says to be, and
for nothing else. What a request means is the business of the HTTP server's
parser alone, which gets every byte as it came: two that read it would sooner or
later read it differently (request smuggling). Where it is in doubt how long a
request is, the parser may have to wait for more, and the answer is `State.LARGE`.
"""

import re
from enum import Enum, auto

HEAD_SECONDS = 10.0
"""How long a head may take from its first byte."""

BODY_SECONDS = 15.0
"""How long a body may take, besides what its bytes are worth."""

LEAST_RATE = 8192
"""Bytes a second of a body: so much time each of them is worth."""

MOST_HEAD = 1 << 16
"""Bytes of a head, request line included."""

MOST_BODY = 1 << 16
"""Bytes of a body that are waited for; more is read while the request is worked on."""

_METHOD = re.compile(rb"(?:\r\n?)?[!-~]{0,32}(?: |\Z)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?=\r|\Z)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*(?=\r|\Z)")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_MOST_CHUNK_LINE = 1024


class State(Enum):
    """What to do with a request of which some has come."""

    MORE = auto()
    """Wait for more, until `Incoming.deadline` at most."""

    WHOLE = auto()
    """Answer it: all of it is there, or nothing will come any more."""

    LARGE = auto()
    """Answer it, and read the rest meanwhile: it is much, or it can't be told how much, or it waits to be asked for."""

    NO_HTTP = auto()
    """Refuse it."""

    LONG_HEAD = auto()
    """Refuse it."""


class Incoming:
    """What has come of a request, and perhaps of those that follow it.

    Attributes:
        data: the bytes.
        deadline: until when more must have come; of the clock that `feed` is told.
    """

    __slots__ = ("_began", "_body_at", "_chunk_at", "_end", "data", "deadline")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin with the next request."""
        self.data: bytes | bytearray = b""
        self.deadline = 0.0
        self._began = 0.0  # the head, or the body if that has begun
        self._body_at = 0  # 0: the head has not ended yet
        self._end: int | None = None  # of the body; None: that can't be told
        self._chunk_at = 0  # where the next chunk has its size

    def feed(self, data: bytes, now: float) -> State:
        """Take what has come; return what to do.

        Args:
            data: the next bytes; empty: the client sends no more.
            now: of the monotonic clock.
        """
        if not data:
            return State.WHOLE
        before = len(self.data)
        if not before:
            self.data = data
            self._began = now
        elif isinstance(self.data, bytearray):
            self.data += data
        else:
            self.data = bytearray(self.data + data)
        if self._body_at:
            state = self._judge_body()
        else:
            end = self.data.find(b"\r\n\r\n", max(before - 3, 0))
            if end < 0:
                self.deadline = self._began + HEAD_SECONDS
                return self._judge_half_a_head(before)
            state = self._judge_head(end)
            self._began = now
        if state is State.MORE:
            self.deadline = self.body_deadline(len(self.data))
        return state

    def body_deadline(self, count: int) -> float:
        """Return until when more of the body must have come, if so many bytes of the request have."""
        return self._began + BODY_SECONDS + (count - self._body_at) / LEAST_RATE

    def begin_reading(self, now: float) -> None:
        """Have the time of the body begin: only now somebody is there to read it."""
        self._began = now

    def is_missing(self, count: int) -> bool:
        """Tell whether some of the request is still to come if so many bytes have; True if nobody knows."""
        return self._end is None or count < self._end

    def _judge_half_a_head(self, before: int) -> State:
        if len(self.data) > MOST_HEAD:
            return State.LONG_HEAD
        if not _METHOD.match(self.data) or _BARE_LF.search(self.data, before):
            return State.NO_HTTP
        return State.MORE

    def _judge_head(self, end: int) -> State:
        if end > MOST_HEAD:
            return State.LONG_HEAD
        self._body_at = end + 4
        head = bytes(self.data[:end]).lower()
        lengths, codings = head.count(b"\r\ncontent-length:"), head.count(b"\r\ntransfer-encoding:")
        if not lengths and not codings:
            self._end = self._body_at
            return State.WHOLE
        if lengths + codings > 1:
            return State.LARGE
        if lengths:
            length = _LENGTH.search(head)
            if length is None:
                return State.LARGE
            self._end = self._body_at + int(length[1])
        elif _CHUNKED.search(head):
            self._chunk_at = self._body_at
        else:
            return State.LARGE
        state = self._judge_body()
        is_asking = state is State.MORE and b"\r\nexpect:" in head
        return State.LARGE if is_asking else state

    def _judge_body(self) -> State:
        if self._end is None:
            state = self._pass_chunks()
            if state is not State.MORE:
                return state
            expected = max(len(self.data), self._chunk_at)
        else:
            if len(self.data) >= self._end:
                return State.WHOLE
            expected = self._end
        return State.LARGE if expected - self._body_at > MOST_BODY else State.MORE

    def _pass_chunks(self) -> State:
        """Go on to the first chunk that has not come yet."""
        while self._chunk_at < len(self.data):
            found = _CHUNK.match(self.data, self._chunk_at)
            if found is None:
                is_long = len(self.data) - self._chunk_at > _MOST_CHUNK_LINE
                is_odd = is_long or b"\r\n" in self.data[self._chunk_at :]
                return State.LARGE if is_odd else State.MORE
            size = int(found[1], 16)
            if size == 0:
                # The line feed of the last chunk may be that of the empty line, unless there are trailers.
                end = self.data.find(b"\r\n\r\n", found.end() - 2)
                if end < 0:
                    return State.MORE
                self._end = end + 4
                return State.WHOLE
            self._chunk_at = found.end() + size + 2
        return State.MORE
