"""Why a job could not be started, as the system calls it: originals tell that in their own words."""

import errno
import os

from jobrunner.domain.job import ErrorCode, Job, JobError

STARTED = frozenset({ErrorCode.WORKER_LOST, ErrorCode.HOST_REBOOTED, ErrorCode.OUTPUT_LIMIT})
"""What goes wrong only around a process that there was."""

_BY_WORDS = {os.strerror(number): number for number in sorted(errno.errorcode, reverse=True)}


def find_errno(error: JobError) -> int | None:
    """Return the system's number of what went wrong; None: it was nothing of the system's.

    The detail begins with the system's words; what follows is the file.
    """
    words = error.detail.partition(":")[0]
    return _BY_WORDS.get(words)


def has_run(job: Job) -> bool:
    """Tell whether a job that has ended ever had a process."""
    return job.status is not None or (job.error is not None and job.error.code in STARTED)
