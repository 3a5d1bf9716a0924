"""How the service opens what is in a job's directory: the job may have put anything in its place.

A directory is held by a descriptor while something in it is looked at, and
nothing but a regular file is read.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from jobrunner.scratch import NOT_THERE, THROUGH

GONE = {*NOT_THERE, errno.EACCES}
"""What the system says of a file that a job has replaced or closed: that must not keep others from being listed."""

CAREFULLY = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a file is opened that may be anything by now: to open a FIFO waits for somebody at its other end."""

ANEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a file is made that must not be there."""


@contextmanager
def enter(path: str) -> Iterator[int]:
    """Hold on to the directory of a job: it may put a link to another in its place.

    Raises:
        OSError: there is none, or something else is there; see `NOT_THERE`.
    """
    fd = os.open(path, THROUGH)
    try:
        yield fd
    finally:
        os.close(fd)


def is_there(name: str, directory: int) -> bool:
    """Tell whether there is anything of this name."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # only a job can have closed its directory
    return True


def find_file(path: str, name: str) -> BinaryIO | None:
    """Open a file of a job's directory for reading; None when there is no such regular file."""
    try:
        with enter(path) as directory:
            fd = os.open(name, os.O_RDONLY | CAREFULLY, dir_fd=directory)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return open(fd, "rb", buffering=0)
    os.close(fd)
    return None


def open_file(path: str, name: str) -> BinaryIO:
    """Open a file of a job's directory for reading; an empty one when there is no such regular file."""
    return find_file(path, name) or open(os.devnull, "rb", buffering=0)


def write_new(path: str, content: bytes, mode: int, within: int | None = None) -> None:
    """Write a file that must not be there; its mode does not depend on the umask."""
    fd = os.open(path, ANEW, mode, dir_fd=within)
    with open(fd, "wb", buffering=0) as file:
        if mode & 0o077:
            os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
