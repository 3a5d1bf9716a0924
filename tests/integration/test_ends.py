"""The file in which the supervisor writes down how orphans ended."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobrunner.ends import End, EndsFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where it is."""
    return tmp_path / "ends"


def test_an_end_is_found_by_pid_and_start(path: Path) -> None:
    file = EndsFile(path)
    file.append(End(100, 7, 0))
    file.append(End(100, 8, 3 << 8))
    file.append(End(101, 7, 9))

    assert EndsFile(path).find(100, 8) == 3 << 8
    assert EndsFile(path).find(101, 7) == 9
    assert EndsFile(path).find(100, 7) == 0
    assert EndsFile(path).find(100, 9) is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_where_nothing_is_written_nothing_is_found(path: Path) -> None:
    assert EndsFile(path).find(1, 1) is None


@pytest.mark.parametrize("damage", ["", "100 7\n", "100 7 0 another-boot\n", "\0\0\0\n", "100 7 0"])
def test_lines_of_another_boot_and_broken_ones_are_passed_over(path: Path, damage: str) -> None:
    path.write_text(damage)
    assert EndsFile(path).find(100, 7) is None
    path.write_text("\n")
    EndsFile(path).append(End(100, 7, 256))
    assert EndsFile(path).find(100, 7) == 256


def test_the_file_stays_small_and_keeps_the_newer_half(path: Path) -> None:
    file = EndsFile(path, most_bytes=4096)
    for number in range(500):
        file.append(End(number, 1, 0))

    assert path.stat().st_size < 4096 + 100
    assert file.find(499, 1) == 0
    assert file.find(480, 1) == 0
    assert file.find(0, 1) is None
    assert [entry.name for entry in path.parent.iterdir()] == ["ends"]


def test_a_reader_sees_whole_lines_while_one_writes(path: Path) -> None:
    file = EndsFile(path, most_bytes=4096)
    stop = threading.Event()

    def read() -> int:
        looks = 0
        while not stop.is_set():
            assert EndsFile(path).find(-1, -1) is None
            looks += 1
        return looks

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for number in range(2000):
            file.append(End(number, 1, 0))
            assert file.find(number, 1) == 0
        stop.set()
        assert reading.result(30) > 0
