"""Drops a part of a file, so that its disk blocks are free again: fallocate(2), FALLOC_FL_PUNCH_HOLE.

What lies before and behind stays where it is.
"""

import ctypes
import errno
import os

BLOCK = 4096
"""Begin and end of a hole should be multiples of this: of most file systems only whole blocks are freed."""

_KEEP_SIZE = 1
_PUNCH_HOLE = 2

_FAR_AWAY = 1 << 40
"""Bytes behind the end of a file where nobody will have written a moment later."""

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EAGAIN}
"""What a file system may say that can drop parts of files: even that takes space at times."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_LIBC, "fallocate64", _LIBC.fallocate)
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


class CanNotDrop(Exception):
    """The file system can't drop a part of a file; the message is the system's."""


def check_can_drop(fd: int) -> None:
    """Ask the file system whether it can drop parts of this file, without dropping anything.

    Raises:
        CanNotDrop: it can't.
        OSError: it does not say.
    """
    start = (os.fstat(fd).st_size + _FAR_AWAY) // BLOCK * BLOCK
    drop(fd, start, start + BLOCK)


def drop(fd: int, start: int, stop: int) -> None:
    """Drop these bytes: they read as zeros from now on, and the file is as long as before.

    Takes a moment for a gigabyte, and longer where it has to be written to the disk first.

    Raises:
        CanNotDrop: the file system can't.
        OSError: it could not now.
    """
    while _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, stop - start) != 0:
        number = ctypes.get_errno()
        if number in _PASSING:
            raise OSError(number, os.strerror(number))
        if number != errno.EINTR:
            raise CanNotDrop(os.strerror(number))
