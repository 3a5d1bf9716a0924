"""How much is kept of what a job writes.

The job writes to its files by itself, nobody stands between. So the executor
looks now and then how long they are, and a stream is too long by what the job
writes meanwhile, and no more.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from jobrunner.config import Output
from jobrunner.domain.job import ErrorCode, JobError
from jobrunner.domain.streams import Hole, Stream
from jobrunner.executor.ledger import Ledger
from jobrunner.executor.trouble import Trouble
from jobrunner.holes import BLOCK, CanNotDrop, check_can_drop, drop


@dataclass(slots=True)
class _Watched:
    """A stream of a running job.

    Attributes:
        fd: its file, whatever the job has put in the place of its name.
        allowed: most bytes that may be kept before something is done.
        disk_bytes: the disk blocks that it took up when something was dropped last.
    """

    fd: int
    allowed: int
    disk_bytes: int = 0

    def measure(self) -> tuple[int, int]:
        """Return its length, and the disk blocks that it takes up, in bytes."""
        status = os.fstat(self.fd)
        return status.st_size, status.st_blocks * 512


class OutputLimit:
    """Watches over the streams of one job, from their begin or from an adoption to the job's end.

    Any thread may ask `is_exceeded`. Everything else is for the job's own, which
    may wait: for the database, and for the disk, where to drop a gigabyte takes
    a tenth of a second, and seconds if it has to be written first.
    """

    def __init__(self, number: int, settings: Output, ledger: Ledger) -> None:
        """Watch nothing yet, for the job of this number."""
        self._number = number
        self._most = settings.max_bytes
        self._drops = settings.on_limit == "drop-middle"
        self._ledger = ledger
        self._streams: dict[Stream, _Watched] = {}
        self._holes: Mapping[Stream, Hole] = {}
        self._guard = threading.Lock()
        self._trouble = Trouble()
        self.excess: JobError | None = None
        """Why the job has to end, if it has."""

    def watch(self, opened: Mapping[Stream, int], holes: Mapping[Stream, Hole]) -> None:
        """Begin with these descriptors, which are ours from now on, and with what was dropped before."""
        # Also of streams that are not watched any more: what was dropped of them stays in the row.
        self._holes = holes
        self._streams = {stream: _Watched(fd, self._most) for stream, fd in opened.items()}

    def descriptors(self) -> dict[Stream, int]:
        """Return what is watched, for another step to write to; still ours to close."""
        return {stream: watched.fd for stream, watched in self._streams.items()}

    def allow_more(self) -> None:
        """Take what is there for granted: the job was told already that it is too much."""
        for stream, watched in self._streams.items():
            with suppress(OSError):  # then it is told once more
                watched.allowed = self._kept(stream, watched.measure()[0]) + self._most

    def is_exceeded(self) -> bool:
        """Tell whether `enforce` has something to do. One call of the system for each stream."""
        with self._guard:
            try:
                return any(self._is_too_long(stream, watched) for stream, watched in self._streams.items())
            except OSError:
                return True  # it says what is wrong

    def _is_too_long(self, stream: Stream, watched: _Watched) -> bool:
        size, disk_bytes = watched.measure()
        if self._kept(stream, size) > watched.allowed:
            return True
        # Who empties its own stream, or writes over it, fills the hole again.
        return self._drops and stream in self._holes and disk_bytes > watched.disk_bytes + self._most

    def _kept(self, stream: Stream, size: int) -> int:
        """Return how many bytes of a stream so long are not in its hole."""
        hole = self._holes.get(stream)
        return size if hole is None else min(size, hole.start) + max(size - hole.stop, 0)

    def enforce(self, *, may_write_on: bool = True) -> bool:
        """Drop what is too much.

        Args:
            may_write_on: whether the job has not ended.

        Returns:
            Whether the job must end instead, see `excess`. It may write as much again before it is told once more.
        """
        must_end = False
        with self._trouble.watched():
            exceeded = [stream for stream, watched in self._streams.items() if self._is_too_long(stream, watched)]
            if exceeded:
                must_end = not self._try_to_drop(exceeded, may_write_on=may_write_on)
        return must_end

    def _try_to_drop(self, exceeded: list[Stream], *, may_write_on: bool) -> bool:
        detail = f"{exceeded[0]} has more than {self._most} bytes ([output] max_bytes)"
        if self._drops:
            try:
                self._drop_middle(exceeded, may_write_on=may_write_on)
                return True
            except CanNotDrop as error:
                detail += f", and nothing can be dropped of it: {error}"
                self._drops = False
        self.excess = self.excess or JobError(ErrorCode.OUTPUT_LIMIT, detail)
        self.allow_more()
        return False

    def _drop_middle(self, exceeded: list[Stream], *, may_write_on: bool) -> None:
        """Keep the first quarter and the newest three quarters.

        Raises:
            CanNotDrop: the file system can't.
            StorageError, OSError: not now; nothing was dropped that is not written down.
        """
        for stream in exceeded:
            if stream not in self._holes:
                check_can_drop(self._streams[stream].fd)
        holes = {**self._holes, **{stream: self._next_hole(stream) for stream in exceeded}}
        # Whoever reads looks at the row after it has read, and throws away
        # what is in a hole: so it must be in the row before it is gone.
        if holes != self._holes and not self._ledger.record_holes(self._number, holes, may_write_on=may_write_on):
            return
        self._holes = holes
        for stream in exceeded:
            watched = self._streams[stream]
            drop(watched.fd, *holes[stream])
            self._ledger.keep_reserve()  # at once: the job may fill the disk again
            _, watched.disk_bytes = watched.measure()

    def _next_hole(self, stream: Stream) -> Hole:
        """Return the hole that is due; it only grows."""
        first = self._most // 4 // BLOCK * BLOCK
        size, _ = self._streams[stream].measure()
        due = Hole(first, -(-(size - (self._most - first)) // BLOCK) * BLOCK)
        hole = self._holes.get(stream, due)
        return Hole(min(due.start, hole.start), max(due.stop, hole.stop))

    def close(self) -> None:
        """Close the descriptors; nothing is watched any more."""
        with self._guard:
            streams, self._streams = self._streams, {}
            for watched in streams.values():
                os.close(watched.fd)
