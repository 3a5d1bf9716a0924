"""Reading what jobs write: as far as it is, and as it comes."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import BinaryIO

from jobrunner.domain.access import Caller
from jobrunner.domain.errors import JobrunnerError
from jobrunner.domain.job import Job
from jobrunner.domain.spec import InputKind
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Hole, Stream
from jobrunner.service.waiting import Listener, Waiters
from jobrunner.spool import Spool
from jobrunner.store import jobs as store
from jobrunner.store.engine import Database
from jobrunner.store.jobs import Progress

PIECE = 1 << 16
"""Most bytes that are read at once."""

RESULT_MAX = 64 << 20
"""Most bytes of a result that are read."""

_SHORTEST, _LONGEST, _GROWTH = 0.02, 0.08, 1.25
"""Seconds between two looks at a file: the first ones after it has grown, and when it has long been quiet."""

_LOOK = 0.25
"""Seconds after which the row is looked at, should the hint of the job's end be lost."""


class Interrupted(JobrunnerError):
    """An answer can't be finished: the process stops, the client has gone, or the bytes have."""


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes of a stream; each of `follow`'s joins the one before."""

    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """In the place of bytes that are no longer kept."""

    stream: Stream
    hole: Hole


@dataclass(frozen=True, slots=True)
class Moved:
    """The job is in this state."""

    state: JobState


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has happened for a moment."""


Happening = Written | Dropped | Moved | Quiet


class OutputService:
    """The streams of jobs. One object serves all threads of a process."""

    def __init__(self, database: Database, spool: Spool, followers: Waiters) -> None:
        self._database = database
        self._spool = spool
        self._followers = followers

    def size(self, job: Job, stream: Stream) -> int:
        """Return the length of a stream: what was written when it ended, or what is there by now.

        A job that was seen in the queue had written nothing, though it may have begun since.
        """
        if job.state is JobState.QUEUED:
            return 0
        if job.state.is_ended:
            return job.stdout_bytes if stream is Stream.STDOUT else job.stderr_bytes
        return self._spool.size(job.id, stream)

    def open(self, job: Job, stream: Stream) -> BinaryIO:
        """Open the file of a stream for reading; the caller closes it. Its holes are not data: see `read`."""
        return self._spool.open_stream_file(job.id, stream)

    def tail(self, job: Job, stream: Stream, most: int) -> tuple[int, bytes]:
        """Return the end of a stream, at most so many bytes and none from before a hole, and where it starts."""
        with self.open(job, stream) as file:
            size = self.size(job, stream)
            start = max(size - most, self._progress(job).holes.get(stream, Hole(0, 0)).stop)
            data = _read(file, start, size - start)
            # Looked at again: what was dropped while we read is not data.
            hole = self._progress(job).holes.get(stream, Hole(0, 0))
            behind = max(hole.stop - start, 0)
            return start + behind, data[behind:]

    def read(self, job: Job, stream: Stream, start: int, stop: int) -> Iterator[Written | Dropped]:
        """Read a part of a stream piece by piece; what is no longer kept of it comes as `Dropped`.

        Raises:
            Interrupted: the job has shortened its own file, or was deleted meanwhile.
        """
        with self.open(job, stream) as file:
            at = start
            while at < stop:
                data = _read(file, at, min(PIECE, stop - at))
                for found in _cut(stream, at, data, self._progress(job).holes.get(stream)):
                    yield found
                    at = _end_of(found)
                if not data:
                    raise Interrupted("the output has become shorter than it was")

    def whole(self, job: Job, stream: Stream) -> Iterator[bytes]:
        """Read all that is kept of a stream by now, with a notice in the place of what was dropped.

        What a job that was deleted meanwhile, or has shortened its own file, leaves to be read.
        """
        with suppress(Interrupted):
            for happening in self.read(job, stream, 0, self.size(job, stream)):
                yield happening.data if isinstance(happening, Written) else notice(happening.hole)

    def result(self, job: Job) -> Iterator[bytes]:
        """Read what an ended job has left in the file that its specification calls its result, and not too much."""
        with self._spool.open_result(job.id) as file:
            at, stop = 0, min(os.fstat(file.fileno()).st_size, RESULT_MAX)
            while data := _read(file, at, min(PIECE, stop - at)):
                yield data
                at += len(data)

    def files(self, job: Job) -> dict[str, bytes]:
        """Return the files that came with a job."""
        with self._database.read() as connection:
            found = store.load_inputs(connection, job.number)
        return {given.name: given.content for given in found if given.kind is InputKind.FILE}

    def scratch_path(self, job_id: str) -> str:
        """Return the directory that a job starts in, if it does not say."""
        return self._spool.scratch(job_id)

    def following(self, job: Job, caller: Caller) -> AbstractContextManager[Listener]:
        """Take a seat among the followers, for `follow`.

        Raises (on entering):
            TooBusy: too many follow already.
        """
        return self._followers.listen(job.id, caller)

    def until_begun(self, job: Job, listener: Listener) -> Job:
        """Wait until the process of a job was made, or none will be; return the job as it was seen last.

        Raises:
            Interrupted: the process stops, the client has gone, or the job was deleted.
            Unauthenticated: the token that the seat was taken with was revoked, or has expired.
        """
        pause, looked_at = _SHORTEST, float("-inf")
        while not self._spool.has_process(job.id):
            if time.monotonic() - looked_at >= _LOOK:
                job, looked_at = self._reload(job), time.monotonic()
                if job.state.is_ended:
                    break
            if listener.pause(pause):
                looked_at = float("-inf")
            pause = min(pause * _GROWTH, _LONGEST)
            if listener.is_over:
                raise Interrupted("the service stops, or the client has gone")
        return job

    def _reload(self, job: Job) -> Job:
        with self._database.read() as connection:
            found = store.find_job(connection, job.number)
        if found is None:
            raise Interrupted("the job was deleted")
        return found

    def follow(self, job: Job, offsets: Mapping[Stream, int], listener: Listener) -> Iterator[Happening]:
        """Tell what a job writes as it comes, and its states, until it has ended and all was told.

        Args:
            job: whose output.
            offsets: which streams, and from where.
            listener: the caller's seat.

        Raises:
            Interrupted: the process stops, the client has gone, or the job was deleted.
            Unauthenticated: the token that the seat was taken with was revoked, or has expired.
        """
        with ExitStack() as files:
            cursors = [_Cursor(self._spool, job.id, stream, at, files) for stream, at in offsets.items()]
            told: JobState | None = None
            progress, looked_at = self._progress(job), time.monotonic()
            pause = _SHORTEST
            while True:
                # Known before the output is read: once the job has ended, everything is written.
                has_ended = progress.state.is_ended
                read = [(cursor, cursor.read(progress)) for cursor in cursors]
                was_read = any(data for _, data in read)
                if was_read or time.monotonic() - looked_at >= _LOOK:
                    # Looked at after the output: what was dropped meanwhile is not data, and what has written runs.
                    progress, looked_at = self._progress(job), time.monotonic()
                if progress.state is not told:
                    told = progress.state
                    yield Moved(told)
                if has_ended and not was_read:
                    return
                for cursor, data in read:
                    yield from cursor.take(data, progress)
                if was_read:
                    pause = _SHORTEST
                else:
                    yield Quiet()
                    pause = min(pause * _GROWTH, _LONGEST)
                if any(len(data) == PIECE for _, data in read) or progress.state.is_ended:
                    pause = 0.0
                if listener.pause(pause):
                    progress, looked_at = self._progress(job), time.monotonic()
                if listener.is_over:
                    raise Interrupted("the service stops, or the client has gone")

    def source_path(self, job: Job, step: int) -> str:
        """Return where the text of a ``source`` step is, or will be, written."""
        return self._spool.source(job.id, step)

    def _progress(self, job: Job) -> Progress:
        if job.state.is_ended:
            sizes = {Stream.STDOUT: job.stdout_bytes, Stream.STDERR: job.stderr_bytes}
            return Progress(job.state, sizes, job.holes)
        with self._database.read() as connection:
            progress = store.find_progress(connection, job.number)
        if progress is None:
            raise Interrupted("the job was deleted")
        return progress


class _Cursor:
    """Where one follower is in one stream."""

    def __init__(self, spool: Spool, job_id: str, stream: Stream, at: int, files: ExitStack) -> None:
        self._spool = spool
        self._job_id = job_id
        self._stream = stream
        self._at = at
        self._files = files
        self._file: BinaryIO | None = None

    def read(self, progress: Progress) -> bytes:
        """Return what has come, of an ended job at most what belongs to it."""
        if self._file is None:
            self._file = self._spool.find_stream_file(self._job_id, self._stream)
            if self._file is None:  # not started, or merged into the other one
                return b""
            self._files.enter_context(self._file)
        most = PIECE
        if progress.state.is_ended:
            most = min(most, progress.sizes[self._stream] - self._at)
        return _read(self._file, self._at, most)

    def take(self, data: bytes, progress: Progress) -> Iterator[Written | Dropped]:
        """Pass on what was read before this progress."""
        for found in _cut(self._stream, self._at, data, progress.holes.get(self._stream)):
            self._at = _end_of(found)
            yield found


def notice(hole: Hole) -> bytes:
    """Return the line that stands in the place of what was dropped."""
    return f"\n[jobrunner: {hole.size} bytes were dropped here, {hole.start} to {hole.stop - 1}]\n".encode()


def _read(file: BinaryIO, at: int, most: int) -> bytes:
    return os.pread(file.fileno(), most, at) if most > 0 else b""


def _cut(stream: Stream, at: int, data: bytes, hole: Hole | None) -> Iterator[Written | Dropped]:
    """Return what was read at an offset, up to a hole and the hole; the rest is for the next time."""
    if not data:
        return
    if hole is None or at >= hole.stop or at + len(data) <= hole.start:
        yield Written(stream, at, data)
        return
    if at < hole.start:
        yield Written(stream, at, data[: hole.start - at])
    yield Dropped(stream, Hole(max(at, hole.start), hole.stop))


def _end_of(found: Written | Dropped) -> int:
    return found.offset + len(found.data) if isinstance(found, Written) else found.hole.stop
