"""Bytes as the text of events: nothing is lost, and no character is cut."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.web.sse import TextCutter


def cut(pieces: list[bytes], at: int = 0) -> list[dict[str, Any]]:
    cutter = TextCutter(at)
    told = [part for piece in pieces for part in cutter.feed(piece)]
    return [*told, *cutter.flush()]


def content(part: dict[str, Any]) -> bytes:
    return base64.b64decode(part["base64"]) if "base64" in part else part["text"].encode()


@st.composite
def texts_in_pieces(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    data = draw(st.text().map(str.encode) | st.binary())
    cuts = sorted(draw(st.lists(st.integers(0, len(data)))))
    return data, [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(texts_in_pieces(), st.integers(0, 1 << 40))
def test_the_parts_make_the_whole_and_their_offsets_join(given_: tuple[bytes, list[bytes]], at: int) -> None:
    data, pieces = given_
    parts = cut(pieces, at)

    assert b"".join(map(content, parts)) == data
    for part in parts:
        assert part["offset"] == at
        at += len(content(part))


@given(st.text(), st.data())
def test_text_stays_text_wherever_it_is_cut(text: str, data: st.DataObject) -> None:
    encoded = text.encode()
    middle = data.draw(st.integers(0, len(encoded)))

    parts = cut([encoded[:middle], encoded[middle:]])

    assert all("text" in part for part in parts)
    assert "".join(part["text"] for part in parts) == text


@pytest.mark.parametrize("character", ["é", "€", "🙂"])
def test_a_character_waits_for_its_last_byte(character: str) -> None:
    *first, last = (bytes([byte]) for byte in character.encode())
    cutter = TextCutter(0)

    assert [part for byte in first for part in cutter.feed(byte)] == []
    assert list(cutter.feed(last)) == [{"offset": 0, "text": character}]


def test_what_is_no_text_is_told_as_it_is() -> None:
    assert cut([b"caf\xe9\n", b"more"]) == [
        {"offset": 0, "text": "caf"},
        {"offset": 3, "base64": base64.b64encode(b"\xe9\n").decode()},
        {"offset": 5, "text": "more"},
    ]


def test_the_begin_of_a_character_without_its_end_is_told_last() -> None:
    assert cut([b"a\xe2\x82"]) == [
        {"offset": 0, "text": "a"},
        {"offset": 1, "base64": base64.b64encode(b"\xe2\x82").decode()},
    ]
