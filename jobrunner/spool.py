"""The directories of jobs.

::

    DATA/jobs/3f/0192f0c4-…-2f6f1f0f3c3f/     made when the job starts
        stdout, stderr                        what the job wrote, byte for byte
        stdin, source, source.1 …             what came with the submission, if anything did
        process.json                          who its process is: see `ProcessRecord`, `StepMark`
        outcome, outcome.1 …                  how a step's process in its sandbox has ended, if it has one
        scratch/                              its working directory, with the files it came with

All of it is the service's alone, unless jobs run as another user. Then that
user can go through the directories, but not list them; ``scratch`` and what is
in it is its own, its group can read ``stdin`` and ``source``, and write, but
not replace, ``stdout`` and ``stderr``: that is what opening ``/dev/stdin`` or
``/dev/stderr`` needs. When the job has ended its directory is closed to that
user, too.

The stream files are made last, right before the process: a directory with
``stdout`` but without ``process.json`` tells that a process may have been made.
For a later step a mark in ``process.json`` tells that, which takes the place of
the record of the step before.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from jobrunner.domain.ids import parse_job_reference
from jobrunner.domain.spec import Input, InputKind, source_name
from jobrunner.domain.streams import Stream
from jobrunner.scratch import NOT_THERE, STEP, Listing, list_tree, open_beneath
from jobrunner.trees import disk_bytes, remove_tree, scan
from jobrunner.users import User


class ProcessRecord(NamedTuple):
    """Which process runs a job. A pid alone is no identity: it is given again.

    Attributes:
        pid: also the id of its process group and session.
        start_ticks: when it started, field 22 of ``/proc/PID/stat``.
        boot_id: of ``/proc/sys/kernel/random/boot_id``.
        step: the index of the step that it runs.
    """

    pid: int
    start_ticks: int
    boot_id: str
    step: int = 0


class StepMark(NamedTuple):
    """For which step of a job a process was made last, or may have been."""

    step: int
    boot_id: str


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


class MayHaveRun(Exception):
    """A directory tells that a process was made for a job that is to start only now."""


class Spool:
    """All directories of jobs. Paths are made of the ids of the server only, never of what a client sent.

    Every method may raise `OSError`: the system's words are what people need to see.

    Args:
        data_dir: what they are in.
        keep_scratch: ended jobs keep their scratch directories until they are purged.
        user: whom jobs run as; None: as the service does.
    """

    def __init__(self, data_dir: Path, *, keep_scratch: bool = True, user: User | None = None) -> None:
        self._root = f"{data_dir}/jobs"
        self.keeps_scratch = keep_scratch
        self._user = user

    def set_up(self) -> None:
        """Make the directory of all; let another user's jobs go through what is there already."""
        os.makedirs(self._root, 0o700, exist_ok=True)
        if self._user is not None:
            for path in (self._root, *(shelf.path for shelf in scan(self._root) if shelf.is_dir())):
                let_through(path)

    def path(self, job_id: str) -> str:
        """Return the directory of a job. The last two digits of a UUIDv7 are random, so they spread."""
        return f"{self._root}/{job_id[-2:]}/{job_id}"

    def scratch(self, job_id: str) -> str:
        """Return the working directory of a job."""
        return f"{self.path(job_id)}/scratch"

    def source(self, job_id: str, step: int = 0) -> str:
        """Return where the text of a ``source`` step is written."""
        return _source_path(self.path(job_id), source_name(step))

    def prepare(self, job_id: str, inputs: Collection[Input]) -> None:
        """Make the directory of a job anew, with what came with it.

        Raises:
            MayHaveRun: it was here already, and its process may have been.
        """
        path = self.path(job_id)
        try:
            os.mkdir(path, 0o700)
        except FileNotFoundError:
            self._make_shelf(os.path.dirname(path))
            os.mkdir(path, 0o700)
        except FileExistsError:
            if self.was_started(job_id):
                raise MayHaveRun from None
            # An executor died between the claim and the start.
            shutil.rmtree(path)
            os.mkdir(path, 0o700)
        os.mkdir(f"{path}/scratch", 0o700)
        for given in inputs:
            if given.kind is InputKind.FILE:
                _write_new(f"{path}/scratch/{given.name}", given.content, 0o644)
            elif given.kind is InputKind.SOURCE:
                _write_new(_source_path(path, given.name), given.content, 0o755)
            else:
                _write_new(f"{path}/stdin", given.content, 0o600)
        if self._user is not None:
            self._hand_over(path, inputs, self._user)

    def _make_shelf(self, path: str) -> None:
        os.makedirs(path, 0o700, exist_ok=True)
        if self._user is not None:
            let_through(path)

    def _hand_over(self, path: str, inputs: Collection[Input], user: User) -> None:
        """Give the user of the job what is to be its own, and open to it what it needs."""
        for given in inputs:
            if given.kind is InputKind.FILE:
                os.chown(f"{path}/scratch/{given.name}", user.uid, user.gid)
            else:
                is_source = given.kind is InputKind.SOURCE
                file = _source_path(path, given.name) if is_source else f"{path}/stdin"
                os.chown(file, -1, user.gid)
                os.chmod(file, 0o750 if is_source else 0o640)
        os.chown(f"{path}/scratch", user.uid, user.gid)
        let_through(path)

    def open_streams(self, job_id: str, *, stdin: bool, merge_stderr: bool) -> JobStreams:
        """Make the stream files and open them for the process.

        Args:
            job_id: whose directory was prepared.
            stdin: whether the job has an input; else it reads nothing.
            merge_stderr: whether both streams go to ``stdout``.
        """
        path = self.path(job_id)
        opened: list[int] = []
        try:
            opened.append(os.open(f"{path}/stdin" if stdin else os.devnull, os.O_RDONLY | os.O_NOFOLLOW))
            opened.append(os.open(f"{path}/stdout", _NEW_STREAM, 0o600))
            opened.append(opened[1] if merge_stderr else os.open(f"{path}/stderr", _NEW_STREAM, 0o600))
            if self._user is not None:
                for fd in set(opened[1:]):
                    os.fchown(fd, -1, self._user.gid)
                    os.fchmod(fd, 0o620)
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        return JobStreams(*opened)

    def share_streams(self, outputs: Mapping[Stream, int], *, merge_stderr: bool) -> JobStreams | None:
        """Make streams for a later step, which reads nothing, of the descriptors of the job's outputs.

        None when one is missing.
        """
        stdout, stderr = outputs.get(Stream.STDOUT), outputs.get(Stream.STDOUT if merge_stderr else Stream.STDERR)
        if stdout is None or stderr is None:
            return None
        opened: list[int] = []
        try:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            opened.append(os.dup(stdout))
            opened.append(opened[1] if merge_stderr else os.dup(stderr))
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        return JobStreams(*opened)

    def open_output(self, job_id: str, stream: Stream) -> int | None:
        """Open what a job writes to that runs already, to drop parts of it; for the caller to close.

        None when it can't be opened, or need not be this job's: it may have put a
        link to somebody else's file in its place, and we may be allowed more than it.
        """
        try:
            with self._entered(job_id) as directory:
                fd = os.open(stream, os.O_WRONLY | os.O_APPEND | _CAREFULLY, dir_fd=directory)
        except OSError:
            return None
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid():
            os.set_blocking(fd, True)  # it may become the stream of another step
            return fd
        os.close(fd)
        return None

    def close(self, job_id: str) -> None:
        """Close the directory of an ended job to other jobs of the same user."""
        if self._user is not None:
            with suppress(FileNotFoundError):
                os.chmod(self.path(job_id), 0o700)

    def was_started(self, job_id: str) -> bool:
        """Tell whether a process may ever have been made for this job."""
        try:
            with self._entered(job_id) as directory:
                # Each of them, because a job may have removed the other.
                return _is_there("stdout", directory) or _is_there("process.json", directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in NOT_THERE:
                return True  # something else is in its place, which only a job can have put there
            raise

    def record_process(self, job_id: str, record: ProcessRecord) -> None:
        """Write down who the process is, for an executor that takes over.

        After a crash it is there as a whole, or what was there before, or (the first) the file is empty.
        """
        self._write_process(job_id, record._asdict())

    def mark_step(self, job_id: str, mark: StepMark) -> None:
        """Write down that a process is about to be made for a later step."""
        self._write_process(job_id, mark._asdict())

    def _write_process(self, job_id: str, members: dict[str, Any]) -> None:
        content = json.dumps(members).encode()
        with self._entered(job_id) as directory:
            try:
                _write_new("process.json", content, 0o600, directory)
            except FileExistsError:
                with suppress(FileNotFoundError):
                    os.unlink("process.json.new", dir_fd=directory)
                _write_new("process.json.new", content, 0o600, directory)
                os.rename("process.json.new", "process.json", src_dir_fd=directory, dst_dir_fd=directory)

    def load_process(self, job_id: str) -> ProcessRecord | None:
        """Return who the process is, or None when that was never written down."""
        try:
            return ProcessRecord(**self._load_process(job_id))
        except TypeError:
            return None  # a mark

    def load_mark(self, job_id: str) -> StepMark | None:
        """Return for which step a process was made, or may have been; None when that is not written down."""
        members = self._load_process(job_id)
        return StepMark(members.get("step", 0), members["boot_id"]) if "boot_id" in members else None

    def _load_process(self, job_id: str) -> dict[str, Any]:
        with self._open_file(job_id, "process.json") as file:
            content = file.read(_RECORD_MOST)
        try:
            members = json.loads(content.decode())
        except (ValueError, RecursionError):
            return {}  # the machine, or the disk, has failed in the middle
        # Or the job has written it: no job is process 1, and a signal to its group would go to everybody.
        types = {"pid": int, "start_ticks": int, "boot_id": str, "step": int}
        if not isinstance(members, dict) or any(type(value) is not types.get(key) for key, value in members.items()):
            return {}
        return members if members.get("pid", 2) > 1 else {}

    def open_outcome(self, job_id: str, step: int) -> int:
        """Make the file that tells how a step's process in its sandbox has ended; for the caller to close."""
        with self._entered(job_id) as directory:
            return os.open(_outcome_name(step), _NEW_STREAM, 0o600, dir_fd=directory)

    def read_outcome(self, job_id: str, step: int) -> bytes | None:
        """Return what that file says so far; None when there is none."""
        file = self._find_file(job_id, _outcome_name(step))
        if file is None:
            return None
        with file:
            return file.read(_OUTCOME_MOST)

    def size(self, job_id: str, stream: Stream) -> int:
        """Return the length of a stream so far; 0 when there is none (any more: see `open_stream_file`)."""
        try:
            with self._entered(job_id) as directory:
                status = os.stat(stream, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in _GONE:
                return 0
            raise
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def open_stream_file(self, job_id: str, stream: Stream) -> BinaryIO:
        """Open a stream for reading, for the caller to close; an empty file when there is none.

        There is none any more when the job has put something else in its place:
        a symbolic link would show another file, a FIFO would block its reader.
        """
        return self._open_file(job_id, stream)

    def find_stream_file(self, job_id: str, stream: Stream) -> BinaryIO | None:
        """Open a stream for reading, for the caller to close; None when there is none (yet)."""
        return self._find_file(job_id, stream)

    @contextmanager
    def _entered(self, job_id: str) -> Iterator[int]:
        """Hold on to the directory of a job: it may put a link to another in its place.

        Raises:
            OSError: there is none, or something else is there; see `NOT_THERE`.
        """
        fd = os.open(self.path(job_id), STEP)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_file(self, job_id: str, name: str) -> BinaryIO:
        return self._find_file(job_id, name) or open(os.devnull, "rb", buffering=0)

    def _find_file(self, job_id: str, name: str) -> BinaryIO | None:
        """Open a file of a job's directory for reading; None when there is no such regular file."""
        try:
            with self._entered(job_id) as directory:
                fd = os.open(name, os.O_RDONLY | _CAREFULLY, dir_fd=directory)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return open(fd, "rb", buffering=0)
        os.close(fd)
        return None

    def disk_bytes(self, job_id: str) -> int:
        """Return the disk blocks that the directory holds, in bytes, without what the job does not keep."""
        return disk_bytes(self.path(job_id), besides=None if self.keeps_scratch else "scratch")

    def list_files(self, job_id: str) -> Listing:
        """List what is in the scratch directory of a job; nothing when there is none."""
        try:
            with self._entered(job_id) as directory:
                return list_tree(f"/proc/self/fd/{directory}/scratch")
        except OSError as error:
            if error.errno in NOT_THERE:
                return Listing()
            raise

    def open_file(self, job_id: str, path: bytes) -> BinaryIO:
        """Open a regular file in the scratch directory of a job, for the caller to close.

        Args:
            job_id: whose.
            path: from the scratch directory; anybody's bytes.

        Raises:
            FileNotFoundError: there is no such file.
            PermissionError: it may not be read, or is not the job's.
        """
        owner = self._user.uid if self._user is not None else None
        try:
            with self._entered(job_id) as directory:
                return open_beneath(f"/proc/self/fd/{directory}/scratch", path, owner=owner)
        except OSError as error:
            if error.errno in NOT_THERE:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            raise

    def has_scratch(self, job_id: str) -> bool:
        """Tell whether there is a scratch directory, or something in its place."""
        try:
            with self._entered(job_id) as directory:
                return _is_there("scratch", directory)
        except OSError as error:
            if error.errno in NOT_THERE:
                return False
            raise

    def clear_away(self, job_id: str) -> None:
        """Remove what an ended job does not keep, if it is there."""
        if self.keeps_scratch:
            return
        try:
            with self._entered(job_id) as directory:
                os.chmod(f"/proc/self/fd/{directory}", 0o700)  # the job may have closed it
                remove_tree("scratch", within=directory)
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise

    def remove(self, job_id: str) -> None:
        """Remove the directory of a job, if there is one."""
        remove_tree(self.path(job_id))

    def list_directories(self, *, on_error: Callable[[OSError], None]) -> Iterator[tuple[str, float]]:
        """Name every job's directory: its id, and when it was last changed (seconds since 1970).

        What is not one of ours, somebody else has put there.

        Args:
            on_error: is told of a directory that can't be looked into; the others are named all the same.
        """
        for shelf in scan(self._root):
            try:
                entries = list(scan(shelf.path))
            except OSError as error:
                on_error(error)
                continue
            for entry in entries:
                is_ours = entry.name[-2:] == shelf.name and isinstance(parse_job_reference(entry.name), str)
                with suppress(FileNotFoundError):
                    if is_ours and entry.is_dir(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False).st_mtime


def let_through(path: str | Path) -> None:
    """Let everybody go through a directory to what they know the name of; that does not let them list it."""
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o011)  # noqa: S103 that is what it is for


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # only a job can have closed its directory
    return True


_GONE = {*NOT_THERE, errno.EACCES}
"""What the system says of a file that a job has replaced or closed: that must not keep others from being listed."""

_CAREFULLY = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a file is opened that may be anything by now: to open a FIFO waits for somebody at its other end."""

_RECORD_MOST = 1024
"""Bytes of a `ProcessRecord` that are read: a job can make a file of any length."""

_OUTCOME_MOST = 8192
"""Bytes of an outcome that are read: the longest path, and some more."""

_NEW_STREAM = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


def _outcome_name(step: int) -> str:
    return f"outcome.{step}" if step else "outcome"


def _source_path(path: str, name: str) -> str:
    return f"{path}/source.{name}" if name else f"{path}/source"


def _write_new(path: str, content: bytes, mode: int, within: int | None = None) -> None:
    """Write a file that must not be there; its mode does not depend on the umask."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=within)
    with open(fd, "wb", buffering=0) as file:
        if mode & 0o077:
            os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
