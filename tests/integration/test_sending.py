"""Files as answers: parts, conditions, names, and no page of a stranger's."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from flask import Flask, Response
from werkzeug.test import TestResponse

from jobrunner.web.errors import register_error_handlers
from jobrunner.web.sending import FileSlice, disposition, send_file

CONTENT = bytes(range(256)) * 40
SIZE = len(CONTENT)

Ask = Callable[..., TestResponse]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that has `CONTENT`."""
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


@pytest.fixture
def ask(path: Path) -> Ask:
    """Ask for the file: ``ask(Range="bytes=0-9")``; ``how`` is for `send_file`."""
    app = Flask("test")
    register_error_handlers(app)
    opened: list[BinaryIO] = []
    wanted: dict[str, Any] = {}

    @app.get("/")
    def view() -> Response:
        opened.append(path.open("rb", buffering=0))
        return send_file(opened[-1], content_type="application/octet-stream", **{"size": SIZE, **wanted})

    def ask(how: dict[str, Any] | None = None, method: str = "GET", **headers: str) -> TestResponse:
        wanted.clear()
        wanted.update(how or {})
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = app.test_client().open("/", method=method, headers=named)
        response.get_data()
        response.close()
        assert opened[-1].closed
        return response

    return ask


# ── parts ──


def test_the_whole_is_sent_with_its_length(ask: Ask) -> None:
    response = ask()

    assert (response.status_code, response.data) == (200, CONTENT)
    assert response.headers["Content-Length"] == str(SIZE)
    assert response.headers["Accept-Ranges"] == "bytes"
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert "Content-Range" not in response.headers
    assert "Content-Disposition" not in response.headers
    assert "ETag" not in response.headers


def test_a_file_that_has_grown_is_sent_up_to_the_size_that_was_promised(ask: Ask) -> None:
    assert ask({"size": 10}).data == CONTENT[:10]
    assert ask({"size": 10}, Range="bytes=5-99").data == CONTENT[5:10]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=10239-", 10239, 10240),
        ("bytes=0-", 0, 10240),
        ("bytes=10000-999999", 10000, 10240),
        ("bytes=-500", 9740, 10240),
        ("bytes=-999999", 0, 10240),
        ("bytes=0-99999999999999999999", 0, 10240),
    ],
)
def test_a_range_is_sent_alone(ask: Ask, asked: str, start: int, stop: int) -> None:
    response = ask(Range=asked)

    assert (response.status_code, response.data) == (206, CONTENT[start:stop])
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert response.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=10240-10300", "bytes=99999999999999999999-"])
def test_a_range_behind_the_end_is_not_satisfiable(ask: Ask, asked: str) -> None:
    response = ask(Range=asked)

    assert response.status_code == 416
    assert response.headers["Content-Range"] == f"bytes */{SIZE}"
    assert response.json is not None
    assert response.json["type"] == "/problems/range-not-satisfiable"


def test_nothing_of_an_empty_file_can_be_asked_for(ask: Ask) -> None:
    assert (ask({"size": 0}).status_code, ask({"size": 0}).data) == (200, b"")
    for asked in ("bytes=0-", "bytes=-1"):
        assert ask({"size": 0}, Range=asked).status_code == 416


@pytest.mark.parametrize(
    "asked", ["bytes=0-0,5-9", "bytes=", "bytes=x-y", "bytes=9-1", "lines=1-2", "bytes", "bytes=-", "bytes=1", "0-5"]
)
def test_a_range_that_is_malformed_or_manifold_is_answered_with_the_whole(ask: Ask, asked: str) -> None:
    assert (ask(Range=asked).status_code, ask(Range=asked).data) == (200, CONTENT)


def test_a_head_tells_of_the_whole(ask: Ask) -> None:
    for headers in ({}, {"Range": "bytes=0-9"}, {"Range": "bytes=99999-"}):
        response = ask(method="HEAD", **headers)

        assert (response.status_code, response.data) == (200, b"")
        assert response.headers["Content-Length"] == str(SIZE)


def test_a_tail_overrules_a_range(ask: Ask) -> None:
    response = ask({"tail": 7}, Range="bytes=0-9")

    assert (response.status_code, response.data) == (200, CONTENT[-7:])
    assert ask({"tail": SIZE + 1}).data == CONTENT


# ── conditions ──


def test_a_client_that_has_this_version_is_told_so(ask: Ask) -> None:
    assert ask({"etag": "one"}).headers["ETag"] == '"one"'
    for asked in ('"one"', 'W/"one"', '"two", "one"', "*"):
        response = ask({"etag": "one"}, If_None_Match=asked)

        assert (response.status_code, response.data, response.headers["ETag"]) == (304, b"", '"one"')
    assert ask({"etag": "one"}, If_None_Match='"two"').data == CONTENT


def test_a_client_that_wants_another_version_gets_none(ask: Ask) -> None:
    assert ask({"etag": "one"}, If_Match='"two"').status_code == 412
    for asked in ('"one"', "*"):
        assert ask({"etag": "one"}, If_Match=asked).status_code == 200


def test_a_part_is_of_the_version_that_the_client_has_the_rest_of(ask: Ask) -> None:
    part, whole = (206, CONTENT[:5]), (200, CONTENT)
    wanted = {
        '"one"': part,
        '"two"': whole,
        'W/"one"': whole,
        "one": whole,
        "": whole,
        "Wed, 21 Oct 2015 07:28:00 GMT": whole,
    }

    for condition, answer in wanted.items():
        response = ask({"etag": "one"}, Range="bytes=0-4", If_Range=condition)
        assert (response.status_code, response.data) == answer, condition


def test_without_a_version_no_condition_about_it_holds(ask: Ask) -> None:
    assert ask(Range="bytes=0-4", If_Range='"one"').data == CONTENT
    assert ask(If_None_Match='"one"').data == CONTENT


# ── safety ──


def test_a_browser_takes_nothing_for_a_page_of_ours(ask: Ask) -> None:
    for headers in ({}, {"Range": "bytes=0-9"}):
        response = ask(**headers)

        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ("a b;c=d,e.txt", 'attachment; filename="a b;c=d,e.txt"'),
        ('a"b', "attachment; filename=\"a_b\"; filename*=UTF-8''a%22b"),
        ("a\\b", "attachment; filename=\"a_b\"; filename*=UTF-8''a%5Cb"),
        ("100%41", "attachment; filename=\"100_41\"; filename*=UTF-8''100%2541"),
        ("ü€.txt", "attachment; filename=\"__.txt\"; filename*=UTF-8''%C3%BC%E2%82%AC.txt"),
        ("a\r\nSet-Cookie: x", 'attachment; filename="a__Set-Cookie: x"'),
        ("a\x00\x1b\u202eb\udcff", 'attachment; filename="a___b_"'),
        ("it's", 'attachment; filename="it\'s"'),
        ("ü'", "attachment; filename=\"_'\"; filename*=UTF-8''%C3%BC%27"),
    ],
)
def test_any_name_can_be_saved_under(name: str, header: str) -> None:
    assert disposition(name) == header
    header.encode("ascii")


def test_a_download_has_its_name(ask: Ask) -> None:
    assert ask({"download_name": "a.txt"}).headers["Content-Disposition"] == 'attachment; filename="a.txt"'


# ── the slice ──


def test_a_slice_reads_no_further_than_it_goes(path: Path) -> None:
    part = FileSlice(path.open("rb", buffering=0), 10, 20)

    assert part.fileno() >= 0
    assert os.lseek(part.fileno(), 0, os.SEEK_CUR) == 10
    assert b"".join(iter(lambda: part.read(7), b"")) == CONTENT[10:30]
    assert part.read() == b""
    part.close()
    part.close()


def test_a_slice_that_was_not_sent_whole_breaks_the_connection(path: Path) -> None:
    part = FileSlice(path.open("rb", buffering=0), 0, SIZE)
    part.read(10)
    os.truncate(path, 10)

    with pytest.raises(ConnectionResetError, match="10230 bytes are missing"):
        part.close()
    assert part.closed
