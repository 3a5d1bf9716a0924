"""Which file a command line would execute."""

import os
import subprocess
from pathlib import Path

import pytest

from jobrunner.programs import find_program, is_itself, pattern_warning


def program(path: Path, says: str = "", mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(mode)
    return str(path)


def said(name: str, path: str, cwd: Path) -> str:
    """Return what the system executes."""
    return subprocess.run([name], env={"PATH": path}, cwd=cwd, stdout=subprocess.PIPE, check=True, text=True).stdout


# ── by a path ──


def test_an_absolute_path_is_itself(tmp_path: Path) -> None:
    tool = program(tmp_path / "tool")

    assert find_program(tool, "/nowhere", None) == tool


def test_links_are_followed_to_the_file(tmp_path: Path) -> None:
    tool = program(tmp_path / "real" / "tool")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "one").symlink_to("folder/tool")
    (tmp_path / "two").symlink_to(tmp_path / "one")

    assert find_program(str(tmp_path / "two"), None, None) == tool
    assert find_program(str(tmp_path / "folder" / ".." / "real" / "tool"), None, None) == tool


def test_a_relative_path_starts_in_the_working_directory(tmp_path: Path) -> None:
    tool = program(tmp_path / "sub" / "tool")

    assert find_program("sub/tool", "/usr/bin", str(tmp_path)) == tool
    assert find_program("./tool", "/usr/bin", str(tmp_path / "sub")) == tool
    assert find_program("../sub/tool", None, str(tmp_path / "sub")) == tool


def test_a_path_is_not_looked_for_in_path(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "sub" / "tool")

    assert find_program("sub/tool", str(tmp_path / "bin"), str(tmp_path)) is None


@pytest.mark.parametrize("name", ["./tool", "sub/tool", "../tool"])
def test_nothing_is_found_in_a_directory_that_is_not_there_yet(name: str) -> None:
    assert find_program(name, None, None) is None
    assert find_program(name, None, "sub") is None


@pytest.mark.parametrize("name", ["", ".", "..", "/", "absent", "/no/such/program", "a\0b", "x" * 300, "/etc/passwd/x"])
def test_what_is_no_program_is_not_found(name: str, tmp_path: Path) -> None:
    assert find_program(name, "/usr/bin:/bin", str(tmp_path)) is None


@pytest.mark.parametrize("kind", ["directory", "file", "fifo", "dangling", "loop"])
def test_only_a_regular_file_that_may_be_executed_is_a_program(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tool"
    match kind:
        case "directory":
            path.mkdir()
        case "file":
            program(path, mode=0o644)
        case "fifo":
            os.mkfifo(path, 0o755)
        case "dangling":
            path.symlink_to("absent")
        case "loop":
            path.symlink_to("tool")

    assert find_program(str(path), None, None) is None
    assert find_program("tool", str(tmp_path), None) is None


# ── in the PATH ──


@pytest.fixture
def directories(tmp_path: Path) -> Path:
    """Directories with a program each, and one with what only looks like it."""
    for name in ("a", "b", "cwd", "cwd/sub"):
        program(tmp_path / name / "tool", says=name)
    program(tmp_path / "plain" / "tool", mode=0o644)
    (tmp_path / "folders" / "tool").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("{0}/a:{0}/b", "a"),
        ("{0}/b:{0}/a", "b"),
        ("{0}/absent:{0}/file:{0}/b", "b"),
        ("{0}/plain:{0}/b", "b"),
        ("{0}/folders:{0}/plain:{0}/b", "b"),
        ("{0}/a/:{0}/b", "a"),
        ("{0}//a", "a"),
        (":{0}/a", "cwd"),
        ("{0}/absent::{0}/a", "cwd"),
        ("{0}/absent:", "cwd"),
        ("", "cwd"),
        (".:{0}/a", "cwd"),
        ("sub:{0}/a", "cwd/sub"),
        ("../b:{0}/a", "b"),
        ("absent:{0}/a", "a"),
    ],
)
def test_it_is_found_where_the_system_finds_it(path: str, found: str, directories: Path) -> None:
    path = path.format(directories)

    assert find_program("tool", path, str(directories / "cwd")) == str(directories / found / "tool")
    assert said("tool", path, directories / "cwd") == f"{found}\n"


@pytest.mark.parametrize("path", ["", ".", "sub", ":"])
def test_entries_below_a_directory_that_is_not_there_yet_are_passed_over(path: str, directories: Path) -> None:
    assert find_program("tool", path, None) is None
    assert find_program("tool", f"{path}:{directories}/a", None) == str(directories / "a" / "tool")


def test_without_path_the_system_s_own_is_looked_through() -> None:
    assert find_program("sh", None, None) == os.path.realpath("/bin/sh")


# ── patterns ──


def test_a_pattern_that_leads_through_a_link_is_one_of_no_program(tmp_path: Path) -> None:
    program(tmp_path / "real" / "tool")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "alias").symlink_to("tool")

    for pattern, plain, real in (
        ("link/tool", "link/tool", "real/tool"),
        ("link/*", "link", "real"),
        ("link/t[aeiou]ol", "link", "real"),
        ("link/sub/t?ol", "link/sub", "real/sub"),
        ("real/alias", "real/alias", "real/tool"),
    ):
        warning = pattern_warning(f"{tmp_path}/{pattern}")
        assert warning is not None
        assert warning.startswith(f"{tmp_path}/{pattern}: {tmp_path}/{plain} is {tmp_path}/{real}, ")


@pytest.mark.parametrize(
    "pattern", ["*", "/*", "*/bin/*", "/usr/bin/*", "{0}/real/*", "{0}/real/tool", "{0}/absent", "?x"]
)
def test_nothing_is_wrong_with_other_patterns(pattern: str, tmp_path: Path) -> None:
    program(tmp_path / "real" / "tool")

    assert pattern_warning(pattern.format(tmp_path)) is None


# ── later ──


def test_a_program_is_itself_until_a_link_comes_in_its_way(tmp_path: Path) -> None:
    tool = program(tmp_path / "bin" / "tool")
    assert is_itself(tool)

    (tmp_path / "bin").rename(tmp_path / "other")
    assert not is_itself(tool)
    (tmp_path / "bin").symlink_to("other")
    assert not is_itself(tool)
