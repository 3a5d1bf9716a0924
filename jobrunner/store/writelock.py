"""The queue of writers."""

import fcntl
import os
import threading
from pathlib import Path

from jobrunner.store.translation import translate


class WriteLock:
    """One writer at a time: among the threads of this process, then among processes.

    ``flock`` belongs to the open file, so the kernel frees it when a process
    dies, and a thread needs the inner lock before it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread_lock = threading.Lock()
        self._fd: int | None = None

    def __enter__(self) -> None:
        self._thread_lock.acquire()
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            self._thread_lock.release()
            raise translate(error) from error
        except BaseException:
            self._thread_lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        assert self._fd is not None
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._thread_lock.release()

    def close(self) -> None:
        """Close the file; the object can be used again, also after a fork."""
        with self._thread_lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
