"""``jobrunner serve``: the parent of the executor and of gunicorn. Starts both, ends both.

It knows neither Flask nor the database, so that it stays small and has little
to fail with.
"""

import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

logger = logging.getLogger("jobrunner.supervisor")

CHILDREN = {"executor": "executor", "web": "web"}
"""Name in the log → (hidden) command of ``jobrunner``."""

_STOP = {signal.SIGTERM, signal.SIGINT}


class Supervisor:
    """Runs the children until it is told to stop, or until one of them ends.

    Args:
        environ: the environment of the children.
        patience: seconds that they may take to stop before they are killed.
    """

    def __init__(self, environ: Mapping[str, str], *, patience: float) -> None:
        self._environ = environ
        self._patience = patience
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._kill_at: float | None = None
        self._failed = False

    def run(self) -> int:
        """Run to the end; return the exit code of the service: 0 when it was told to stop."""
        inbox, outbox = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A handler must be there for a signal to be written to the descriptor;
        # all it means is decided in the loop.
        signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
        for number in (*_STOP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for name, command in CHILDREN.items():
            self._children[name] = subprocess.Popen([sys.executable, "-m", "jobrunner", command], env=self._environ)
        while self._children:
            self._turn(_wait_for_signals(inbox, self._pause()))
        # Python gives handlers back to the default while it shuts down: one
        # more SIGTERM must not change the exit code then.
        for number in _STOP:
            signal.signal(number, signal.SIG_IGN)
        return 1 if self._failed else 0

    def _turn(self, signals: set[int]) -> None:
        if signals & _STOP and self._kill_at is None:
            logger.info("stopping")
            self._stop()
        for name, code in self._reap():
            if self._kill_at is None:
                logger.error("the %s process has ended with %d; stopping", name, code)
                self._failed = True
                self._stop()
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._send(signal.SIGKILL)
            self._kill_at = float("inf")

    def _pause(self) -> float | None:
        if self._kill_at is None or self._kill_at == float("inf"):
            return None
        return max(self._kill_at - time.monotonic(), 0)

    def _stop(self) -> None:
        self._send(signal.SIGTERM)
        self._kill_at = time.monotonic() + self._patience

    def _send(self, number: int) -> None:
        for child in self._children.values():
            child.send_signal(number)

    def _reap(self) -> list[tuple[str, int]]:
        """Return the children that have ended, and their exit codes."""
        ended = [(name, child.returncode) for name, child in self._children.items() if child.poll() is not None]
        for name, _ in ended:
            del self._children[name]
        return ended


def _wait_for_signals(inbox: int, seconds: float | None) -> set[int]:
    select.select([inbox], [], [], seconds)
    try:
        return set(os.read(inbox, 4096))
    except BlockingIOError:
        return set()
