"""Paths of jobs that must stay inside their directory, and directories that are made there."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from jobrunner.scratch import find_inside, make_directories
from tests.integration.hostile import swapping


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "job" / "scratch"
    made.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    return made


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (".", "."),
        ("a", "a"),
        ("a/b/../c/", "a/c"),
        ("in", "a/b"),
        ("in/absent", "a/b/absent"),
        ("up", "a"),
        ("around", "a"),
        ("absolute", "a"),
        ("..x", "..x"),
        ("out", None),
        ("out/more", None),
        ("in/../out", "a/out"),
        ("chain", None),
        ("parent", None),
        ("in/../../..", None),
    ],
)
def test_links_are_followed_but_not_out(root: Path, path: str, found: str | None) -> None:
    (root / "a" / "b").mkdir(parents=True)
    links = {
        "in": "a/b", "up": "a/b/..", "around": "../scratch/a", "absolute": str(root / "a"),
        "out": "../../outside", "chain": "out", "parent": "..",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)

    assert find_inside(str(root), path) == found


def test_a_link_in_the_place_of_the_directory_leads_out(root: Path) -> None:
    root.rmdir()
    root.symlink_to("../../outside")

    assert find_inside(str(root), "a") is None


def test_links_above_are_not_the_job_s(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("job")

    assert find_inside(str(tmp_path / "data" / "scratch"), "a") == "a"


@pytest.mark.parametrize("path", [".", "a", "a/b/c", "there/b"])
def test_what_is_missing_is_made(root: Path, path: str) -> None:
    (root / "there").mkdir()

    for _ in range(2):
        make_directories(str(root), path)
        assert (root / path).is_dir()


@pytest.mark.parametrize("path", ["file", "file/a", "link", "link/a"])
def test_nothing_is_made_through_what_is_no_directory(root: Path, tmp_path: Path, path: str) -> None:
    (root / "file").touch()
    (root / "link").symlink_to("../../outside")

    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        make_directories(str(root), path)
    assert os.listdir(tmp_path / "outside") == []


def test_nothing_is_made_outside_however_fast_links_come_and_go(root: Path, tmp_path: Path) -> None:
    (root / "a").mkdir()
    with swapping(root / "a", tmp_path / "outside"):
        for number in range(300):
            with suppress(OSError):
                make_directories(str(root), f"a/{number}")

    assert os.listdir(tmp_path / "outside") == []
