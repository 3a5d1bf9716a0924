"""Trees that jobs have made: what can be seen of them, and that nothing outside ever can."""

import ctypes
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobrunner.scratch import (
    DEPTH_MOST,
    ENTRIES_MOST,
    PATH_MOST,
    PATHS_MOST,
    Entry,
    EntryType,
    Listing,
    list_tree,
    open_beneath,
)
from tests.integration.hostile import make_deep, run_program, swapping

IN_OPEN = 0x20


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A tree, and beside it what must not be seen."""
    made = tmp_path / "scratch"
    made.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    yield made
    subprocess.run(["rm", "-rf", made], check=True)  # pytest's own gives up on deep trees


def paths(listing: Listing) -> list[bytes]:
    return [entry.path for entry in listing.entries]


def find(listing: Listing, path: bytes) -> Entry:
    (found,) = [entry for entry in listing.entries if entry.path == path]
    return found


def read(root: Path, path: bytes) -> bytes:
    with open_beneath(str(root), path) as file:
        return file.read()


def check_refused(root: Path, path: bytes) -> None:
    with pytest.raises(FileNotFoundError):
        open_beneath(str(root), path)


@contextmanager
def opens(directory: Path) -> Iterator[list[str]]:
    """Note what is opened in a directory meanwhile, by inotify(7); the directory itself is the empty name."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(libc.inotify_init1(os.O_NONBLOCK), "rb", buffering=0) as events:
        assert libc.inotify_add_watch(events.fileno(), os.fsencode(directory), IN_OPEN) > 0
        opened: list[str] = []
        yield opened
        data = events.read()
    while data:
        _, _, _, length = struct.unpack_from("iIII", data)
        opened.append(data[16 : 16 + length].rstrip(b"\0").decode())
        data = data[16 + length :]


# ── lists ──


def test_everything_is_listed_by_path(root: Path) -> None:
    (root / "b" / "c").mkdir(parents=True)
    for name in ("a", "b-", "b/c/d", "b/a", "Z"):
        (root / name).touch()

    found = list_tree(str(root))

    assert paths(found) == [b"Z", b"a", b"b", b"b-", b"b/a", b"b/c", b"b/c/d"]
    assert not found.is_truncated


def test_an_entry_tells_its_size_and_time(root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    os.utime(root / "file", ns=(0, 1_700_000_000_123_456_789))
    (root / "directory").mkdir()

    found = list_tree(str(root))

    modified = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert find(found, b"file") == Entry(b"file", EntryType.FILE, 5, modified)
    assert (find(found, b"directory").type, find(found, b"directory").bytes) == (EntryType.DIRECTORY, None)


@pytest.mark.parametrize("nanoseconds", [-1, 0, -(1 << 31) * 10**9, ((1 << 33) - 1) * 10**9])
def test_any_time_that_a_job_gives_a_file_can_be_told(root: Path, nanoseconds: int) -> None:
    (root / "file").touch()
    os.utime(root / "file", ns=(0, nanoseconds))

    (entry,) = list_tree(str(root)).entries

    assert entry.modified_at is not None
    assert entry.modified_at.year in {1901, 1969, 1970, 2242}


def test_a_directory_that_is_not_there_has_nothing_in_it(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "file").touch()
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")

    for name in ("none", "link", "file", "loop", "fifo"):
        assert list_tree(str(root / name)) == Listing()


def test_names_are_any_bytes(root: Path) -> None:
    names = sorted([b"\xff\xfe", b"a\nb", b"\x01", "ü".encode(), b"\\", b" ", b"-rf", b"a%2fb", b"x" * 255])
    for name in names:
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            file.write(name)

    assert paths(list_tree(str(root))) == names
    for name in names:
        assert read(root, name) == name


def test_links_are_listed_and_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "sub").mkdir()
    links: dict[str, str | Path] = {
        "out": tmp_path / "outside",
        "up": "..",
        "loop": ".",
        "self": "self",
        "sub/back": "..",
        "passwd": "/etc/passwd",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)

    found = list_tree(str(root))

    assert paths(found) == sorted(os.fsencode(name) for name in [*links, "sub"])
    assert {find(found, os.fsencode(name)).type for name in links} == {EntryType.SYMLINK}
    assert {find(found, os.fsencode(name)).bytes for name in links} == {None}


def make_special(root: Path) -> list[str]:
    """Make one of everything that is no file; return the names."""
    names = ["fifo", "socket"]
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{root}/socket")
    try:
        os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: it never ends
    except PermissionError:
        return names
    return [*names, "device"]


def test_what_is_no_file_is_listed_without_touching_it(root: Path) -> None:
    names = make_special(root)

    found = list_tree(str(root))

    assert [(entry.path, entry.type, entry.bytes) for entry in found.entries] == [
        (os.fsencode(name), EntryType.OTHER, None) for name in sorted(names)
    ]


# ── bounds of a list ──


def test_a_million_files_are_a_short_list(root: Path) -> None:
    """As many as a test can make; what matters is that no more are looked at than are listed."""
    for number in range(ENTRIES_MOST + 1):
        os.close(os.open(root / str(number), os.O_CREAT | os.O_WRONLY))

    found = list_tree(str(root))

    assert (len(found.entries), found.is_truncated) == (ENTRIES_MOST, True)
    (root / "0").unlink()
    found = list_tree(str(root))
    assert (len(found.entries), found.is_truncated) == (ENTRIES_MOST, False)


def test_of_too_much_the_outermost_is_listed(root: Path) -> None:
    for directory in range(5):
        (root / f"{directory}" / "in").mkdir(parents=True)
        for number in range(20):
            (root / f"{directory}" / f"{number}").touch()
    (root / "z").touch()

    found = list_tree(str(root), most=30)

    assert found.is_truncated
    assert len(found.entries) == 30
    assert {b"0", b"1", b"2", b"3", b"4", b"z"} < set(paths(found))


def test_a_tree_of_3_000_levels_is_listed_down_to_a_bound(root: Path) -> None:
    (root / "file").touch()
    make_deep(root, 3_000)

    found = list_tree(str(root))

    assert found.is_truncated
    assert len(found.entries) == DEPTH_MOST + 1
    assert b"file" in paths(found)


def test_a_tree_as_deep_as_the_bound_is_listed_whole(root: Path) -> None:
    make_deep(root, DEPTH_MOST)

    assert len(list_tree(str(root)).entries) == DEPTH_MOST
    assert list_tree(str(root)).is_truncated, "nobody has looked into the last one"
    os.rmdir(root / "/".join("d" * DEPTH_MOST))
    assert not list_tree(str(root)).is_truncated


def test_a_wide_and_deep_tree_keeps_few_directories_open(root: Path) -> None:
    """Every level has a second directory, so that all above stay open."""
    here = root
    for _ in range(40):
        (here / "a").mkdir()
        (here / "b").mkdir()
        here /= "b"
    seen = len(os.listdir("/proc/self/fd"))

    assert len(list_tree(str(root)).entries) == 80
    assert len(os.listdir("/proc/self/fd")) == seen


def test_without_descriptors_nothing_is_left_open(root: Path) -> None:
    for number in range(20):
        (root / ("a/" * number) / "b").mkdir(parents=True)
        (root / ("a/" * number) / "a").mkdir()
    run_program(f"""
import errno, os, resource
from jobrunner.scratch import list_tree
before = os.listdir("/proc/self/fd")
resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))
try:
    list_tree({str(root)!r})
    raise AssertionError("no error")
except OSError as error:
    assert error.errno == errno.EMFILE
assert os.listdir("/proc/self/fd") == before
""")


def test_paths_that_are_too_long_are_left_out(root: Path) -> None:
    make_deep(root, 30, "n" * 200)
    (root / "short").touch()

    found = list_tree(str(root))

    assert found.is_truncated
    assert b"short" in paths(found)
    assert max(map(len, paths(found))) <= PATH_MOST
    assert len(found.entries) == PATH_MOST // 201 + 1


def test_long_names_are_bounded_as_a_whole(root: Path) -> None:
    inner = root / ("d" * 250) / ("e" * 250) / ("f" * 250) / ("g" * 250)
    inner.mkdir(parents=True)
    for number in range(3000):
        (inner / f"{number:0250}").touch()

    tracemalloc.start()
    try:
        found = list_tree(str(root))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found.is_truncated
    assert sum(map(len, paths(found))) <= PATHS_MOST
    assert peak < 10 << 20


def test_what_may_not_be_read_is_left_out(for_everyone: Path) -> None:
    """Root may read everything: this takes a process of another user."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    run_program(f"""
import os
from jobrunner.scratch import list_tree, open_beneath
os.setgroups([]); os.setgid(65534); os.setuid(65534)
root = {str(for_everyone)!r} + "/tree"
os.makedirs(root + "/closed/in")
os.makedirs(root + "/names/in")
open(root + "/file", "w").close()
os.chmod(root + "/closed", 0)
os.chmod(root + "/names", 0o444)
os.chmod(root + "/file", 0)
found = list_tree(root)
os.chmod(root + "/names", 0o777)
assert [entry.path for entry in found.entries] == [b"closed", b"file", b"names"], found
assert found.is_truncated
for path in (b"file", b"closed/in"):
    try:
        open_beneath(root, path)
        raise AssertionError("opened")
    except PermissionError:
        pass
os.chmod(root, 0)
assert list_tree(root).entries == () and list_tree(root).is_truncated
os.chmod(root, 0o777)
""")


# ── single files ──


def test_a_file_is_opened_by_its_path(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"content")

    assert read(root, b"a/b/file") == b"content"


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b".",
        b"..",
        b"../secret",
        b"../outside/secret",
        b"sub/../file",
        b"sub/../../secret",
        b"./file",
        b"/file",
        b"//file",
        b"file/",
        b"sub//file",
        b"sub/",
        b"file\0",
        b"\0",
        b"file/file",
        b"none",
        b"none/file",
        b"x" * 256,
        b"x" * 5000,
        b"sub/" + b"x/" * 100_000,
        b"sub",
        b"/etc/passwd",
        b"\xff",
    ],
    ids=lambda path: repr(path[:20]),
)
def test_a_path_that_is_none_leads_nowhere(root: Path, path: bytes) -> None:
    (root / "sub").mkdir()
    (root / "file").touch()
    (root / "sub" / "file").touch()

    check_refused(root, path)


def test_no_link_leads_anywhere(root: Path, tmp_path: Path) -> None:
    """Not even one that stays inside: where it leads may change at any time."""
    (root / "sub").mkdir()
    (root / "sub" / "file").write_bytes(b"content")
    (root / "to-file").symlink_to("sub/file")
    (root / "to-sub").symlink_to("sub")
    (root / "to-secret").symlink_to(tmp_path / "secret")
    (root / "to-outside").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to("loop")

    for path in (b"to-file", b"to-sub/file", b"to-secret", b"to-outside/secret", b"loop", b"loop/file"):
        check_refused(root, path)


def test_a_tree_that_became_a_link_has_no_files(root: Path, tmp_path: Path) -> None:
    root.rmdir()
    root.symlink_to(tmp_path / "outside")

    check_refused(root, b"secret")
    assert list_tree(str(root)) == Listing()


def test_what_is_no_file_is_never_opened(root: Path) -> None:
    """Who opens one end of a FIFO, if only for a moment, wakes whoever waits at the other, and leaves them alone."""
    names = make_special(root)
    (root / "file").touch()

    with opens(root) as opened:
        for name in names:
            check_refused(root, os.fsencode(name))
        list_tree(str(root))
        assert read(root, b"file") == b""

    assert opened == ["", "file"]


def test_a_file_that_is_leased_keeps_nobody_waiting(root: Path) -> None:
    """The kernel has whoever opens it wait for the job to give its lease back."""
    (root / "file").touch()
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with (root / "file").open("r+b") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with pytest.raises(BlockingIOError):
                open_beneath(str(root), b"file")
    finally:
        signal.signal(signal.SIGIO, before)


# ── races ──


def until_both(look: Callable[[], bool]) -> None:
    """Look again and again, until both answers have come often: something was swapped in between."""
    seen = {True: 0, False: 0}
    deadline = time.monotonic() + 60
    while min(seen.values()) < 50 or sum(seen.values()) < 1000:
        seen[look()] += 1
        assert time.monotonic() < deadline, seen


def test_a_directory_that_becomes_a_link_while_it_is_walked_shows_nothing_outside(root: Path, tmp_path: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "mine").touch()
    for number in range(100):  # between the look at `sub` and into it is some time
        (root / f"file{number}").touch()

    def look() -> bool:
        found = paths(list_tree(str(root)))
        assert not [path for path in found if b"secret" in path]
        return b"sub/mine" in found

    with swapping(root / "sub", tmp_path / "outside"):
        until_both(look)


def test_a_directory_that_becomes_a_link_while_a_file_is_opened_opens_nothing_outside(
    root: Path, tmp_path: Path
) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "secret").write_bytes(b"mine")

    def look() -> bool:
        try:
            assert read(root, b"sub/secret") == b"mine"
        except FileNotFoundError:
            return False
        return True

    with swapping(root / "sub", tmp_path / "outside"):
        until_both(look)


def test_a_file_that_becomes_something_else_while_it_is_opened_is_never_that(root: Path, tmp_path: Path) -> None:
    (root / "file").write_bytes(b"mine")

    def look() -> bool:
        try:
            assert read(root, b"file") == b"mine"
        except FileNotFoundError:
            return False
        return True

    with swapping(root / "file", tmp_path / "secret"):
        until_both(look)
