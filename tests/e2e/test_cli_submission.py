"""What ``jobrunner run`` and ``submit`` send along: options, files, and stdin."""

import os
from pathlib import Path

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.e2e.commands import REFUSED, USAGE, at, finish, run, started, the_job
from tests.service import Service


def test_all_that_can_be_said_of_a_job(service: Service, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(b"\xff\0")
    (tmp_path / "source").write_text("#!/bin/sh\ncat sent; echo $X")
    words = ["--name", "all options", "--label", "a:b:c", "--env", "X=y=z", "--file", str(tmp_path / "sent")]
    words += ["--timeout", "50m", "--grace", "3s", "--priority", "high", "--exclusive", "--cwd", "."]
    words += ["--source", str(tmp_path / "source"), "--merge-stderr"]

    assert run(service, "run", *words)[0] == b"\xff\0y=z\n"

    job = check_job(the_job(service, "all options"))
    assert (job["labels"], job["priority"], job["exclusive"]) == ({"a": "b:c"}, "high", True)
    assert (job["timeout"], job["grace"], job["steps"][0]["cwd"]) == (3000, 3, ".")


def test_stdin_that_is_no_terminal_is_the_jobs(service: Service, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(data)

    assert run(service, "run", "cat", stdin=data)[0] == data
    assert run(service, "run", "cat")[0] == b""
    with (tmp_path / "file").open("rb") as file, started("run", "cat", environment=at(service), stdin=file) as command:
        assert finish(command)[0] == data
    assert run(service, "run", "--stdin", str(tmp_path / "file"), "cat", stdin=b"not this")[0] == data


@pytest.mark.parametrize("size", [1 << 20, 50 << 20])
def test_stdin_that_is_too_large_is_refused(start_service: StartService, size: int) -> None:
    service = start_service({"server": {"max_body_bytes": "1M"}})

    out, err = run(service, "run", "cat", stdin=bytes(size), code=REFUSED)

    assert out == b""
    assert b"max_body_bytes" in err
    assert err.count(b"\n") == 1
    assert service.get("/v1/jobs").json()["jobs"] == []


def test_a_script_comes_from_stdin_where_that_is_said(service: Service) -> None:
    """To the byte: a carriage return is one."""
    script = b"#!/bin/sh\nprintf %s 'here\r\n'; cat\n"

    assert run(service, "run", "--source", "-", stdin=script)[0] == b"here\r\n"


def test_of_two_files_of_one_name_none_is_lost(service: Service, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same").touch()
    words = [word for name in ("a", "b") for word in ("--file", str(tmp_path / name / "same"))]

    assert b"same" in run(service, "submit", *words, "true", code=USAGE)[1]


@pytest.mark.parametrize(
    "words",
    [
        [b"true", b"\xff"],
        [b"--env", b"A=\xff", b"true"],
        [b"--label", b"a:\xff", b"true"],
        [b"--name", b"\xff", b"true"],
        [b"--shell", b"\xff"],
        [b"--file", b"\xff", b"true"],
        [b"--source", b"\xff"],
    ],
    ids=str,
)
def test_what_is_not_utf_8_can_not_be_sent(service: Service, tmp_path: Path, words: list[bytes]) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"\xff")
    if words[0] in {b"--file", b"--source"}:
        words = [words[0], os.fsencode(tmp_path) + b"/\xff", *words[2:]]

    _, err = run(service, "run", *map(os.fsdecode, words), code=USAGE)

    assert b"UTF-8" in err
