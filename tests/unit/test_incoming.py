"""When all of a request has come, in whatever pieces: as gunicorn's own parser sees it."""

from collections.abc import Iterable

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.incoming import MOST_BODY, MOST_HEAD, Incoming, State

GET = b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

heads = st.sampled_from([b"", b"X: y\r\n", b"x-content-length: 7\r\n", b"X: chunked\r\n", b"X: \r\n"])
bodies = st.binary(max_size=300)


@st.composite
def whole_requests(draw: st.DrawFn) -> bytes:
    """Make a request that gunicorn takes."""
    before, after, body = draw(heads), draw(heads), draw(bodies)
    kind = draw(st.sampled_from(["none", "length", "chunks"]))
    if kind == "none":
        return draw(st.sampled_from([b"", b"\r\n"])) + GET[:-2] + before + b"\r\n"
    if kind == "length":
        name = draw(st.sampled_from([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH:\t "]))
        return POST + before + name + str(len(body)).encode() + b"\r\n" + after + b"\r\n" + body
    chunks = b""
    for piece in draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5)):
        extension = draw(st.sampled_from([b"", b";a=b", b" ; a", b';a="b"']))
        chunks += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    end = draw(st.sampled_from([b"0\r\n\r\n", b"000\r\nX: y\r\n\r\n", b"0;a\r\nX: y\r\nZ: \r\n\r\n"]))
    coding = draw(st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:CHUNKED \r\n"]))
    return POST + before + coding + after + b"\r\n" + chunks + end


def length_to_gunicorn(data: bytes) -> int:
    """Return how many bytes gunicorn's parser takes for the first request."""
    parser = RequestParser(Config(), iter([data, b""]), ("127.0.0.1", 1))
    next(parser)
    assert parser.finish_body()
    return len(data) - len(parser.unreader.take_buffered())


def feed(pieces: Iterable[bytes], incoming: Incoming | None = None) -> list[State]:
    incoming = incoming or Incoming()
    return [incoming.feed(piece, 0.0) for piece in pieces]


@given(whole_requests(), st.data())
def test_a_request_is_whole_with_the_byte_with_which_gunicorn_sees_its_end(request: bytes, data: st.DataObject) -> None:
    assert length_to_gunicorn(request + GET) == len(request)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(request) - 1), max_size=8)))
    pieces = [request[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(request)], strict=True)]

    assert feed(pieces) == [State.MORE] * (len(pieces) - 1) + [State.WHOLE]
    assert feed([request + GET]) == [State.WHOLE]


@given(whole_requests())
def test_nothing_is_awaited_from_a_client_that_has_ended(request: bytes) -> None:
    assert feed([request[:-1], b""]) == [State.MORE, State.WHOLE]


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=10))
def test_anything_is_taken(pieces: list[bytes]) -> None:
    feed(pieces)
    feed([CHUNKED, *pieces])


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: x",
        b"Content-Length: -1",
        b"Content-Length: +5",
        b"Content-Length: 5, 5",
        b"Content-Length: 5 5",
        b"Content-Length: " + b"9" * 40,
        b"Content-Length: 5\r\nContent-Length: 5",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, chunked",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding:",
        b"Content-Length: 99999999",
        b"Content-Length: 5\r\nExpect: 100-continue",
    ],
)
def test_a_length_in_doubt_is_left_to_the_parser(head: bytes) -> None:
    assert feed([POST + head + b"\r\n\r\n"]) == [State.LARGE]


@pytest.mark.parametrize("chunk", [b"x\r\n", b"\r\n\r\n", b"-1\r\n", b"0x5\r\n", b"5" * 2000, b"fffffff\r\nx"])
def test_an_odd_chunk_is_left_to_the_parser(chunk: bytes) -> None:
    assert feed([CHUNKED + chunk]) == [State.LARGE]


def test_only_so_much_is_waited_for() -> None:
    piece = b"x" * 1000
    incoming = Incoming()

    states = feed([CHUNKED, *[b"3e8\r\n" + piece + b"\r\n"] * 70], incoming)
    assert states.index(State.LARGE) == len([state for state in states if state is State.MORE])
    assert len(incoming.data) > MOST_BODY
    assert feed([POST + b"Content-Length: %d\r\n\r\n" % MOST_BODY]) == [State.MORE]
    assert feed([POST + b"Content-Length: %d\r\n\r\n" % (MOST_BODY + 1)]) == [State.LARGE]
    assert feed([POST, b"X: " + b"y" * MOST_HEAD]) == [State.MORE, State.LONG_HEAD]
    assert feed([POST + b"X: " + b"y" * MOST_HEAD + b"\r\n\r\n"]) == [State.LONG_HEAD]


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\nHost: x\n\n", b"\n", b"\r\n\r", b"G" * 40, b"\x00"]
)
def test_what_is_no_http_is_told_at_once(data: bytes) -> None:
    assert feed([data]) == [State.NO_HTTP]


def test_the_time_for_a_head_does_not_grow_and_that_for_a_body_grows_with_it() -> None:
    incoming = Incoming()
    deadlines = []
    for at, piece in enumerate([POST, b"Content-Length: 60000\r\n", b"\r\n", b"x", b"x" * 8192, b"x"]):
        assert incoming.feed(piece, float(at)) is State.MORE
        deadlines.append(incoming.deadline)

    assert deadlines[:2] == [10.0, 10.0]
    assert deadlines[2] == 2.0 + 15.0
    assert deadlines[4] - deadlines[3] == 1.0
    assert deadlines[5] - deadlines[2] < 1.1
