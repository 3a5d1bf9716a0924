"""Identifiers of jobs."""

import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobrunner.domain.ids import make_job_id, parse_job_reference

TIMES = st.integers(min_value=0, max_value=(1 << 48) - 1)


@given(TIMES)
@example(0)
@example((1 << 48) - 1)
def test_an_id_is_a_uuid_of_version_7_that_holds_its_time(unix_ms: int) -> None:
    made = uuid.UUID(make_job_id(unix_ms))

    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == unix_ms


@given(st.lists(TIMES, min_size=2, max_size=50, unique=True))
def test_ids_sort_by_the_time_they_were_made(times: list[int]) -> None:
    made = {make_job_id(at): at for at in times}

    assert [made[job_id] for job_id in sorted(made)] == sorted(times)


def test_a_thousand_ids_of_one_millisecond_differ() -> None:
    assert len({make_job_id(1_700_000_000_000) for _ in range(1000)}) == 1000


@given(TIMES)
def test_an_id_refers_to_its_job_in_small_and_capital_letters(unix_ms: int) -> None:
    made = make_job_id(unix_ms)

    assert parse_job_reference(made) == made
    assert parse_job_reference(made.upper()) == made


@given(st.integers(min_value=1, max_value=10**18 - 1))
def test_a_number_refers_to_its_job(number: int) -> None:
    assert parse_job_reference(str(number)) == number


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("0", id="zero"),
        pytest.param("-1", id="negative"),
        pytest.param("+1", id="plus"),
        pytest.param("01", id="leading zero"),
        pytest.param("1_000", id="underscore"),
        pytest.param(" 1", id="space"),
        pytest.param("1\n", id="newline"),
        pytest.param("1.0", id="fraction"),
        pytest.param("1e3", id="exponent"),
        pytest.param("0x10", id="hexadecimal"),
        pytest.param("१२", id="digits of another script"),
        pytest.param("²", id="superscript"),
        pytest.param("9" * 19, id="more than 64 bits"),
        pytest.param("1" * 10_000, id="10,000 digits"),
        pytest.param("a" * 10_000, id="10,000 letters"),
        pytest.param("../../etc/passwd", id="path"),
        pytest.param("0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c1", id="a uuid cut short"),
        pytest.param("0192f0c45d3e7c319d0e2f6f1f0f3c11", id="a uuid without dashes"),
        pytest.param("{0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11}", id="a uuid in braces"),
        pytest.param("0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11\n", id="a uuid and a newline"),
        pytest.param("\0", id="NUL"),
    ],
)
def test_what_is_neither_uuid_nor_number_refers_to_nothing(text: str) -> None:
    assert parse_job_reference(text) is None


@given(st.text(max_size=50))
def test_any_text_can_be_read_as_a_reference(text: str) -> None:
    found = parse_job_reference(text)

    assert found is None or (isinstance(found, int) and 0 < found < 1 << 63) or found == text.lower()
