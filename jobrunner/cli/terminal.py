"""Writing bytes as they are, and a line about the job that is on the terminal only as long as nothing else is written.

rich has no line that can step aside for another's bytes and wait until they
have ended their own line; hence this one.
"""

import os
import select
import stat
import sys
import threading
import time
from typing import Self

from jobrunner.domain.text import escape_controls

STDOUT, STDERR = 1, 2

_TICK = 1.0
"""Seconds between two looks of the line; a job that ends within the first is not disturbed by it."""

_ECHO = 0.2
"""Seconds that a program gets to write to the terminal what it has read."""

_ERASE = b"\r\x1b[K"


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes, all of them, at once; waits for whoever is to read them.

    Raises:
        BrokenPipeError: nobody reads.
        OSError: it can't be written.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # whom we share the other end with has set it so
            select.select([], [descriptor], [])


class StatusLine:
    """What becomes of a job, in the last line of stderr, if that is a terminal; else nothing.

    Where stdout is the same terminal, it is shown only while no output can come. Where stdout is a pipe, who reads
    it may write to the terminal as well (``| tee log``): it steps aside, and stays away from half a line.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="status-line", daemon=True)
        self._is_shown = _is_terminal(STDERR)
        self._shared = {fd for fd in (STDOUT, STDERR) if _is_terminal(fd)}
        self._is_piped = _is_pipe(STDOUT)
        self._free_at = 0.0  # when who reads the pipe has had time to write what it was given
        self._is_drawn = False
        self._at_begin_of_line = True
        self._began = time.monotonic()
        self._written = 0
        self._words = ""
        self._is_silent = True

    def __enter__(self) -> Self:
        if self._is_shown:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._erase()

    def say(self, words: str, *, is_silent: bool = True) -> None:
        """Say how it stands from now on.

        Args:
            words: a few.
            is_silent: whether no output can come meanwhile.
        """
        with self._lock:
            self._words, self._is_silent = words, is_silent
            if not self._may_show():
                self._erase()

    def write(self, descriptor: int, data: bytes) -> None:
        """Write output of the job.

        Raises:
            OSError: it can't be written.
        """
        self._written += len(data)
        if descriptor in self._shared:
            with self._lock:
                self._erase()
                write_all(descriptor, data)
                self._at_begin_of_line = data.endswith(b"\n")
        elif descriptor == STDOUT and self._is_piped:
            with self._lock:
                self._erase()
                self._at_begin_of_line = False
            write_all(descriptor, data)  # without the lock: it waits for whoever reads
            with self._lock:
                # What has zeros in it is for no terminal.
                self._at_begin_of_line = data.endswith(b"\n") or b"\0" in data
                self._free_at = time.monotonic() + _ECHO
        else:
            write_all(descriptor, data)

    def tell(self, text: str) -> None:
        """Write a line of our own to stderr."""
        with self._lock:
            self._erase()
            fresh = "" if self._at_begin_of_line or STDERR not in self._shared else "\n"
            self._at_begin_of_line = True
            self._try_to_write(f"{fresh}jobrunner: {escape_controls(text)}\n".encode(errors="replace"))

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            with self._lock:
                if self._may_show():
                    self._draw()

    def _may_show(self) -> bool:
        is_free = (
            self._at_begin_of_line
            and time.monotonic() >= self._free_at
            and (self._is_silent or STDOUT not in self._shared)
        )
        return self._is_shown and is_free and bool(self._words)

    def _draw(self) -> None:
        from rich.filesize import decimal

        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        text = f"jobrunner: {minutes}:{seconds:02} {escape_controls(self._words)}"
        if self._written:
            text += f", {decimal(self._written)}"
        try:
            width = os.get_terminal_size(STDERR).columns or 80
        except OSError:
            width = 80
        self._try_to_write(_ERASE + text[: width - 1].encode(errors="replace"))
        self._is_drawn = True

    def _erase(self) -> None:
        if self._is_drawn:
            self._try_to_write(_ERASE)
            self._is_drawn = False

    def _try_to_write(self, data: bytes) -> None:
        try:
            write_all(STDERR, data)
        except OSError:
            self._is_shown = False  # the terminal is gone; what is told there is not worth an end


def open_outputs() -> None:
    """Put something in the place of a stdout or stderr that was closed: a connection would get its number.

    What is written there fails, as it would for any command.
    """
    for descriptor, file in ((STDOUT, sys.stdout), (STDERR, sys.stderr)):
        if file is None:
            nothing = os.open(os.devnull, os.O_RDONLY)
            if nothing != descriptor:
                os.dup2(nothing, descriptor)
                os.close(nothing)


def _is_pipe(descriptor: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:  # it is closed
        return False


def _is_terminal(descriptor: int) -> bool:
    return os.isatty(descriptor) and os.environ.get("TERM") != "dumb"
