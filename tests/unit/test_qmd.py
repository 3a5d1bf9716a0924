"""How QMD writes the URL of a callback."""

import re
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.web.dialects.qmd_document import normalize_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a/b", "http://a/b"),
        ("a/b", "http://a/b"),
        ("//a/b", "http://a/b"),
        ("a:8080/b", "http://a:8080/b"),
        ("HTTP://EXAMPLE.Org/Path", "http://example.org/Path"),
        ("http://a", "http://a"),
        ("http://a:80/", "http://a/"),
        ("https://a:443/", "https://a/"),
        ("http://a:443/", "http://a:443/"),
        ("http://a:/", "http://a/"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        ("http://[::1]/x", "http://[::1]/x"),
        ("http://a//b///c//", "http://a/b/c/"),
        ("http://a/b/./c/../d", "http://a/b/d"),
        ("http://a/b/..", "http://a/"),
        ("http://a/../../b/.", "http://a/b/"),
        ("http://a/b?z=1&a=2&m", "http://a/b?a=2&m&z=1"),
        ("http://a/?b=2&a=2&a=1", "http://a/?a=2&a=1&b=2"),
        ("http://a/?", "http://a/"),
        ("http://a?b=http://c//d", "http://a?b=http://c//d"),
        ("http://a/é", "http://a/%C3%A9"),
        ("http://a/%2e%2F", "http://a/%2e%2F"),
    ],
)
def test_a_url_is_written_in_one_way(url: str, expected: str) -> None:
    assert normalize_url(url) == expected


@pytest.mark.parametrize("url", ["http://", "http:///x", "//", "http://a:b/", "http://a b/", "http://a/\n", "\x7f"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^parse "):
        normalize_url(url)


SEGMENTS = st.lists(st.sampled_from(["a", "B", ".", "..", "", "%2e"]), max_size=6)
QUERIES = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2", ""])), max_size=5)


@given(SEGMENTS, QUERIES, st.sampled_from(["", ":80", ":8080"]))
def test_to_write_it_twice_changes_nothing(segments: list[str], query: list[tuple[str, str]], port: str) -> None:
    pairs = [f"{key}={value}" for key, value in query]
    url = f"hTTp://Host{port}/{'/'.join(segments)}?{'&'.join(pairs)}"

    found = normalize_url(url)

    assert normalize_url(found) == found
    path = urlsplit(found).path
    assert path.startswith("/")
    assert not re.search(r"//|/\.\.?(/|$)", path)
    assert sorted(urlsplit(found).query.split("&")) == sorted(pairs or [""])
    keys = [pair[0] for pair in urlsplit(found).query.split("&") if pair]
    assert keys == sorted(keys)
