"""Directory trees that jobs have made: nothing in them can be trusted, and nothing stays as it was.

A job may put links, FIFOs and devices there, a million files, a hundred
thousand levels, names that are no text, and may change all of it while it is
looked at. So each step goes from an open directory to one of its entries,
never along a path, and never through a link; nothing but a directory or a
regular file is ever opened, since who opens a FIFO or a device is noticed.
"""

import errno
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import BinaryIO

ENTRIES_MOST = 10_000
"""Most entries of a tree that are looked at to list it."""

DEPTH_MOST = 64
"""Most directories in one another that are looked into: each of them is open meanwhile."""

PATH_MOST = 2048
"""Most bytes of a path that is listed: every byte may be three in a URL."""

PATHS_MOST = 2 << 20
"""Most bytes of all paths that are listed."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

THROUGH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a directory is opened only to go on from there."""

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How a directory is opened to read what is in it."""

NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG})
"""What the system says when nothing is there, or a link, a socket, or a file where a directory was."""


class EntryType(StrEnum):
    """What an entry of a directory is; ``other`` is a FIFO, a socket or a device."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a tree.

    Attributes:
        path: from the root of the tree, without a slash at either end.
        bytes: the length of a regular file; None of anything else.
        modified_at: None when it is a time that no calendar has: a job can give its files any.
    """

    path: bytes
    type: EntryType
    bytes: int | None
    modified_at: datetime | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of a tree, by path.

    Attributes:
        is_truncated: there are more: too many, too deep, too long, or in a directory that may not be read.
    """

    entries: tuple[Entry, ...] = ()
    is_truncated: bool = False


def list_tree(root: str, *, most: int = ENTRIES_MOST) -> Listing:
    """List what is below a directory; nothing when there is no such directory.

    When there is too much, a directory's own entries are rather there than those of the directories in it.

    Args:
        root: the directory.
        most: how many entries to look at.

    Raises:
        OSError: the storage refuses.
    """
    walk = _Walk(most)
    try:
        walk.enter(root, None, b"")
        while walk.levels:
            walk.go_on()
    finally:
        walk.close()
    return Listing(tuple(sorted(walk.found, key=lambda entry: entry.path)), walk.is_truncated)


@dataclass(slots=True)
class _Level:
    """A directory that is open, and those in it that are not yet looked into."""

    fd: int
    prefix: bytes
    directories: list[str]


class _Walk:
    """Goes through a tree with a list of open directories: a deep tree takes none of Python's stack."""

    def __init__(self, most: int) -> None:
        self.found: list[Entry] = []
        self.is_truncated = False
        self.levels: list[_Level] = []
        self._room = most
        self._room_bytes = PATHS_MOST

    def go_on(self) -> None:
        """Look into the next directory."""
        level = self.levels[-1]
        if not level.directories:
            os.close(self.levels.pop().fd)
            return
        name = level.directories.pop()
        if self._room <= 0 or len(self.levels) >= DEPTH_MOST:
            self.is_truncated = True
        else:
            self.enter(name, level.fd, level.prefix + os.fsencode(name) + b"/")

    def enter(self, name: str, within: int | None, prefix: bytes) -> None:
        """Open a directory, and take its entries down."""
        try:
            level = _Level(os.open(name, LIST, dir_fd=within), prefix, [])
        except PermissionError:
            self.is_truncated = True
            return
        except OSError as error:
            if error.errno in NOT_THERE:  # it is gone by now, or something else is in its place
                return
            raise
        self.levels.append(level)
        with os.scandir(level.fd) as entries:
            for entry in entries:
                if self._room <= 0:
                    self.is_truncated = True
                    return
                self._room -= 1
                self._take(entry, level)

    def _take(self, entry: os.DirEntry[str], level: _Level) -> None:
        path = level.prefix + os.fsencode(entry.name)
        if len(path) > min(PATH_MOST, self._room_bytes):
            self.is_truncated = True
            return
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        except PermissionError:
            self.is_truncated = True
            return
        self._room_bytes -= len(path)
        kind = _type_of(status.st_mode)
        size = status.st_size if kind is EntryType.FILE else None
        self.found.append(Entry(path, kind, size, _to_time(status.st_mtime_ns)))
        if kind is EntryType.DIRECTORY:
            level.directories.append(entry.name)

    def close(self) -> None:
        """Close what is open, whatever happened."""
        for level in self.levels:
            os.close(level.fd)


def _type_of(mode: int) -> EntryType:
    types = {stat.S_IFREG: EntryType.FILE, stat.S_IFDIR: EntryType.DIRECTORY, stat.S_IFLNK: EntryType.SYMLINK}
    return types.get(stat.S_IFMT(mode), EntryType.OTHER)


def _to_time(nanoseconds: int) -> datetime | None:
    try:
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return None


def open_beneath(root: str, path: bytes, *, owner: int | None = None) -> BinaryIO:
    """Open a regular file of a tree for reading, unbuffered; the caller closes it.

    Args:
        root: the directory.
        path: from there; anybody's bytes.
        owner: whose it must be; None: anybody's. A job could make a hard link to a file that it may not read itself.

    Raises:
        FileNotFoundError: there is none: nothing, a link on the way or at its end, or something else than a file.
        PermissionError: it may not be read.
        OSError: the storage refuses.
    """
    names = path.split(b"/")
    if any(name in {b"", b".", b".."} or b"\0" in name for name in names):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    try:
        found = _look_up(root, names)
    except OSError as error:
        if error.errno in NOT_THERE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        raise
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if owner not in {None, status.st_uid}:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        # The very file that was looked at, whatever has its name by now.
        return open(os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    finally:
        os.close(found)


def _look_up(root: str, names: list[bytes]) -> int:
    """Return a descriptor that only tells what is there: nothing was opened, so nobody notices."""
    here = os.open(root, THROUGH)
    try:
        for name in names[:-1]:
            below = os.open(name, THROUGH, dir_fd=here)
            os.close(here)
            here = below
        return os.open(names[-1], _LOOK, dir_fd=here)
    finally:
        os.close(here)


def find_inside(root: str, path: str) -> str | None:
    """Follow the links of a path, as far as there is anything.

    Args:
        root: the directory it starts in.
        path: relative.

    Returns:
        The path without links, from the root; None: it leads out.
    """
    above, name = os.path.split(root)
    home = os.path.join(os.path.realpath(above), name)  # a link that was put in the root's place leads out
    found = os.path.relpath(os.path.realpath(os.path.join(root, path)), home)
    return None if found == ".." or found.startswith("../") else found


def make_directories(root: str, path: str) -> None:
    """Make a directory of a tree, and those above it, if they are missing; they are whose the root is.

    Raises:
        OSError: something else is in the place of one of them, a link for one; or the storage refuses.
    """
    here = os.open(root, LIST)
    try:
        owner = os.fstat(here)
        for name in os.path.normpath(path).split("/"):
            try:
                os.mkdir(name, 0o777, dir_fd=here)
                is_new = True
            except FileExistsError:
                is_new = False
            below = os.open(name, LIST, dir_fd=here)
            os.close(here)
            here = below
            if is_new and owner.st_uid != os.geteuid():
                os.fchown(here, owner.st_uid, owner.st_gid)
    finally:
        os.close(here)
