"""Keeps signals for a process that is about to be forked until it can hear them."""

import os
import signal

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


class ForkGuard:
    """Keeps signals for later, from the fork of a worker until its handlers are there.

    One that is told to stop before would never hear of it, and the master
    would wait for it in vain.
    """

    def __init__(self) -> None:
        self._is_due = False
        self._mask: set[int] = set()
        os.register_at_fork(before=self._block, after_in_parent=self.restore)

    def expect(self) -> None:
        """Guard the next fork: it makes a worker of ours."""
        self._is_due = True

    def _block(self) -> None:
        if self._is_due:
            self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS))

    def restore(self) -> None:
        """Hear signals again as before, those too that came meanwhile."""
        if self._is_due:
            self._is_due = False
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
