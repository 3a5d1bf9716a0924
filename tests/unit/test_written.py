"""JSON that is written bit by bit is what it would be if it were written at once."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.web.dialects import go
from jobrunner.web.dialects.http_runner_document import to_json
from jobrunner.web.dialects.written import GATHERED, LongText, gather, write_object

AWKWARD = st.lists(st.sampled_from([b"\xff", b"\xe2\x82", b"\xac", b"\xf0\x9f\x98\x80", b"\0", b'"\\', b"a", b"<&>"]))
BYTES = st.binary(max_size=40) | AWKWARD.map(b"".join)


@given(BYTES, st.sets(st.integers(1, 60)))
def test_a_long_text_is_written_like_a_short_one(data: bytes, cuts: set[int]) -> None:
    """Wherever it is cut: also within a character, or what is none."""
    pieces = [data[start:stop] for start, stop in pairwise([0, *sorted(cuts), 100])]
    pieces = [piece for piece in pieces if piece]

    for errors, write in (("jobrunner.go", go.to_json), ("replace", to_json)):
        for before, after in (({}, {}), ({"first": 1}, {"last": None})):
            text = data.decode(errors=errors)
            written = "".join(write_object({**before, "text": LongText(pieces, errors), **after}, write))
            assert written == write({**before, "text": text, **after})


def test_an_object_may_be_empty_and_tells_whether_a_text_is() -> None:
    assert "".join(write_object({}, to_json)) == "{}"
    assert not LongText([], "replace")
    assert LongText([b"a"], "replace")


@pytest.mark.parametrize("data", [b"a", b"\0"], ids=repr)
def test_no_more_is_read_than_is_wanted(data: bytes) -> None:
    read = 0

    def pieces() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield data * GATHERED

    written = gather(write_object({"text": LongText(pieces(), "replace")}, to_json))
    for count in range(1, 5):
        assert len(next(written)) <= 7 * GATHERED
        assert read <= count + 1
