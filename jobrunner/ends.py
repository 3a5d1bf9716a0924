"""How orphaned jobs ended: written by the supervisor, who reaps them, and read by the executor, who adopted them."""

import logging
import os
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jobrunner.domain.spec import COOKIE, STEP_COOKIE
from jobrunner.proc import boot_id, list_children, read_command_line, read_environ, read_stat

logger = logging.getLogger("jobrunner.supervisor")

MOST_BYTES = 1 << 20
"""The file is cut to its newer half when it gets longer: some 15,000 jobs."""

IDENTIFY_SECONDS = 0.3
"""How long to wait for processes that an executor was making when it died; nothing else is done meanwhile."""


class End(NamedTuple):
    """One process that has ended.

    Attributes:
        pid, start_ticks: who it was, see `jobrunner.proc`.
        wait_status: as of waitpid(2).
    """

    pid: int
    start_ticks: int
    wait_status: int


class Orphan(NamedTuple):
    """A process that leads the session of a job's step, and has lost its executor.

    Attributes:
        pid, start_ticks: who it is.
        step: the id of the job, and behind a slash the index of the step if it is not the first.
    """

    pid: int
    start_ticks: int
    step: str


def _step_word(job_id: str, step: int) -> str:
    """Name a step of a job in a line of the file."""
    return f"{job_id}/{step}" if step else job_id


class EndsFile:
    """A text file of one line an end, or an orphan. One process writes, any may read.

    Each line is one write, made before the process is reaped: whoever finds a
    process gone finds its line.
    """

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes

    def append(self, what: End | Orphan) -> None:
        """Add a line.

        Raises:
            OSError: it can't be written.
        """
        line = " ".join(map(str, (*what, boot_id()))).encode() + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, line)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        if size > self._most_bytes:
            self._cut()

    def find(self, pid: int, start_ticks: int) -> int | None:
        """Return the wait status of a process of this boot; None when nothing is known of it."""
        for found_pid, found_ticks, found in self._read():
            if (found_pid, found_ticks) == (pid, start_ticks) and found.isdecimal():
                return int(found)
        return None

    def find_orphan(self, job_id: str, step: int = 0) -> Orphan | None:
        """Return the process of a step of a job, of which its executor could not write a record any more."""
        wanted = _step_word(job_id, step)
        for pid, start_ticks, found in self._read():
            if found == wanted:
                return Orphan(pid, start_ticks, found)
        return None

    def _read(self) -> Iterator[tuple[int, int, str]]:
        try:
            lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return
        boot = boot_id()
        for line in lines:
            fields = line.split()
            if len(fields) == 4 and fields[3] == boot and fields[0].isdecimal() and fields[1].isdecimal():
                yield int(fields[0]), int(fields[1]), fields[2]

    def _cut(self) -> None:
        content = self._path.read_bytes()
        newer = content[content.index(b"\n", len(content) // 2) + 1 :]
        new = self._path.with_name(f"{self._path.name}.new")
        new.write_bytes(newer)
        new.chmod(0o600)
        new.rename(self._path)


class Registrar:
    """Writes down what becomes of our children that were an executor's before."""

    def __init__(self, file: EndsFile) -> None:
        self._file = file

    def record_end(self, info: os.waitid_result) -> None:
        """Write down how one has ended that was not reaped yet."""
        stat = read_stat(info.si_pid)
        if stat is None or stat.session != info.si_pid:
            return  # only the leader of a session can be a job
        status = info.si_status << 8 if info.si_code == os.CLD_EXITED else info.si_status
        self._append(End(info.si_pid, stat.start_ticks, status))

    def record_orphans(self, *, but: Container[int], executor: Sequence[str]) -> None:
        """Write down whose the jobs are that have become our children, as long as their environment tells.

        The executor may have died before it could write down the last ones itself.

        Args:
            but: those that are ours from the start.
            executor: its command line.
        """
        deadline = time.monotonic() + IDENTIFY_SECONDS
        adopted = [pid for pid in list_children(os.getpid()) or () if pid not in but]
        while adopted := [pid for pid in adopted if not self._record_orphan(pid, executor)]:
            if time.monotonic() > deadline:
                logger.warning("process %d was about to run a job, and does not tell whose", adopted[0])
                return
            time.sleep(0.0005)  # it may be gone soon after it has begun

    def _record_orphan(self, pid: int, executor: Sequence[str]) -> bool:
        """Write one down if it runs a step; False: it can't be told yet."""
        # This is looked at before the environment: a process takes both when it executes a program. Until then it has
        # the executor's, and in the middle of that none.
        command_line = read_command_line(pid)
        stat = read_stat(pid)
        if stat is None or stat.is_zombie:
            return True
        if not command_line or command_line == list(executor):
            return False
        pairs = (variable.decode(errors="replace").partition("=") for variable in read_environ(pid))
        cookies = {name: value for name, _, value in pairs if name in {COOKIE, STEP_COOKIE}}
        step = cookies.get(STEP_COOKIE, "0")
        if stat.session == pid and COOKIE in cookies and step.isdecimal():
            self._append(Orphan(pid, stat.start_ticks, _step_word(cookies[COOKIE], int(step))))
        return True

    def _append(self, line: End | Orphan) -> None:
        try:
            self._file.append(line)
        except OSError as error:
            logger.warning("can't write down what became of process %d: %s", line.pid, error)
