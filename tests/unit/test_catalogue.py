"""The script catalogue: one directory, read each time it is asked for."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobrunner.domain.errors import InvalidRequest
from jobrunner.service.catalogue import Catalogue, describe


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A catalogue's directory."""
    made = tmp_path / "scripts"
    made.mkdir()
    return made


def put(directory: Path, name: str, text: str = "#!/bin/sh\n") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def names(directory: Path) -> list[str]:
    return [script.name for script in Catalogue(directory).list()]


# ── descriptions ──


@pytest.mark.parametrize(
    ("text", "description"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("#!/bin/sh\n", "", id="nothing but the interpreter"),
        pytest.param("#!/bin/sh\n# Says hello.\necho hello\n", "Says hello.", id="one line"),
        pytest.param("#!/bin/sh\n# One,\n#two.\n## three\nx\n# four\n", "One,\ntwo.\nthree", id="the first block only"),
        pytest.param("# No interpreter.\n", "No interpreter.", id="no interpreter"),
        pytest.param("#!/bin/sh\n\n\n# After a gap.\n\n# Later.\n", "After a gap.", id="ends at an empty line"),
        pytest.param("#!/bin/sh\nset -e\n# Too late.\n", "", id="a comment after code"),
        pytest.param("#!/bin/sh\n#\n# Framed.\n#\n", "Framed.", id="empty lines around"),
        pytest.param("#!/bin/sh\n  # Indented.\n", "Indented.", id="indented"),
        pytest.param("#!/bin/sh\r\n# Of Windows.\r\nx\r\n", "Of Windows.", id="carriage returns"),
        pytest.param("\n#!/bin/sh\n", "!/bin/sh", id="an interpreter in the second line is a comment"),
    ],
)
def test_the_description_is_the_first_block_of_comments(text: str, description: str) -> None:
    assert describe(text) == description


# ── the list ──


def test_an_absent_directory_has_no_scripts(tmp_path: Path) -> None:
    assert names(tmp_path / "nowhere") == []


def test_a_script_is_listed_with_description_size_and_time(directory: Path) -> None:
    path = put(directory, "hello", "#!/bin/sh\n# Says hello.\n")
    os.utime(path, (0, 1_700_000_000))

    (script,) = Catalogue(directory).list()

    assert (script.name, script.description, script.bytes) == ("hello", "Says hello.", path.stat().st_size)
    assert script.modified_at == datetime.fromtimestamp(1_700_000_000, UTC)


def test_a_new_script_is_picked_up_at_once(directory: Path) -> None:
    catalogue = Catalogue(directory)
    assert catalogue.list() == []

    put(directory, "new")

    assert [script.name for script in catalogue.list()] == ["new"]
    assert catalogue.find("new") == directory / "new"


def test_scripts_are_sorted_by_their_whole_name_subdirectories_included(directory: Path) -> None:
    for name in ("b", "a/z", "a/b/c", "C"):
        put(directory, name)

    assert names(directory) == ["C", "a/b/c", "a/z", "b"]


def test_hidden_files_and_what_is_in_hidden_directories_are_no_scripts(directory: Path) -> None:
    put(directory, ".hidden")
    put(directory, ".git/hooks/post-commit")
    put(directory, "a/.b")

    assert names(directory) == []


def test_neither_directories_nor_pipes_nor_dangling_links_are_scripts(directory: Path) -> None:
    (directory / "empty").mkdir()
    os.mkfifo(directory / "pipe")
    (directory / "dangling").symlink_to("nowhere")

    assert names(directory) == []


def test_a_link_to_a_file_is_a_script(directory: Path) -> None:
    put(directory, "real", "# Real.\n")
    (directory / "alias").symlink_to("real")

    assert [(script.name, script.description) for script in Catalogue(directory).list()] == [
        ("alias", "Real."),
        ("real", "Real."),
    ]


def test_a_loop_of_links_does_not_make_the_list_endless(directory: Path) -> None:
    put(directory, "a/x")
    (directory / "a" / "loop").symlink_to("..")

    assert names(directory) == ["a/x"]


def test_a_name_that_is_not_utf_8_is_left_out(directory: Path) -> None:
    (directory / os.fsdecode(b"caf\xe9")).touch()

    assert names(directory) == []


def test_a_binary_program_is_listed_too(directory: Path) -> None:
    (directory / "program").write_bytes(b"\x7fELF\0\xff" * 5000)

    (script,) = Catalogue(directory).list()

    assert script.bytes == 30_000


# ── by name ──


def test_a_script_is_found_by_the_name_that_the_list_shows(directory: Path) -> None:
    for name in ("a", "b/c", "with space", "ünïcode"):
        put(directory, name)
    catalogue = Catalogue(directory)

    assert [catalogue.find(script.name) for script in catalogue.list()] == [
        directory / script.name for script in catalogue.list()
    ]


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/", "../secret", "a/../../secret", "a/..", "a//x", "./a/x", "a/./x", "/etc/passwd", "a/x/",
        ".hidden", "a/.hidden", "a\0", "absent", "a", "x" * 5000, "a/x/y",
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_script_is_refused(directory: Path, name: str) -> None:
    put(directory.parent, "secret")
    for hidden in (".hidden", "a/.hidden", "a/x"):
        put(directory, hidden)

    with pytest.raises(InvalidRequest) as refusal:
        Catalogue(directory).find(name)

    assert [problem.pointer for problem in refusal.value.problems] == ["#/script"]


def test_what_the_list_does_not_show_cannot_be_run(directory: Path, tmp_path: Path) -> None:
    """A link to a directory is not walked into, so nothing behind it is catalogued."""
    put(tmp_path / "elsewhere", "tool")
    (directory / "link").symlink_to(tmp_path / "elsewhere")
    assert names(directory) == []

    with pytest.raises(InvalidRequest):
        Catalogue(directory).find("link/tool")


def test_a_pipe_is_not_found_as_a_script(directory: Path) -> None:
    os.mkfifo(directory / "pipe")

    with pytest.raises(InvalidRequest):
        Catalogue(directory).find("pipe")
