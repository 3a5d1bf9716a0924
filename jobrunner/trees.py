"""Directory trees as a whole: how much they hold, and how to be rid of them, whatever a job has made of them."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from jobrunner.scratch import STEP, list_tree

_SMALL = 1000
"""Entries of a tree that we remove ourselves: Python takes whole directories into memory."""


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, if it is there. Two may do so at once.

    Raises:
        OSError: something of it could not be removed.
    """
    try:
        os.rmdir(path)  # most jobs leave nothing
        return
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ENOTDIR:  # a job can put a link, or a file, in a directory's place
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
    try:
        if not list_tree(path, most=_SMALL).is_truncated:
            shutil.rmtree(path)
            return
    except OSError:
        pass
    _remove_by_tools(path)


def _remove_by_tools(path: str) -> None:
    """Remove what is large, deep, closed, or changing: the system's own tools can do it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        fd = os.open(path, STEP)
        try:
            # Through the descriptor: of a link in the directory's place the target would be opened.
            here = f"/proc/self/fd/{fd}"
            os.chmod(here, 0o700)
            subprocess.run(["chmod", "-R", "u+rwX", "."], cwd=here, stderr=subprocess.DEVNULL, check=False)
        finally:
            os.close(fd)
    done = subprocess.run(["rm", "-rf", path], stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if os.path.lexists(path):
        raise OSError(errno.EIO, done.stderr.strip()[:1000] or "it is still there", path)


def disk_bytes(path: str, *, besides: str | None = None) -> int:
    """Return the disk blocks that everything below a directory holds, in bytes; 0 when there is no such directory.

    Args:
        path: the directory.
        besides: an entry of it that does not count, where that can be told.
    """
    try:
        return _count_blocks(path, besides)
    except (RecursionError, OSError):
        # A tree too deep for us, or with directories that the job has closed.
        return _du(path)


def _count_blocks(path: str, besides: str | None = None) -> int:
    total = 0
    for entry in scan(path):
        if entry.name == besides:
            continue
        with suppress(FileNotFoundError):
            total += entry.stat(follow_symlinks=False).st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                total += _count_blocks(entry.path)
    return total


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
