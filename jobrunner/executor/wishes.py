"""What other threads want of a run: that the job ends, gets a signal, or is given up."""

import os
import select
import threading

from jobrunner.domain.job import CancelRequest


class Wishes:
    """Any thread may say what it wants, which wakes the job's own; that one alone takes note of it.

    Args:
        cancel: what somebody wanted before.

    Raises:
        OSError: no descriptor is to be had.
    """

    def __init__(self, cancel: CancelRequest | None) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._accepted: CancelRequest | None = None
        self._wanted = cancel
        self._to_send: list[int] = []
        self.is_given_up = False
        self._closed = False
        self._closing = threading.Lock()

    # ── from other threads ──

    def cancel(self, request: CancelRequest) -> None:
        """Want the job to end. The same request twice changes nothing."""
        self._wanted = request
        self.notify()

    def send(self, number: int) -> None:
        """Want a signal sent."""
        self._to_send.append(number)
        self.notify()

    def give_up(self) -> None:
        """Want the job left alone."""
        self.is_given_up = True
        self.notify()

    def notify(self) -> None:
        """Have the job's own thread look around."""
        # Who looked this run up may come after its end, when the descriptor's
        # number is another's already.
        with self._closing:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    # ── on the job's own thread ──

    def wait(self, seconds: float, pidfd: int | None = None) -> None:
        """Sleep until somebody wants something, or a process has ended."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if pidfd is not None:
            poll.register(pidfd, select.POLLIN)
        if any(fd == self._wake for fd, _ in poll.poll(seconds * 1000)):
            os.eventfd_read(self._wake)

    def new_request(self) -> CancelRequest | None:
        """Return how somebody wants the job to end that was not looked at yet."""
        if self._wanted == self._accepted:
            return None
        self._accepted = self._wanted
        return self._accepted

    def take_signals(self) -> list[int]:
        """Return the signals that are to be sent, in their order."""
        taken = []
        while self._to_send:
            taken.append(self._to_send.pop(0))
        return taken

    def close(self) -> None:
        """Give the descriptor back; what is wanted from now on comes too late."""
        with self._closing:
            self._closed = True
            os.close(self._wake)
