"""Server-sent events as the client reads them: by the rules of WHATWG HTML, 9.2.6, wherever the bytes are cut."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.client import Dropped, Ended, Event, Moved, Output, ServiceError, event_id
from jobrunner.client.events import Message, MessageParser, parse_events
from jobrunner.domain.streams import Stream
from jobrunner.web.sse import HEARTBEAT, RETRY, TextCutter, render_event

LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
NAMES = st.sampled_from(["data", "data", "data", "event", "id", "retry", "other", ""]) | TEXT


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    cuts = sorted(cuts)
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def parse(*pieces: bytes) -> list[Message]:
    parser = MessageParser()
    return [message for piece in pieces for message in parser.feed(piece)]


def by_the_book(text: str) -> Iterator[Message]:
    """Follow the words of the standard, over a stream that is there as a whole."""
    data = name = last_id = ""
    text = text.removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in lines[:-1]:  # the last one has no end
        if line == "":
            if data != "":
                yield Message(name or "message", last_id, data.removesuffix("\n"))
            data = name = ""
        elif line.startswith(":"):
            continue
        else:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data += value + "\n"
            elif field == "event":
                name = value
            elif field == "id" and "\0" not in value:
                last_id = value


@st.composite
def streams(draw: st.DrawFn) -> str:
    def line() -> str:
        kind = draw(st.sampled_from(["field", "field", "bare", "comment", "blank", "blank"]))
        if kind == "blank":
            return ""
        if kind == "comment":
            return ":" + draw(TEXT)
        if kind == "bare":
            return draw(NAMES)
        return draw(NAMES) + draw(st.sampled_from([":", ": ", ":  "])) + draw(TEXT)

    begin = draw(st.sampled_from(["", "\ufeff", "\ufeff\ufeff"]))
    lines = draw(st.integers(0, 15))
    return begin + "".join(line() + draw(LINE_ENDS) for _ in range(lines)) + draw(st.sampled_from(["", "data: half"]))


@given(streams(), st.data())
def test_a_stream_is_read_by_the_book_wherever_it_is_cut(text: str, data: st.DataObject) -> None:
    """Also within a character, within the mark at the begin, and between CR and LF."""
    encoded = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=10))

    assert parse(*pieces_of(encoded, cuts)) == list(by_the_book(text))
    assert parse(*(bytes([byte]) for byte in encoded)) == list(by_the_book(text))


@pytest.mark.parametrize(
    ("stream", "messages"),
    [
        # The examples of the standard.
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "", "YHOO\n+2\n10")]),
        (
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
            [("message", "1", "first event"), ("message", "", "second event")],
        ),
        ("data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "", "\n")]),
        ("data:test\n\ndata: test\n\n", [("message", "", "test"), ("message", "", "test")]),
        # And what is easily done wrong.
        ("data: a\u2028b\x85c\x0bd\n\n", [("message", "", "a\u2028b\x85c\x0bd")]),
        ("id: 7\n\ndata: x\n\ndata: y\n\n", [("message", "7", "x"), ("message", "7", "y")]),
        ("id: 7\ndata: x\n\nid: 8\0\ndata: y\n\n", [("message", "7", "x"), ("message", "7", "y")]),
        ("event: a\n\ndata: x\n\n", [("message", "", "x")]),
        ("data: x\n\r\ndata: y\r\n\rdata: z\n", [("message", "", "x"), ("message", "", "y")]),
        ("\ufeffdata: x\n\n", [("message", "", "x")]),
        ("\ufeff\ufeffdata: x\n\n\ufeffdata: y\n\n", []),
        ("\n\n\n", []),
    ],
)
def test_these_streams_mean_this(stream: str, messages: list[tuple[str, str, str]]) -> None:
    assert parse(stream.encode()) == [Message(*message) for message in messages]
    assert [tuple(message) for message in by_the_book(stream)] == messages


def test_what_is_not_utf_8_is_replaced_within_its_line() -> None:
    assert parse(b"data: a\xffb\n\n") == [Message("message", "", "a\ufffdb")]


# ── what the service sends ──


@st.composite
def happenings(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Bytes of a job as they were read, and the events they are sent as."""
    written = draw(st.lists(st.binary(max_size=40) | TEXT.map(str.encode), max_size=8))
    cutter, sent = TextCutter(0), [RETRY]

    def send(told: Any) -> None:
        sent.append(render_event("stdout", event_id(stdout=cutter.at, stderr=0), told))
        if draw(st.booleans()):
            sent.append(HEARTBEAT)

    for piece in written:
        for told in cutter.feed(piece):
            send(told)
    for told in cutter.flush():
        send(told)
    return written, b"".join(sent)


@given(happenings(), st.data())
def test_what_the_service_sends_arrives_wherever_it_is_cut(
    sent: tuple[list[bytes], bytes], data: st.DataObject
) -> None:
    written, stream = sent
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))

    events = list(parse_events(pieces_of(stream, cuts)))

    assert b"".join(event.data for event in events if isinstance(event, Output)) == b"".join(written)
    at = 0
    for event in events:
        assert isinstance(event, Output)
        assert event.offset == at
        at += len(event.data)
        assert event.id == event_id(stdout=at, stderr=0)


def test_half_an_event_is_none() -> None:
    """A connection that breaks there comes back with the id of the event before."""
    stream = render_event("stdout", "3-0", {"offset": 0, "text": "abc"}) * 2
    whole = len(stream) // 2

    for length in range(len(stream)):
        assert len(list(parse_events([stream[:length]]))) == (1 if length >= whole else 0)


def test_each_kind_of_event_has_its_type() -> None:
    stream = b"".join(
        [
            render_event("stderr", "0-2", {"offset": 0, "base64": "/wo="}),
            render_event("dropped", "9-2", {"stream": "stdout", "from": 4, "to": 9}),
            render_event("state", "9-2", {"state": "running"}),
            render_event("later", "9-2", {"nobody": "knows"}),
            render_event("end", "9-2-end", {"state": "failed"}),
        ]
    )
    expected: list[Event] = [
        Output("0-2", Stream.STDERR, 0, b"\xff\n"),
        Dropped("9-2", Stream.STDOUT, 4, 9),
        Moved("9-2", {"state": "running"}),
        Ended("9-2-end", {"state": "failed"}),
    ]

    assert list(parse_events([stream])) == expected


@pytest.mark.parametrize(
    "data", ["", "{", "[]", "{}", '{"offset": 0}', '{"offset": 0, "base64": "?"}', '{"offset": "x", "text": ""}']
)
def test_what_makes_no_sense_is_a_mistake_of_the_service(data: str) -> None:
    with pytest.raises(ServiceError, match="makes no sense"):
        list(parse_events([f"event: stdout\ndata: {data}\n\n".encode()]))


def test_a_large_event_in_small_pieces_costs_no_more_than_its_size() -> None:
    """Counted, not timed: no byte is looked at again when the next piece comes."""
    text = "x" * (1 << 20)
    stream = render_event("stdout", "1-0", {"offset": 0, "text": text})
    parser = MessageParser()

    for begin in range(0, len(stream) - 1, 997):
        assert list(parser.feed(stream[begin : min(begin + 997, len(stream) - 1)])) == []
        assert sum(map(len, parser._pieces)) <= begin + 997
    (message,) = parser.feed(stream[-1:])
    assert text in message.data


def test_random_bytes_harm_nobody() -> None:
    rng = random.Random(7)
    for _ in range(200):
        parse(*(rng.randbytes(rng.randrange(30)) for _ in range(20)))
