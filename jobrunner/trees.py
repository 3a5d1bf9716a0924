"""Directory trees as a whole: how much they hold, and how to be rid of them, whatever a job has made of them."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from jobrunner.scratch import LIST, NOT_THERE, THROUGH

_SMALL = 1000
"""Entries of a directory that we remove ourselves; the system's tools don't take larger ones into memory whole."""

_FLAT = 8
"""Directories in one another that we remove ourselves: each of them is open meanwhile."""

_NOT_DEEP = 16
"""Directories in one another that we look into to count what they hold: the same."""


def remove_tree(path: str, *, within: int | None = None) -> None:
    """Remove a directory with all that is in it, if it is there. Two may do so at once.

    Args:
        path: of the directory.
        within: an open directory, where a relative path starts.

    Raises:
        OSError: something of it could not be removed.
    """
    try:
        _remove_small(path, within, _FLAT)
    except FileNotFoundError:
        return
    except OSError:
        _remove_by_tools(path, within)


def _remove_small(name: str, within: int | None, depth: int) -> None:
    """Remove a directory, or one in an open one.

    Raises:
        FileNotFoundError: it is gone already.
        OSError: it is too much for us, or closed, or none: a job can put a link, or a file, there.
    """
    fd = os.open(name, LIST, dir_fd=within)
    try:
        with os.scandir(fd) as entries:
            found = list(islice(entries, _SMALL))
        for entry in found:
            with suppress(FileNotFoundError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
                elif depth:
                    _remove_small(entry.name, fd, depth - 1)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=within)  # says so if there was more


def _remove_by_tools(path: str, within: int | None = None) -> None:
    """Remove what is large, deep, closed, changing, or no directory: the system's own tools can do it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        fd = os.open(path, THROUGH, dir_fd=within)
        try:
            # Through the descriptor: of a link in the directory's place the target would be opened.
            here = f"/proc/self/fd/{fd}"
            os.chmod(here, 0o700)
            # Nothing is closed to root; and of what is swapped meanwhile for a link chmod(1) would open the target.
            if os.geteuid() != 0:
                subprocess.run(["chmod", "-R", "u+rwX", "."], cwd=here, stderr=subprocess.DEVNULL, check=False)
        finally:
            os.close(fd)
    done = subprocess.run(
        ["rm", "-rf", path],
        cwd=None if within is None else f"/proc/self/fd/{within}",
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    with suppress(FileNotFoundError):
        os.stat(path, dir_fd=within, follow_symlinks=False)
        raise OSError(errno.EIO, done.stderr.strip()[:1000] or "it is still there", path)


def disk_bytes(path: str, *, besides: str | None = None) -> int:
    """Return the disk blocks that everything below a directory holds, in bytes; 0 when there is no such directory.

    Args:
        path: the directory.
        besides: an entry of it that does not count, where that can be told.
    """
    try:
        return _count_blocks(path, None, _NOT_DEEP, besides)
    except OSError as error:
        if error.errno in NOT_THERE:
            return 0
        # A tree too deep for us, or with directories that the job has closed.
        return _du(path)


def _count_blocks(name: str, within: int | None, depth: int, besides: str | None = None) -> int:
    """Count what is in a directory, or in one of an open one.

    Raises:
        OSError: it is no directory any more, is closed, or has too many in one another.
    """
    fd = os.open(name, LIST, dir_fd=within)
    try:
        total = 0
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.name == besides:
                    continue
                try:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        if not depth:
                            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                        total += _count_blocks(entry.name, fd, depth - 1)
                except OSError as error:
                    if error.errno not in NOT_THERE:  # else it is gone by now, or something else is in its place
                        raise
        return total
    finally:
        os.close(fd)


def scan(path: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a directory; none when there is no such directory."""
    try:
        with os.scandir(path) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _du(path: str) -> int:
    done = subprocess.run(
        ["du", "-s", "--block-size=1", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    return int(done.stdout.split()[0]) if done.stdout else 0
