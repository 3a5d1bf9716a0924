"""The work of a data directory: whoever has its lock runs the jobs, and sends their callbacks."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from jobrunner.callbacks.delivery import Deliverer
from jobrunner.executor.pool import Executor
from jobrunner.locks import FileLock

logger = logging.getLogger("jobrunner")


def _do_nothing() -> None:
    pass


class Work:
    """An executor, and who sends the callbacks of its jobs.

    Args:
        executor: runs jobs.
        deliverer: sends callbacks.
        lock: the file whose lock both need.
    """

    def __init__(self, executor: Executor, deliverer: Deliverer, lock: Path) -> None:
        self._executor = executor
        self._deliverer = deliverer
        self._lock = lock

    def run(
        self,
        *,
        on_standby: Callable[[], None] = _do_nothing,
        on_ready: Callable[[], None] = _do_nothing,
        until_drained: bool = False,
    ) -> bool:
        """Wait for the lock, then work until `stop`, or until all jobs are done in a drain.

        Args:
            on_standby: called when another has the lock.
            on_ready: called when the jobs of executors before this one are watched again.
            until_drained: whether to return once the last job of a drain has ended.

        Returns:
            Whether it ended because of a drain.
        """

        def begin() -> None:
            self._deliverer.start()
            on_ready()

        try:
            self._executor.run(FileLock(self._lock), on_standby=on_standby, on_ready=begin, until_drained=until_drained)
        finally:
            # After the lock is free: the jobs are watched by the next one
            # meanwhile, and what is being sent has a lease.
            self._deliverer.stop(work_off=self._executor.is_drained)
        return self._executor.is_drained

    def stop(self, *, leave_jobs: bool = False) -> None:
        """Have `run` return. May be called by a signal handler; see `Executor.stop`."""
        self._executor.stop(leave_jobs=leave_jobs)


class EmbeddedWork:
    """The work inside a web worker, for a server that was not started by ``jobrunner serve``.

    Every worker has one; that which gets the lock does it. When it dies, the
    kernel frees the lock, and another takes over.
    """

    def __init__(self, make: Callable[[], Work]) -> None:
        self._make = make
        self._started_in: int | None = None
        self._stopping = threading.Event()
        self._work: Work | None = None
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()

    def ensure_started(self) -> None:
        """Start the thread, once in each process: a fork does not take threads along."""
        if self._started_in == os.getpid():
            return
        with self._guard:
            if self._started_in != os.getpid():
                self._started_in = os.getpid()
                self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Give the jobs up, to whoever takes the lock next, and return when that is done."""
        self._stopping.set()
        if self._work is not None:
            self._work.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            work = self._work = self._make()
            if not self._stopping.is_set():
                work.run()
        except Exception:
            logger.exception("the executor has failed; this worker ends, so that another takes over")
            os.kill(os.getpid(), signal.SIGTERM)
