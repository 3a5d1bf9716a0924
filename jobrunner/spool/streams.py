"""What a job's process reads and writes: the files of its streams, opened for it."""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from jobrunner.domain.streams import Stream
from jobrunner.spool.opening import ANEW, CAREFULLY, enter
from jobrunner.users import User

_NEW_STREAM = ANEW | os.O_APPEND


@dataclass(slots=True)
class JobStreams:
    """Open descriptors for a process about to start."""

    stdin: int
    stdout: int
    stderr: int

    def take_outputs(self) -> dict[Stream, int]:
        """Hand over what the process writes to, for the caller to close; merged streams are one."""
        taken = {Stream.STDOUT: self.stdout}
        if self.stderr != self.stdout:
            taken[Stream.STDERR] = self.stderr
        self.stdout = self.stderr = self.stdin  # what is left to close
        return taken

    def close(self) -> None:
        """Close them; the process has its own by then."""
        for fd in {self.stdin, self.stdout, self.stderr}:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_streams(path: str, *, stdin: bool, merge_stderr: bool, user: User | None) -> JobStreams:
    """Make the stream files of a job's directory and open them; see `Spool.open_streams`."""
    with _all_or_none() as opened:
        opened.append(os.open(f"{path}/stdin" if stdin else os.devnull, os.O_RDONLY | os.O_NOFOLLOW))
        opened.append(os.open(f"{path}/stdout", _NEW_STREAM, 0o600))
        opened.append(opened[1] if merge_stderr else os.open(f"{path}/stderr", _NEW_STREAM, 0o600))
        if user is not None:
            for fd in set(opened[1:]):
                os.fchown(fd, -1, user.gid)
                os.fchmod(fd, 0o620)
    return JobStreams(*opened)


def share_streams(outputs: Mapping[Stream, int], *, merge_stderr: bool) -> JobStreams | None:
    """Make streams for a later step, which reads nothing, of the descriptors of the job's outputs.

    None when one is missing.
    """
    stdout, stderr = outputs.get(Stream.STDOUT), outputs.get(Stream.STDOUT if merge_stderr else Stream.STDERR)
    if stdout is None or stderr is None:
        return None
    with _all_or_none() as opened:
        opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        opened.append(os.dup(stdout))
        opened.append(opened[1] if merge_stderr else os.dup(stderr))
    return JobStreams(*opened)


def reopen_output(path: str, stream: Stream) -> int | None:
    """Open a stream of a job's directory for writing; see `Spool.open_output`."""
    try:
        with enter(path) as directory:
            fd = os.open(stream, os.O_WRONLY | os.O_APPEND | CAREFULLY, dir_fd=directory)
    except OSError:
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid():
        os.set_blocking(fd, True)  # it may become the stream of another step
        return fd
    os.close(fd)
    return None


@contextmanager
def _all_or_none() -> Iterator[list[int]]:
    """Collect descriptors; they are closed again when not all are to be had."""
    opened: list[int] = []
    try:
        yield opened
    except OSError:
        for fd in set(opened):
            os.close(fd)
        raise
