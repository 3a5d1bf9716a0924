"""Jobs that write much, and what is kept of it."""

import os
import sys
import threading
from array import array
from pathlib import Path

from jobrunner.domain.job import ErrorCode, Job
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Hole, Stream
from jobrunner.house import House
from jobrunner.store import retention
from tests.factories import argv, make_job
from tests.process.running import get

MIB = 1 << 20
MAX = MIB
HEAD = MAX // 4
BLOCK = 4096

WRITER = """
import os, sys, time
from array import array
path, total, pause, fd = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
at = 0
while at < total and not os.path.exists(path + "/stop"):
    piece = array("Q", range(at // 8, (at + min(1 << 20, total - at)) // 8))
    piece.byteswap()
    data = memoryview(piece.tobytes())
    while data:
        written = os.write(fd, data)
        data, at = data[written:], at + written
    time.sleep(pause)
with open(path + "/total", "w") as file:
    file.write(f"{at}\\n")
"""
"""Writes numbers of eight bytes that count up, so that each byte tells where it belongs."""


def content(start: int, stop: int) -> bytes:
    """Return what the writer has written from here to there."""
    first = start // 8
    numbers = array("Q", range(first, -(-stop // 8)))
    numbers.byteswap()
    return numbers.tobytes()[start - first * 8 : stop - first * 8]


def submit_writer(house: House, total: int, *, pause: float = 0.0, fd: int = 1, **members: bool) -> Job:
    """Queue a job that writes so many bytes, a multiple of eight, as fast as it can, until there is a file ``stop``."""
    return make_job(house, argv(sys.executable, "-c", WRITER, ".", str(total), str(pause), str(fd), **members))


def stream_file(house: House, job: Job, stream: Stream = Stream.STDOUT) -> Path:
    return Path(house.spool.path(job.id), stream)


def size_of(house: House, job: Job) -> int:
    path = stream_file(house, job)
    return path.stat().st_size if path.exists() else 0


def disk_bytes(house: House, job: Job, stream: Stream = Stream.STDOUT) -> int:
    try:
        return stream_file(house, job, stream).stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def hole_of(house: House, job: Job, stream: Stream = Stream.STDOUT) -> Hole:
    return get(house, job).holes.get(stream, Hole(0, 0))


def check_kept(house: House, job: Job, total: int, stream: Stream = Stream.STDOUT, most: int = MAX) -> Hole:
    """Hold what is kept of a writer's stream against what it wrote; return the hole."""
    hole = hole_of(house, job, stream)
    assert hole.start == most // 4
    assert hole.stop % BLOCK == 0
    kept = total - hole.size
    assert most - BLOCK < kept <= most
    with stream_file(house, job, stream).open("rb") as file:
        assert file.seek(0, os.SEEK_END) == total
        assert os.pread(file.fileno(), hole.start, 0) == content(0, hole.start)
        assert os.pread(file.fileno(), total, hole.stop) == content(hole.stop, total)
        assert not any(os.pread(file.fileno(), min(hole.size, MIB), hole.start)), "nothing of it is left"
    assert disk_bytes(house, job, stream) <= most + 2 * BLOCK
    return hole


def check_accounted(house: House, job: Job) -> None:
    """Hold what the row of an ended job, the last one, says of the disk against what it takes up: holes do not."""
    with house.database.read() as connection:
        (row,) = retention.list_ended(connection, before=1 << 62, limit=1)
    assert row.number == job.number
    assert disk_bytes(house, job) <= row.disk_bytes < disk_bytes(house, job) + 16 * BLOCK


class Sampler:
    """Looks again and again at what a job holds of the disk, on a thread of its own."""

    def __init__(self, house: House, job: Job) -> None:
        self.most = 0
        self._house, self._job = house, job
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.most = max(self.most, disk_bytes(self._house, self._job))

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def limit_error(ended: Job) -> str:
    """Hold the end of a job against what it must be that has written too much; return the details."""
    assert ended.state is JobState.OUTPUT_LIMIT
    assert ended.error is not None
    assert ended.error.code is ErrorCode.OUTPUT_LIMIT
    return ended.error.detail
