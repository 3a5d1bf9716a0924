"""Why a job could not be started, as the system calls it: originals tell that in their own words."""

import errno
import os

from jobrunner.domain.job import JobError

_BY_WORDS = {os.strerror(number): number for number in sorted(errno.errorcode, reverse=True)}


def find_errno(error: JobError) -> int | None:
    """Return the system's number of what went wrong; None: it was nothing of the system's.

    The detail begins with the system's words; what follows is the file.
    """
    words = error.detail.partition(":")[0]
    return _BY_WORDS.get(words)
