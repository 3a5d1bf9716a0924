"""Space on the disk that is kept for the writes that must not fail."""

import os
import threading
from contextlib import suppress
from pathlib import Path

SIZE = 64 * 1024
"""Of a piece: enough for the write-ahead log to take some dozen changes, and to be written back."""

PIECES = 3
"""Somebody may take what a piece gave free before it is used: the job that fills the disk, for one."""

_AMPLE = 2
"""Pieces are taken only of a disk that has this many times all of them."""


class Reserve:
    """Files that take up space until the disk is full.

    A job can fill the disk that its own end, and the wish that it should end,
    have to be written to. Deleting a piece then makes the room.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._is_whole = False

    def keep(self) -> None:
        """Take the space if it is not taken and there is ample. Costs next to nothing when it is; never fails."""
        with self._lock, suppress(OSError):
            if self._is_whole and all(piece.exists() for piece in self._pieces()):
                return
            disk = os.statvfs(self._directory)
            missing = [piece for piece in self._pieces() if not piece.exists() or piece.stat().st_size < SIZE]
            if missing and disk.f_bavail * disk.f_frsize < SIZE * PIECES * _AMPLE:
                return
            for piece in missing:
                self._take(piece)
            self._is_whole = True

    def release(self, *, leave: int = 0) -> bool:
        """Give a piece back, for a write that found no space. False when there is nothing to give.

        Args:
            leave: so many pieces are for others.
        """
        with self._lock:
            self._is_whole = False
            there = [piece for piece in self._pieces() if piece.exists()]
            for piece in there[leave:]:
                with suppress(OSError):
                    piece.unlink()
                    return True
        return False

    def _pieces(self) -> list[Path]:
        return [self._directory / f"reserve.{number}" for number in range(PIECES)]

    def _take(self, piece: Path) -> None:
        fd = os.open(piece, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, SIZE)
        except OSError:
            piece.unlink()
            raise
        finally:
            os.close(fd)
