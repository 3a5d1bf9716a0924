"""Ctrl-C and its like, while a job runs in the foreground: they are for the job."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Self

from jobrunner.cli.ending import CANCELED
from jobrunner.cli.terminal import StatusLine
from jobrunner.client import Client
from jobrunner.client.patience import passes
from jobrunner.domain.errors import JobrunnerError
from jobrunner.domain.exitstatus import signal_name

_LOOK = 0.1
"""Seconds between two looks whether the submission was answered."""

_PAUSE = 1.0
"""Seconds between two tries to reach the service."""


class Interrupted(Exception):
    """A signal has come before there was a job."""


class Interrupts:
    """Turns signals to this process into wishes that the job should end.

    The first is sent to the job, which has its grace period then; the second
    kills it; the third leaves it. They are blocked, and taken in one by one by
    a thread: nothing else is interrupted, least of all a write.
    """

    def __init__(self, client: Client, line: StatusLine) -> None:
        """Take the place of the handlers there are.

        Args:
            client: for nobody else.
            line: to say what is being done.
        """
        self._client = client
        self._line = line
        self._signals = {
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # nohup, or a shell's background
        }
        self._came = threading.Event()
        self._job: str | None = None

    @property
    def came(self) -> bool:
        """Whether somebody has tried to end it."""
        return self._came.is_set()

    def __enter__(self) -> Self:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        threading.Thread(target=self._serve, name="interrupts", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave signals blocked: the process is about to exit, with the code of the job."""

    def pause(self, seconds: float) -> None:
        """Wait a while, before there is a job.

        Raises:
            Interrupted: a signal has come.
        """
        if self._came.wait(seconds):
            raise Interrupted

    def send_to(self, job: str) -> None:
        """Name the job; it gets what has come before, too."""
        self._job = job

    def _serve(self) -> None:
        first = signal.sigwait(self._signals)
        self._came.set()
        self._line.say("canceling; once more kills it")
        while self._job is None:
            if self._next(_LOOK):
                self._leave("it is not known whether the job was submitted")
        job = self._job
        if not self._insist(lambda: self._client.cancel(job, signal=signal_name(first))):
            signal.sigwait(self._signals)
        self._line.say("killing; once more leaves it")
        if not self._insist(lambda: self._client.cancel(job, grace=0)):
            signal.sigwait(self._signals)
        self._leave(f"left; see what becomes of it: jobrunner status {job}")

    def _insist(self, ask: Callable[[], object]) -> bool:
        """Ask the service, over and over if it is away. True: meanwhile the next signal has come."""
        while True:
            try:
                ask()
            except JobrunnerError as error:
                if not passes(error):
                    self._line.tell(str(error))
                    return False
                if self._next(_PAUSE):
                    return True
            else:
                return False

    def _next(self, seconds: float) -> bool:
        return signal.sigtimedwait(self._signals, seconds) is not None

    def _leave(self, words: str) -> None:
        self._line.tell(words)
        os._exit(CANCELED)
