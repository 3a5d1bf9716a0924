"""Space on the disk that is kept for the writes that must not fail."""

import os
from contextlib import suppress
from pathlib import Path

SIZE = 128 * 1024
"""Enough for the write-ahead log to take the ends of some dozen jobs, and to be written back."""

_AMPLE = 4
"""The reserve is taken only of a disk that has this many times as much."""


class Reserve:
    """A file that takes up space until the disk is full.

    A job can fill the disk that its own end has to be written to. Deleting
    this file then makes the room. For one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_kept = False

    def keep(self) -> None:
        """Take the space if it is not taken and there is ample. Costs nothing when it is; never fails."""
        if self._is_kept:
            return
        with suppress(OSError):
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < SIZE * _AMPLE and not self._path.exists():
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
                self._is_kept = True
            finally:
                os.close(fd)

    def release(self) -> bool:
        """Give the space back, for a write that found none. False when there is nothing to give."""
        self._is_kept = False
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
