"""``process.json``: which process runs a job, for an executor that takes over."""

import json
import os
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from jobrunner.spool.opening import write_new

FILE_NAME = "process.json"

_NEXT_NAME = "process.json.new"

_MOST = 1024
"""Bytes that are read: a job can make a file of any length."""


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


def write_record(directory: int, record: ProcessRecord | StepMark) -> None:
    """Write the file, or what takes its place.

    After a crash it is there as a whole, or what was there before, or (the first) the file is empty.
    """
    content = json.dumps(record._asdict()).encode()
    try:
        write_new(FILE_NAME, content, 0o600, directory)
    except FileExistsError:
        with suppress(FileNotFoundError):
            os.unlink(_NEXT_NAME, dir_fd=directory)
        write_new(_NEXT_NAME, content, 0o600, directory)
        os.rename(_NEXT_NAME, FILE_NAME, src_dir_fd=directory, dst_dir_fd=directory)


def read_record(file: BinaryIO) -> ProcessRecord | StepMark | None:
    """Return what the file says; None when that can't be what `write_record` wrote."""
    content = file.read(_MOST)
    try:
        members = json.loads(content.decode())
    except (ValueError, RecursionError):
        return None  # the machine, or the disk, has failed in the middle
    # Or the job has written it: no job is process 1, and a signal to its group would go to everybody.
    types = {"pid": int, "start_ticks": int, "boot_id": str, "step": int}
    if not isinstance(members, dict) or any(type(value) is not types.get(key) for key, value in members.items()):
        return None
    if members.get("pid", 2) <= 1:
        return None
    try:
        return ProcessRecord(**members)
    except TypeError:
        return StepMark(members.get("step", 0), members["boot_id"]) if "boot_id" in members else None
