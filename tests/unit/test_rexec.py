"""What rexec reads and writes, held against what programs in Rust do."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobrunner.web.dialects.rexec_request import LINE_MAX, Asked, BadRequest, parse, rejoin, utf8_text


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"alias": "a", "cmd": "ls"}', Asked("a", "ls")),
        (b' {"cmd":"ls","alias":""}\r\n\t', Asked("", "ls")),
        (
            b'{"alias":"a","cmd":"c","args":["x",""],"cwd":"/","envs":{"A":"b"}}',
            Asked("a", "c", ("x", ""), "/", {"A": "b"}),
        ),
        (rb'{"alias":"\u00e9\ud83d\ude00","cmd":"c"}', Asked("é😀", "c")),
        (b'{"alias":"a","cmd":"c","Args":1,"more":{"a":0,"a":[1e999,%s]},"more":0}' % (b"1" * 5000), Asked("a", "c")),
        (rb'{"alias":"a","cmd":"c","more":"\ud800"}', Asked("a", "c")),
        (rb'{"al\u0069as":"a","cmd":"c"}', Asked("a", "c")),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_what_is_to_be_run_is_read(body: bytes, asked: Asked) -> None:
    assert parse(body) == asked


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b'["a","ls"]',
        b'"x"',
        b"{}",
        b'{"alias":"a"}',
        b'{"cmd":"c"}',
        b'{"Alias":"a","cmd":"c"}',
        b'{"alias":"a","cmd":"c"} x',
        b'{"alias":"a","cmd":"c"}{}',
        b'{"alias":"a","cmd":"c",}',
        b"{'alias':'a','cmd':'c'}",
        b'{"alias":null,"cmd":"c"}',
        b'{"alias":"a","cmd":1}',
        b'{"alias":"a","cmd":["c"]}',
        b'{"alias":"a","cmd":"c","args":null}',
        b'{"alias":"a","cmd":"c","args":"x"}',
        b'{"alias":"a","cmd":"c","args":{}}',
        b'{"alias":"a","cmd":"c","args":[1]}',
        b'{"alias":"a","cmd":"c","args":[null]}',
        b'{"alias":"a","cmd":"c","cwd":null}',
        b'{"alias":"a","cmd":"c","envs":null}',
        b'{"alias":"a","cmd":"c","envs":[]}',
        b'{"alias":"a","cmd":"c","envs":{"A":1}}',
        b'{"alias":"a","cmd":"c","envs":{"A":null}}',
        b'{"alias":"a","cmd":"c","envs":{"A":"1","A":"1"}}',
        b'{"alias":"a","alias":"a","cmd":"c"}',
        b'{"alias":"a","cmd":"c","cwd":".","cwd":"."}',
        rb'{"alias":"a","cmd":"c","al\u0069as":"a"}',
        rb'{"alias":"\ud800","cmd":"c"}',
        b'{"alias":"a\n","cmd":"c"}',
        b'{"alias":"a","cmd":"c","more":NaN}',
        b'\xef\xbb\xbf{"alias":"a","cmd":"c"}',
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:70]),
)
def test_what_is_no_request_is_refused_without_words(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(body)

    assert str(caught.value) == ""


def rust_text(data: bytes) -> str | None:
    """``core::str::from_utf8``: the loop of its ``run_utf8_validation``; None: it is UTF-8."""
    at = 0
    while at < len(data):
        first = data[at]
        width = 1 if first < 0x80 else 2 if 0xC2 <= first <= 0xDF else 3 if 0xE0 <= first <= 0xEF else 4
        if first >= 0x80 and not 0xC2 <= first <= 0xF4:
            return f"invalid utf-8 sequence of 1 bytes from index {at}"
        second = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}
        for place in range(1, width):
            if at + place >= len(data):
                return f"incomplete utf-8 byte sequence from index {at}"
            low, high = second.get(first, (0x80, 0xBF)) if place == 1 else (0x80, 0xBF)
            if not low <= data[at + place] <= high:
                return f"invalid utf-8 sequence of {place} bytes from index {at}"
        at += width
    return None


_AWKWARD = st.sampled_from([0x00, 0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xF5])


@given(st.lists(_AWKWARD | st.integers(0, 255), max_size=12).map(bytes))
@example(b"\xe2\x82")
@example(b"\xf0\x9f\x98A")
def test_what_is_no_utf8_is_told_as_rust_tells_it(data: bytes) -> None:
    try:
        data.decode()
        found = None
    except UnicodeDecodeError as error:
        found = utf8_text(error)

    assert found == rust_text(data)


def test_a_body_that_is_no_utf8_is_told_so() -> None:
    with pytest.raises(BadRequest, match=r"^invalid utf-8 sequence of 1 bytes from index 1$"):
        parse(b'"\xff')


def rust_lines(data: bytes) -> bytes:
    """``BufRead::lines``, each with a line feed behind it."""
    *whole, last = data.split(b"\n")
    lines = [line.removesuffix(b"\r") for line in whole] + ([last] if last else [])
    return b"".join(line + b"\n" for line in lines)


@given(st.lists(st.text("a\r\n", max_size=6).map(str.encode), max_size=8))
def test_lines_end_alike_however_they_come(pieces: list[bytes]) -> None:
    parts = list(rejoin(pieces))

    assert b"".join(parts) == rust_lines(b"".join(pieces))
    assert all(part.endswith(b"\n") for part in parts), "no line comes in parts"


@given(st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"a"]), st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"b\n"]))
def test_a_very_long_line_is_not_kept_whole(middle: bytes, end: bytes) -> None:
    pieces = [b"x" * LINE_MAX, b"y", middle, b"z" * LINE_MAX, b"\r", b"", end]

    parts = list(rejoin(pieces))

    assert b"".join(parts) == rust_lines(b"".join(pieces))
    assert max(map(len, parts)) <= LINE_MAX + 3


def test_what_json_escapes_is_read_as_it_was() -> None:
    text = "".join(map(chr, range(0x100)))

    assert parse(json.dumps({"alias": text, "cmd": "c"}).encode()).alias == text
