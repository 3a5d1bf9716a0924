"""Parts of files that are dropped, and which files a job's output may be dropped of."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobrunner.domain.streams import Stream
from jobrunner.holes import BLOCK, CanNotDrop, check_can_drop, drop
from jobrunner.spool import Spool
from jobrunner.store.reserve import PIECES, Reserve
from tests.conftest import Mount

JOB = "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c3f"
CONTENT = bytes(range(1, 256)) * 1024


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


# ── files ──


@pytest.mark.parametrize(("start", "stop"), [(BLOCK, 40 * BLOCK), (100, 200), (BLOCK + 1, 9 * BLOCK - 1)])
def test_what_is_dropped_reads_as_zeros_and_all_else_stays(file: Path, start: int, stop: int) -> None:
    with opened(file) as fd:
        drop(fd, start, stop)
        os.write(fd, b"more")

    assert file.read_bytes() == CONTENT[:start] + bytes(stop - start) + CONTENT[stop:] + b"more"


def test_whole_blocks_are_given_back(file: Path) -> None:
    before = file.stat().st_blocks * 512
    with opened(file) as fd:
        drop(fd, BLOCK, 41 * BLOCK)

    assert before - file.stat().st_blocks * 512 == 40 * BLOCK


def test_to_ask_whether_it_can_be_done_changes_nothing(file: Path) -> None:
    before = file.stat()
    with opened(file) as fd:
        check_can_drop(fd)

    after = file.stat()
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
    assert file.read_bytes() == CONTENT


def test_what_can_not_be_done_is_told_with_the_words_of_the_system(mount: Mount) -> None:
    path = mount("-t", "ramfs", "ramfs") / "file"
    path.write_bytes(CONTENT)
    with opened(path) as fd:
        with pytest.raises(CanNotDrop, match="not supported"):
            check_can_drop(fd)
        with pytest.raises(CanNotDrop, match="not supported"):
            drop(fd, 0, BLOCK)

    assert path.read_bytes() == CONTENT


def test_a_pipe_has_no_parts() -> None:
    read, write = os.pipe()
    with pytest.raises(CanNotDrop):
        check_can_drop(write)
    os.close(read)
    os.close(write)


# ── the streams of jobs ──


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool with one job that has streams."""
    (tmp_path / "jobs").mkdir(mode=0o700)
    spool = Spool(tmp_path)
    spool.prepare(JOB, [])
    return spool


def outputs(spool: Spool) -> dict[Stream, str]:
    """Return which outputs are opened, and what they are."""
    found = {}
    for stream in Stream:
        fd = spool.open_output(JOB, stream)
        if fd is not None:
            found[stream] = Path(f"/proc/self/fd/{fd}").readlink().name
            os.close(fd)
    return found


@pytest.mark.parametrize("merged", [False, True])
def test_the_outputs_of_a_job_outlive_its_start_for_who_takes_them(spool: Spool, merged: bool) -> None:
    with spool.open_streams(JOB, stdin=False, merge_stderr=merged) as streams:
        stdin, taken = streams.stdin, streams.take_outputs()

    assert list(taken) == ([Stream.STDOUT] if merged else [Stream.STDOUT, Stream.STDERR])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stdin)
    for stream, fd in taken.items():
        os.write(fd, stream.encode())
        os.close(fd)
    assert (Path(spool.path(JOB)) / "stdout").read_text() == "stdout"
    assert outputs(spool) == {stream: stream.value for stream in taken}


def add_name(path: Path, other: Path) -> None:
    other.hardlink_to(path)


def take_name(path: Path, other: Path) -> None:
    path.unlink()
    path.hardlink_to(other)


def link(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


def hand_over(path: Path, other: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 1, 1)


def make_fifo(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def remove(path: Path, other: Path) -> None:
    path.unlink()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("change", [add_name, take_name, link, hand_over, make_fifo, make_directory, remove])
def test_what_may_be_somebody_elses_is_no_output(
    spool: Spool, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    spool.open_streams(JOB, stdin=False, merge_stderr=False).close()
    other = tmp_path / "other"
    if change is not add_name:
        other.write_bytes(CONTENT)

    change(Path(spool.path(JOB)) / "stdout", other)

    assert outputs(spool) == {Stream.STDERR: "stderr"}


# ── the space that is kept for what makes space ──


def test_of_the_reserve_some_may_be_left_for_others(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    reserve.keep()

    released = [reserve.release(leave=1) for _ in range(PIECES)]

    assert released == [True] * (PIECES - 1) + [False]
    assert [reserve.release(), reserve.release()] == [True, False]


def test_it_does_not_matter_which_pieces_are_left(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    reserve.keep()
    assert reserve.release()
    assert reserve.release(leave=1)

    assert not reserve.release(leave=1)
    assert reserve.release()
