"""The directories of jobs: names, modes, and what must not be followed."""

import os
import shutil
import stat
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobrunner import trees
from jobrunner.domain.spec import Input, InputKind
from jobrunner.domain.streams import Stream
from jobrunner.spool import MayHaveRun, ProcessRecord, Spool
from tests.integration.hostile import make_deep, run_program

JOB = "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c3f"

INPUTS = [
    Input(InputKind.FILE, "data.csv", b"a;b\n"),
    Input(InputKind.FILE, "ü -rf", b""),
    Input(InputKind.SOURCE, "", b"#!/bin/sh\necho hello\n"),
    Input(InputKind.STDIN, "", b"\0\xff"),
]


@pytest.fixture(params=[0o022, 0o077, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask, which the modes must not depend on."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool over a data directory, as it is prepared when the service starts."""
    (tmp_path / "jobs").mkdir(mode=0o700)
    return Spool(tmp_path)


@pytest.fixture
def forgetful(spool: Spool, tmp_path: Path) -> Spool:
    """The same where ended jobs keep no scratch directories."""
    return Spool(tmp_path, keep_scratch=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The directory of the job."""
    return tmp_path / "jobs" / "3f" / JOB


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def write(spool: Spool, stdout: bytes, stderr: bytes = b"") -> None:
    """Write what a job writes."""
    with spool.open_streams(JOB, stdin=False, merge_stderr=False) as streams:
        os.write(streams.stdout, stdout)
        os.write(streams.stderr, stderr)


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def read(spool: Spool, stream: Stream = Stream.STDOUT) -> bytes:
    with spool.open_stream_file(JOB, stream) as file:
        return file.read()


def test_a_job_s_directory_is_named_after_its_id(spool: Spool, path: Path) -> None:
    assert spool.path(JOB) == str(path)
    assert spool.scratch(JOB) == str(path / "scratch")
    assert spool.source(JOB) == str(path / "source")


@pytest.mark.usefixtures("umask")
def test_directories_and_streams_are_the_owner_s_alone(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, INPUTS)
    write(spool, b"")
    spool.record_process(JOB, ProcessRecord(1, 2, "boot"))

    for directory in (path, path / "scratch"):
        assert mode(directory) == 0o700
    for file in ("stdout", "stderr", "stdin", "process.json"):
        assert mode(path / file) == 0o600
    assert mode(path / "source") == 0o755
    assert not mode(path.parent) & 0o022, "nobody else can put a directory in the place of a job's"


@pytest.mark.usefixtures("umask")
def test_files_that_came_with_a_job_are_like_any_file(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, INPUTS)

    assert mode(path / "scratch" / "data.csv") == 0o644


def test_what_came_with_a_job_is_written_byte_for_byte(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, INPUTS)

    assert (path / "scratch" / "data.csv").read_bytes() == b"a;b\n"
    assert (path / "scratch" / "ü -rf").read_bytes() == b""
    assert (path / "source").read_bytes() == b"#!/bin/sh\necho hello\n"
    assert (path / "stdin").read_bytes() == b"\0\xff"
    assert {entry.name for entry in path.iterdir()} == {"scratch", "source", "stdin"}


def test_the_source_can_be_executed(spool: Spool) -> None:
    spool.prepare(JOB, INPUTS)

    assert os.access(spool.source(JOB), os.X_OK)


def test_preparing_twice_begins_anew(spool: Spool, path: Path) -> None:
    """An executor died between the claim and the start."""
    spool.prepare(JOB, INPUTS)
    (path / "scratch" / "left over").touch()

    spool.prepare(JOB, INPUTS[:1])

    assert {entry.name for entry in path.rglob("*")} == {"scratch", "data.csv"}
    assert not spool.was_started(JOB)


def test_what_may_have_run_is_not_prepared_again(spool: Spool, path: Path) -> None:
    """A power cut: the directory was on the disk, the claim was not."""
    spool.prepare(JOB, INPUTS)
    write(spool, b"of the first")

    with pytest.raises(MayHaveRun):
        spool.prepare(JOB, INPUTS)

    assert (path / "stdout").read_bytes() == b"of the first"


def test_a_job_was_started_once_its_streams_are_there(spool: Spool) -> None:
    assert not spool.was_started(JOB)
    spool.prepare(JOB, [])
    assert not spool.was_started(JOB)
    write(spool, b"")
    assert spool.was_started(JOB)


@pytest.mark.parametrize("removed", ["stdout", "process.json"])
def test_a_job_that_removes_a_file_of_ours_was_started_all_the_same(spool: Spool, path: Path, removed: str) -> None:
    spool.prepare(JOB, [])
    write(spool, b"")
    spool.record_process(JOB, ProcessRecord(1, 2, "boot"))
    (path / removed).unlink()

    assert spool.was_started(JOB)


# ── streams ──


def test_what_a_job_writes_is_read_back(spool: Spool) -> None:
    spool.prepare(JOB, [])
    write(spool, b"out\0\xff", b"error")

    assert read(spool) == b"out\0\xff"
    assert read(spool, Stream.STDERR) == b"error"
    assert (spool.size(JOB, Stream.STDOUT), spool.size(JOB, Stream.STDERR)) == (5, 5)


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_stream_that_is_not_there_is_empty(spool: Spool, *, is_prepared: bool) -> None:
    if is_prepared:
        spool.prepare(JOB, [])

    assert read(spool) == b""
    assert spool.size(JOB, Stream.STDERR) == 0


def test_merged_streams_are_one_file_in_the_order_of_writing(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, [])
    with spool.open_streams(JOB, stdin=False, merge_stderr=True) as streams:
        for turn in range(3):
            os.write(streams.stdout, b"o%d" % turn)
            os.write(streams.stderr, b"e%d" % turn)

    assert read(spool) == b"o0e0o1e1o2e2"
    assert not (path / "stderr").exists()


def test_a_stream_that_was_truncated_by_its_job_is_appended_to(spool: Spool, path: Path) -> None:
    """No hole of zeros: `: > /proc/self/fd/1` is a thing that scripts do."""
    spool.prepare(JOB, [])
    with spool.open_streams(JOB, stdin=False, merge_stderr=False) as streams:
        os.write(streams.stdout, b"before")
        os.truncate(path / "stdout", 0)
        os.write(streams.stdout, b"after")

    assert read(spool) == b"after"


def test_the_input_is_what_came_with_the_job_or_nothing(spool: Spool) -> None:
    spool.prepare(JOB, INPUTS)
    with spool.open_streams(JOB, stdin=True, merge_stderr=False) as streams:
        assert os.read(streams.stdin, 10) == b"\0\xff"
    spool.remove(JOB)
    spool.prepare(JOB, [])
    with spool.open_streams(JOB, stdin=False, merge_stderr=False) as streams:
        assert os.read(streams.stdin, 10) == b""


def test_streams_that_could_not_all_be_opened_leave_no_descriptor(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, [])
    (path / "stderr").touch()
    before = descriptors()

    with pytest.raises(FileExistsError):
        spool.open_streams(JOB, stdin=False, merge_stderr=False)

    assert descriptors() == before


def test_no_descriptor_of_a_stream_is_inherited_by_accident(spool: Spool) -> None:
    spool.prepare(JOB, INPUTS)
    with spool.open_streams(JOB, stdin=True, merge_stderr=False) as streams:
        assert not any(os.get_inheritable(fd) for fd in (streams.stdin, streams.stdout, streams.stderr))


# ── what a job may have done to its directory ──


def test_a_stream_that_is_a_link_is_not_followed(spool: Spool, path: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret" * 10)
    spool.prepare(JOB, [])
    (path / "stdout").symlink_to(tmp_path / "secret")

    assert read(spool) == b""
    with pytest.raises(FileExistsError):
        spool.open_streams(JOB, stdin=False, merge_stderr=False)
    assert spool.size(JOB, Stream.STDOUT) == 0
    assert (tmp_path / "secret").read_text() == "secret" * 10


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "entry").touch()


def make_link(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES = [make_fifo, make_socket, make_directory, make_link]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", NO_FILES)
def test_what_a_job_has_put_in_the_place_of_a_stream_is_no_stream_any_more(
    spool: Spool, path: Path, make: Callable[[Path], None]
) -> None:
    """A FIFO would have its reader wait for ever."""
    spool.prepare(JOB, [])
    write(spool, b"before")
    (path / "stdout").unlink()
    make(path / "stdout")

    assert read(spool) == b""
    assert spool.size(JOB, Stream.STDOUT) == 0
    assert spool.was_started(JOB)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", [make_fifo, make_socket, make_directory, make_link, Path.touch])
def test_a_directory_that_a_job_has_replaced_has_no_streams(
    spool: Spool, path: Path, make: Callable[[Path], None]
) -> None:
    spool.prepare(JOB, [])
    shutil.rmtree(path)
    make(path)

    assert read(spool) == b""
    assert spool.size(JOB, Stream.STDOUT) == 0


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", NO_FILES)
def test_a_record_that_is_no_file_is_none(spool: Spool, path: Path, make: Callable[[Path], None]) -> None:
    """An executor that takes over must not wait for ever for one job."""
    spool.prepare(JOB, [])
    make(path / "process.json")

    assert spool.load_process(JOB) is None


def test_an_input_that_is_a_link_is_not_followed(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, [])
    (path / "stdin").symlink_to("/etc/passwd")

    with pytest.raises(OSError, match="symbolic link"):
        spool.open_streams(JOB, stdin=True, merge_stderr=False)


def test_removing_does_not_follow_links(spool: Spool, path: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    spool.prepare(JOB, [])
    (path / "scratch" / "link").symlink_to(tmp_path / "precious")

    spool.remove(JOB)

    assert not path.exists()
    assert (tmp_path / "precious" / "file").exists()


def test_removing_what_is_not_there_is_harmless(spool: Spool) -> None:
    spool.remove(JOB)


@pytest.fixture(params=[(30, 200), (1100, 1)], ids=["longer than a path may be", "deeper than Python's stack"])
def deep(request: pytest.FixtureRequest, spool: Spool, path: Path) -> Iterator[Path]:
    """The directory of a job that has made directories in directories."""
    depth, length = request.param
    spool.prepare(JOB, [])
    make_deep(path / "scratch", depth, "d" * length)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.mark.usefixtures("deep")
def test_a_deep_tree_can_be_measured(spool: Spool) -> None:
    """The executor does this when the process has ended: an error here would cost the job its exit status."""
    assert spool.disk_bytes(JOB) > 0


def test_a_deep_tree_can_be_removed(spool: Spool, deep: Path) -> None:
    spool.remove(JOB)

    assert not deep.exists()


def test_a_tree_of_many_files_can_be_removed(spool: Spool, forgetful: Spool, path: Path) -> None:
    spool.prepare(JOB, [])
    for number in range(10_000):
        os.close(os.open(path / "scratch" / str(number), os.O_CREAT))

    tracemalloc.start()
    try:
        forgetful.clear_away(JOB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 1 << 20, "all of them were in memory"
    assert [entry.name for entry in path.iterdir()] == []


def test_two_may_remove_the_same_tree_at_once(spool: Spool, forgetful: Spool, path: Path) -> None:
    """gc and the executor do."""
    for files in (10, 900, 1500):
        spool.prepare(JOB, [])
        for number in range(files):
            (path / "scratch" / f"{number % 30}").mkdir(exist_ok=True)
            (path / "scratch" / f"{number % 30}" / f"{number}").touch()

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(forgetful.clear_away, JOB) for _ in range(4)]:
                done.result()

        assert not spool.has_scratch(JOB)
        spool.remove(JOB)


@pytest.mark.parametrize("target", ["full", "empty"])
def test_a_link_in_the_place_of_the_scratch_directory_goes_and_its_target_stays(
    spool: Spool, forgetful: Spool, path: Path, tmp_path: Path, target: str
) -> None:
    precious = tmp_path / "precious"
    (precious / "closed").mkdir(parents=True)
    (precious / "closed").chmod(0)
    if target == "empty":
        (precious / "closed").rmdir()
    spool.prepare(JOB, [])
    (path / "scratch").rmdir()
    (path / "scratch").symlink_to(precious)

    forgetful.clear_away(JOB)

    assert not spool.has_scratch(JOB)
    assert precious.is_dir()
    assert target == "empty" or mode(precious / "closed") == 0


def test_a_directory_that_becomes_a_link_while_it_is_removed_takes_nothing_outside_with_it(tmp_path: Path) -> None:
    """It was a directory when it was found too large to be removed by ourselves."""
    precious = tmp_path / "precious"
    (precious / "closed").mkdir(parents=True)
    (precious / "closed").chmod(0)
    (tmp_path / "scratch").symlink_to(precious)

    trees._remove_by_tools(str(tmp_path / "scratch"))

    assert not os.path.lexists(tmp_path / "scratch")
    assert mode(precious / "closed") == 0


@pytest.mark.parametrize("mode", ["0o000", "0o555"], ids=["closed", "read-only"])
@pytest.mark.parametrize("method", ["disk_bytes", "remove"])
def test_a_directory_that_a_job_has_closed_stops_nothing(for_everyone: Path, mode: str, method: str) -> None:
    """As a Go module cache is. Root would not notice: this takes a process of another user."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    program = f"""
import os
from jobrunner.spool import Spool
os.setgroups([]); os.setgid(65534); os.setuid(65534)
spool = Spool({str(for_everyone)!r})
spool.prepare({JOB!r}, [])
os.makedirs(spool.scratch({JOB!r}) + "/closed/a")
os.chmod(spool.scratch({JOB!r}) + "/closed", {mode})
spool.{method}({JOB!r})
assert {method == "disk_bytes"} or not os.path.exists(spool.scratch({JOB!r}) + "/closed")
"""
    run_program(program)


def test_a_scratch_directory_that_a_job_has_closed_is_removed(for_everyone: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    run_program(f"""
import os
from jobrunner.spool import Spool
os.setgroups([]); os.setgid(65534); os.setuid(65534)
spool = Spool({str(for_everyone)!r}, keep_scratch=False)
spool.prepare({JOB!r}, [])
os.mkdir(spool.scratch({JOB!r}) + "/in")
os.chmod(spool.scratch({JOB!r}), 0)
spool.clear_away({JOB!r})
assert not spool.has_scratch({JOB!r})
""")


def test_a_job_that_has_closed_its_own_directory_has_streams_of_no_size(for_everyone: Path) -> None:
    """Else no list that shows it could be made."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    program = f"""
import os
from jobrunner.domain.streams import Stream
from jobrunner.spool import Spool
os.setgroups([]); os.setgid(65534); os.setuid(65534)
spool = Spool({str(for_everyone)!r})
spool.prepare({JOB!r}, [])
spool.open_streams({JOB!r}, stdin=False, merge_stderr=False)
os.chmod(spool.path({JOB!r}), 0)
try:
    assert spool.size({JOB!r}, Stream.STDOUT) == 0
finally:
    os.chmod(spool.path({JOB!r}), 0o700)
"""
    run_program(program)


# ── sizes ──


def test_disk_space_is_counted_in_blocks_of_the_whole_tree(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, [])
    empty = spool.disk_bytes(JOB)
    (path / "scratch" / "sub").mkdir()
    (path / "scratch" / "sub" / "big").write_bytes(b"x" * 100_000)

    with (path / "scratch" / "sparse").open("wb") as file:
        file.truncate(1 << 30)

    assert 100_000 <= spool.disk_bytes(JOB) - empty < 200_000


def test_a_scratch_directory_that_is_not_kept_does_not_count(spool: Spool, forgetful: Spool, path: Path) -> None:
    spool.prepare(JOB, [])
    write(spool, b"x" * 50_000)
    (path / "scratch" / "scratch").mkdir()
    (path / "scratch" / "big").write_bytes(b"x" * 100_000)

    assert 50_000 <= forgetful.disk_bytes(JOB) < 90_000
    before = forgetful.disk_bytes(JOB)
    forgetful.clear_away(JOB)
    assert spool.disk_bytes(JOB) == before


def test_a_directory_that_is_not_there_takes_no_space(spool: Spool) -> None:
    assert spool.disk_bytes(JOB) == 0


# ── who the process is ──


def test_the_process_is_written_down_and_read_back(spool: Spool) -> None:
    record = ProcessRecord(pid=4711, start_ticks=1 << 40, boot_id="4d3ad1b5")
    spool.prepare(JOB, [])
    assert spool.load_process(JOB) is None

    spool.record_process(JOB, record)

    assert spool.load_process(JOB) == record


def test_a_record_that_a_crash_left_empty_is_none(spool: Spool, path: Path) -> None:
    spool.prepare(JOB, [])
    (path / "process.json").touch()

    assert spool.load_process(JOB) is None


def test_all_directories_are_named_with_their_time(spool: Spool, path: Path) -> None:
    other = JOB[:-2] + "00"
    errors: list[OSError] = []
    assert list(spool.list_directories(on_error=errors.append)) == []
    for job_id in (JOB, other):
        spool.prepare(job_id, [])
    os.utime(path, (0, 1_700_000_000))

    found = dict(spool.list_directories(on_error=errors.append))

    assert errors == []
    assert set(found) == {JOB, other}
    assert found[JOB] == 1_700_000_000
