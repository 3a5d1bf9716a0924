"""The directories of jobs: in one module, since nobody else makes a path below ``DATA/jobs``.

::

    DATA/jobs/3f/0192f0c4-…-2f6f1f0f3c3f/     made when the job starts
        stdout, stderr                        what the job wrote, byte for byte
        stdin, source, source.1 …             what came with the submission, if anything did
        result                                what it has left in the file that its `JobSpec` calls so
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
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from jobrunner.domain.ids import parse_job_reference
from jobrunner.domain.spec import Input, InputKind, source_name
from jobrunner.domain.streams import Stream
from jobrunner.scratch import NOT_THERE, Listing, list_tree, open_beneath
from jobrunner.spool.opening import ANEW, GONE, enter, find_file, is_there, open_file, write_new
from jobrunner.spool.records import FILE_NAME, ProcessRecord, StepMark, read_record, write_record
from jobrunner.spool.streams import JobStreams, make_streams, reopen_output
from jobrunner.trees import disk_bytes, remove_tree, scan
from jobrunner.users import User


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
                write_new(f"{path}/scratch/{given.name}", given.content, 0o644)
            elif given.kind is InputKind.SOURCE:
                write_new(_source_path(path, given.name), given.content, 0o755)
            else:
                write_new(f"{path}/stdin", given.content, 0o600)
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
        return make_streams(self.path(job_id), stdin=stdin, merge_stderr=merge_stderr, user=self._user)

    def open_output(self, job_id: str, stream: Stream) -> int | None:
        """Open what a job writes to that runs already, to drop parts of it; for the caller to close.

        None when it can't be opened, or need not be this job's: it may have put a
        link to somebody else's file in its place, and we may be allowed more than it.
        """
        return reopen_output(self.path(job_id), stream)

    def close(self, job_id: str) -> None:
        """Close the directory of an ended job to other jobs of the same user."""
        if self._user is not None:
            with suppress(FileNotFoundError):
                os.chmod(self.path(job_id), 0o700)

    def was_started(self, job_id: str) -> bool:
        """Tell whether a process may ever have been made for this job."""
        try:
            with enter(self.path(job_id)) as directory:
                # Each of them, because a job may have removed the other.
                return is_there("stdout", directory) or is_there(FILE_NAME, directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in NOT_THERE:
                return True  # something else is in its place, which only a job can have put there
            raise

    def has_process(self, job_id: str) -> bool:
        """Tell whether a process was made for this job, though on a full disk it is not written down which."""
        return os.path.lexists(f"{self.path(job_id)}/process.json")

    def record_process(self, job_id: str, record: ProcessRecord) -> None:
        """Write down who the process is, for an executor that takes over."""
        with enter(self.path(job_id)) as directory:
            write_record(directory, record)

    def mark_step(self, job_id: str, mark: StepMark) -> None:
        """Write down that a process is about to be made for a later step."""
        with enter(self.path(job_id)) as directory:
            write_record(directory, mark)

    def load_process(self, job_id: str) -> ProcessRecord | None:
        """Return who the process is, or None when that was never written down."""
        record = self._load_record(job_id)
        return record if isinstance(record, ProcessRecord) else None

    def load_mark(self, job_id: str) -> StepMark | None:
        """Return for which step a process was made, or may have been; None when that is not written down."""
        record = self._load_record(job_id)
        return StepMark(record.step, record.boot_id) if record is not None else None

    def _load_record(self, job_id: str) -> ProcessRecord | StepMark | None:
        with open_file(self.path(job_id), FILE_NAME) as file:
            return read_record(file)

    def open_outcome(self, job_id: str, step: int) -> int:
        """Make the file that tells how a step's process in its sandbox has ended; for the caller to close."""
        with enter(self.path(job_id)) as directory:
            return os.open(_outcome_name(step), ANEW | os.O_APPEND, 0o600, dir_fd=directory)

    def read_outcome(self, job_id: str, step: int) -> bytes | None:
        """Return what that file says so far; None when there is none."""
        file = find_file(self.path(job_id), _outcome_name(step))
        if file is None:
            return None
        with file:
            return file.read(_OUTCOME_MOST)

    def size(self, job_id: str, stream: Stream) -> int:
        """Return the length of a stream so far; 0 when there is none (any more: see `open_stream_file`)."""
        try:
            with enter(self.path(job_id)) as directory:
                status = os.stat(stream, dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno in GONE:
                return 0
            raise
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def open_stream_file(self, job_id: str, stream: Stream) -> BinaryIO:
        """Open a stream for reading, for the caller to close; an empty file when there is none.

        There is none any more when the job has put something else in its place:
        a symbolic link would show another file, a FIFO would block its reader.
        """
        return open_file(self.path(job_id), stream)

    def find_stream_file(self, job_id: str, stream: Stream) -> BinaryIO | None:
        """Open a stream for reading, for the caller to close; None when there is none (yet)."""
        return find_file(self.path(job_id), stream)

    def keep_result(self, job_id: str, name: str) -> None:
        """Move a file of the scratch directory to where it outlives that; if it is there, and whatever it is."""
        with suppress(FileNotFoundError, NotADirectoryError), enter(self.path(job_id)) as directory:
            scratch = os.open("scratch", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.rename(name, _RESULT, src_dir_fd=scratch, dst_dir_fd=directory)
            finally:
                os.close(scratch)

    def open_result(self, job_id: str) -> BinaryIO:
        """Open what `keep_result` has kept, for the caller to close; an empty file when there is none to be read.

        A file of somebody else is none: a job could have made a hard link to it.
        """
        file = open_file(self.path(job_id), _RESULT)
        if self._user is not None and os.fstat(file.fileno()).st_uid != self._user.uid:
            file.close()
            return open(os.devnull, "rb", buffering=0)
        return file

    def disk_bytes(self, job_id: str, *, without_scratch: bool = False) -> int:
        """Return the disk blocks that the directory holds, in bytes, without what the job does not keep."""
        return disk_bytes(self.path(job_id), besides="scratch" if without_scratch or not self.keeps_scratch else None)

    def list_files(self, job_id: str) -> Listing:
        """List what is in the scratch directory of a job; nothing when there is none."""
        try:
            with enter(self.path(job_id)) as directory:
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
            with enter(self.path(job_id)) as directory:
                return open_beneath(f"/proc/self/fd/{directory}/scratch", path, owner=owner)
        except OSError as error:
            if error.errno in NOT_THERE:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            raise

    def has_scratch(self, job_id: str) -> bool:
        """Tell whether there is a scratch directory, or something in its place."""
        try:
            with enter(self.path(job_id)) as directory:
                return is_there("scratch", directory)
        except OSError as error:
            if error.errno in NOT_THERE:
                return False
            raise

    def clear_away(self, job_id: str) -> None:
        """Remove what an ended job does not keep, if it is there."""
        if not self.keeps_scratch:
            self.drop_scratch(job_id)

    def drop_scratch(self, job_id: str) -> None:
        """Remove the scratch directory of an ended job, if it is there."""
        try:
            with enter(self.path(job_id)) as directory:
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


_OUTCOME_MOST = 8192
"""Bytes of an outcome that are read: the longest path, and some more."""


_RESULT = "result"


def _outcome_name(step: int) -> str:
    return f"outcome.{step}" if step else "outcome"


def _source_path(path: str, name: str) -> str:
    return f"{path}/source.{name}" if name else f"{path}/source"
