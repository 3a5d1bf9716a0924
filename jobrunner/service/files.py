"""The use cases of a job's files: what it has in its scratch directory."""

import os
from dataclasses import dataclass
from typing import BinaryIO

from jobrunner.clock import Now
from jobrunner.domain.access import Caller, Scope
from jobrunner.domain.errors import FileNotInJob
from jobrunner.domain.job import Job
from jobrunner.scratch import Listing
from jobrunner.service.access import Access
from jobrunner.spool import Spool
from jobrunner.store.engine import Database

SETTLED_SECONDS = 2.0
"""After so long a change of a file shows in its times, however coarse the clock of its file system is."""


@dataclass(frozen=True, slots=True)
class JobFile:
    """A file of a job, open for reading; whoever has it closes it.

    Attributes:
        name: without the directories that it is in.
        bytes: its length when it was opened; a running job may write on.
        version: changes with the content; None when the file was changed a moment ago, and may be so again unseen.
    """

    file: BinaryIO
    name: bytes
    bytes: int
    version: str | None


class FileService:
    """What can be seen of the files of jobs. One object serves all threads of a process."""

    def __init__(self, database: Database, spool: Spool, access: Access, now: Now) -> None:
        self._database = database
        self._spool = spool
        self._access = access
        self._now = now

    def list(self, reference: str, caller: Caller) -> tuple[Job, Listing]:
        """Return the job, and what is in its scratch directory by now; nothing if it has none yet, or no more.

        Raises:
            JobNotFound: there is none to see.
            Forbidden: the caller's token may not read.
            OSError: the storage refuses.
        """
        job = self._find(reference, caller)
        return job, self._spool.list_files(job.id)

    def open(self, reference: str, caller: Caller, path: bytes) -> JobFile:
        """Open a file of a job, as it is now.

        Args:
            reference: which job.
            caller: who is asking.
            path: from the scratch directory; anybody's bytes.

        Raises:
            JobNotFound: there is none to see.
            Forbidden: the caller's token may not read.
            FileNotInJob: there is no such regular file, or the way to it leads through a link.
            OSError: the storage refuses.
        """
        job = self._find(reference, caller)
        try:
            file = self._spool.open_file(job.id, path)
        except FileNotFoundError:
            raise FileNotInJob("the job's directory has no such file; only regular files are sent") from None
        except PermissionError as error:
            raise FileNotInJob(f"the job has closed this file: {error.strerror}") from error
        status = os.fstat(file.fileno())
        # Of all the times this is the one that a job can't set.
        is_settled = self._now().timestamp() - status.st_ctime >= SETTLED_SECONDS
        version = f"{status.st_ino:x}-{status.st_ctime_ns:x}-{status.st_size:x}" if is_settled else None
        return JobFile(file, path.rpartition(b"/")[2], status.st_size, version)

    def _find(self, reference: str, caller: Caller) -> Job:
        with self._database.read() as connection:
            return self._access.job_for(connection, reference, caller, Scope.READ)
