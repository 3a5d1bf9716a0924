"""How many jobs may run at a time, and the threads that watch them."""

import logging
import queue
import resource
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("jobrunner.executor")

_DESCRIPTORS = 64
"""What the executor itself needs, amply."""

_DESCRIPTORS_OF_JOB = 8
"""Four while a job runs, and some more while it starts."""


class Slots:
    """Counts how many jobs may run at a time. A slot is taken before a job is claimed.

    It also keeps in mind whether more may wait in the queue than there are
    slots: then a slot goes on to the next job instead of being given back.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken = 0
        self._more = False
        self._lock = threading.Lock()

    def take_free(self) -> int:
        """Take all that are free; return how many."""
        with self._lock:
            free = max(self.size - self._taken, 0)
            self._taken += free
            self._more = True
            return free

    def take_one_more(self) -> None:
        """Take one for a job that runs already, whether one is free or not."""
        with self._lock:
            self._taken += 1

    def give_unused(self, count: int) -> None:
        """Give back what was taken and no job was found for."""
        with self._lock:
            self._taken -= count

    def queue_is_empty(self) -> None:
        """Note that nothing waits. Only for the thread that hears of new jobs: it then looks again."""
        with self._lock:
            self._more = False

    def may_go_on(self) -> bool:
        """Tell whether a slot should try to claim the next job before it is given back.

        Not when more jobs run than there are slots (adopted, after ``max_running`` was lowered).
        """
        with self._lock:
            return self._more and self._taken <= self.size

    def give(self) -> bool:
        """Give one back; return whether the queue should be looked at again.

        A job may have come between the look of this slot and now, when
        another saw no slot free.
        """
        with self._lock:
            self._taken -= 1
            return self._more and self._taken < self.size


class Threads:
    """Threads that are started when none is idle, and used again.

    ``on_idle`` is called on the thread when it can be used again.

    They are daemons: a job must not keep a process from ending whose executor
    was not stopped in order. Nothing is lost then, another adopts the job.
    """

    def __init__(self, on_idle: Callable[[], None]) -> None:
        self._on_idle = on_idle
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[], None]) -> None:
        """Have a thread do this."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                thread = threading.Thread(target=self._loop, name=f"job-{len(self._threads)}", daemon=True)
                thread.start()
                self._threads.append(thread)
        self._work.put(work)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                logger.exception("a thread of the executor has failed")
            with self._lock:
                self._idle += 1
            self._on_idle()

    def close(self) -> None:
        """Have the threads end when everything is done."""
        for _ in self._threads:
            self._work.put(None)

    def join(self, seconds: float) -> bool:
        """Wait for all threads to end, at most so long; return whether they have."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)


def make_room(slots: int) -> int:
    """Raise the soft limit of open descriptors for so many slots; return how many fit under the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS + slots * _DESCRIPTORS_OF_JOB
    if hard != resource.RLIM_INFINITY and wanted > hard:
        fitting = max((hard - _DESCRIPTORS) // _DESCRIPTORS_OF_JOB, 1)
        logger.warning("only %d of %d jobs at a time: the hard limit of open files is %d", fitting, slots, hard)
        slots, wanted = min(slots, fitting), hard
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return slots
