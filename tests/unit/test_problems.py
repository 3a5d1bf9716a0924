"""Which problem an error becomes."""

import errno
import os

import pytest

from jobrunner.web.errors import render_os_error


@pytest.mark.parametrize(
    ("number", "status", "kind", "words"),
    [
        (errno.EMFILE, 503, "busy", "open files"),
        (errno.ENFILE, 503, "busy", "open files"),
        (errno.ENOSPC, 507, "storage-full", "No space left"),
        (errno.EDQUOT, 507, "storage-full", "quota"),
        (errno.EIO, 503, "storage-unavailable", "Input/output error"),
    ],
)
def test_what_the_system_says_becomes_a_problem(number: int, status: int, kind: str, words: str) -> None:
    response = render_os_error(OSError(number, os.strerror(number), "/secret/path"))

    document = response.get_json()
    assert (response.status_code, document["type"]) == (status, f"/problems/{kind}")
    assert words in document["detail"]
    assert "/secret" not in document["detail"]
    assert int(response.headers["Retry-After"]) >= 1
