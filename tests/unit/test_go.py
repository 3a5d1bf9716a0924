"""What programs in Go write, held against what they do."""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode, JobError
from jobrunner.web.dialects import go

_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1100, "1.1µs"),
        (2_200_000, "2.2ms"),
        (721_272_407, "721.272407ms"),
        (999_999_999, "999.999999ms"),
        (1_000_000_000, "1s"),
        (1_500_000_000, "1.5s"),
        (3_000_000_001, "3.000000001s"),
        (60_000_000_000, "1m0s"),
        (123_500_000_000, "2m3.5s"),
        (245_000_000_000, "4m5s"),
        (3_600_000_000_000, "1h0m0s"),
        (18_367_001_000_000, "5h6m7.001s"),
        (480_000_000_001, "8m0.000000001s"),
        ((1 << 63) - 1, "2562047h47m16.854775807s"),
    ],
)
def test_durations_are_written_as_go_does(nanoseconds: int, text: str) -> None:
    assert go.duration(nanoseconds) == text


@given(st.integers(0, (1 << 63) - 1))
def test_a_duration_says_exactly_how_long_it_is(nanoseconds: int) -> None:
    units = {"h": "3600", "m": "60", "s": "1", "ms": "1e-3", "µs": "1e-6", "ns": "1e-9"}
    parts = re.findall(r"(\d+(?:\.\d*[1-9])?)(ms|µs|ns|h|m|s)", go.duration(nanoseconds))

    assert "".join(map("".join, parts)) == go.duration(nanoseconds)
    assert sum(Decimal(number) * Decimal(units[unit]) for number, unit in parts) == Decimal(nanoseconds).scaleb(-9)


@pytest.mark.parametrize(
    ("at", "string", "rfc3339"),
    [
        (None, "0001-01-01 00:00:00 +0000 UTC", "0001-01-01T00:00:00Z"),
        (
            datetime(2014, 1, 12, 3, 42, 32, 314152, UTC),
            "2014-01-12 03:42:32.314152 +0000 UTC",
            "2014-01-12T03:42:32.314152Z",
        ),
        (datetime(2014, 1, 2, 3, 4, 5, 0, UTC), "2014-01-02 03:04:05 +0000 UTC", "2014-01-02T03:04:05Z"),
        (datetime(2014, 1, 2, 3, 4, 5, 100, UTC), "2014-01-02 03:04:05.0001 +0000 UTC", "2014-01-02T03:04:05.0001Z"),
    ],
)
def test_times_have_as_many_digits_as_they_need(at: datetime | None, string: str, rfc3339: str) -> None:
    assert (go.to_string(at), go.to_rfc3339(at)) == (string, rfc3339)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_says_exactly_when(at: datetime) -> None:
    text = go.to_rfc3339(at)
    whole, _, fraction = text.removesuffix("Z").partition(".")
    micro = timedelta(microseconds=int(fraction.ljust(6, "0")))

    assert datetime.fromisoformat(f"{whole}+00:00") + micro == at
    assert not fraction.endswith("0")
    assert go.to_string(at) == text.replace("T", " ").replace("Z", " +0000 UTC")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"\xe2\x82", "\ufffd\ufffd"),
        (b"\xe2\x82\xac", "€"),
        (b"\xf0\x9f\x98x", "\ufffd\ufffd\ufffdx"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (b"\xc0\x80", "\ufffd\ufffd"),
    ],
)
def test_each_byte_that_is_no_utf_8_is_replaced(data: bytes, text: str) -> None:
    assert go.to_text(data) == text


@given(st.binary())
def test_bytes_are_lost_to_replacements_only(data: bytes) -> None:
    assert go.to_text(data).replace("\ufffd", "") == data.decode(errors="ignore").replace("\ufffd", "")


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("abc", '"abc"'),
        ('a"b\\', r'"a\"b\\"'),
        ("\a\b\f\n\r\t\v\x00\x7f", r'"\a\b\f\n\r\t\v\x00\x7f"'),
        ("é😀", '"é😀"'),
        ("\u00a0\u200b\u2028\U000e0001", r'"\u00a0\u200b\u2028\U000e0001"'),
        ("\ufffd", '"\ufffd"'),
    ],
)
def test_a_text_is_quoted_as_by_the_verb_q(text: str, quoted: str) -> None:
    assert go.quote(text) == quoted


@given(_DOCUMENTS)
def test_json_says_the_same_and_has_nothing_that_html_would_take_for_a_tag(document: Any) -> None:
    written = go.to_json(document)

    assert json.loads(written) == document
    assert not set(written) & set("<>&\u2028\u2029")


@pytest.mark.parametrize(
    ("body", "name", "value"),
    [
        (b'{"Name": 1}', "name", 1),
        (b'{"NAME": 1, "name": 2}', "Name", 2),
        (b'{"name": 1, "name": null}', "name", 1),
        (b'{"name": 1, "NAME": null}', "name", 1),
        (b'{"name": null}', "name", None),
        (b"{}", "name", None),
        (b'{"name": 1} trailing {', "name", 1),
        (b' \n{"name": "\xff\xfe"}', "name", "\ufffd\ufffd"),
        (b'{"\xc5\xbfecret": 1}', "secret", 1),
        (rb'{"name": "\ud800"}', "name", "\ufffd"),
        (rb'{"name": ["\ud83d\ude00", {"a\udc00": "\udc00x"}]}', "name", ["😀", {"a\ufffd": "\ufffdx"}]),
    ],
)
def test_members_are_found_as_go_finds_them(body: bytes, name: str, value: object) -> None:
    assert go.parse_json(body).find(name) == value


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"{", b"nonsense", b"NaN", b"[Infinity]", b"{'a': 1}", b"\xef\xbb\xbf{}"),
        *(b"[" * 100_000, b"[" * 700 + b"]" * 700, b'{"a": 1' + b"0" * 5000),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_json_is_refused_in_words(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        go.parse_json(body)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(code=0), ""),
        (ExitStatus(code=7), "exit status 7"),
        (ExitStatus(signal=1), "signal: hangup"),
        (ExitStatus(signal=15), "signal: terminated"),
        (ExitStatus(signal=16), "signal: signal 16"),
        (ExitStatus(signal=34), "signal: signal 34"),
    ],
)
def test_ends_are_told_in_go_s_words(status: ExitStatus, text: str) -> None:
    assert go.exit_text(status) == text


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        ("No such file or directory: /x", "no such file or directory"),
        ("Permission denied: '/x: y'", "permission denied"),
        ("Exec format error: /x", "exec format error"),
        ("something else", "something else"),
    ],
)
def test_why_nothing_could_be_started_is_told_in_go_s_words(detail: str, text: str) -> None:
    assert go.start_text(JobError(ErrorCode.SPAWN_FAILED, detail), "/f") == f"fork/exec /f: {text}"
