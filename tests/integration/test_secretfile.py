"""Secrets in files."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobrunner.secretfile import load_secret, write_secret


def test_a_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "key"

    secret = load_secret(path)

    assert len(secret) >= 32
    assert load_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_all_who_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "key"

    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: load_secret(path), range(64)))

    assert found == {path.read_bytes().strip()}
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_secret_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)

    write_secret(path, "new")

    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_where_nothing_can_be_written_the_system_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_secret(tmp_path / "absent" / "key")
