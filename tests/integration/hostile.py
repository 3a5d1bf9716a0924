"""Makes trees as a hostile job does, and looks at them as another user would."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.service import clean_environment


def make_deep(path: Path, depth: int, name: str = "d") -> None:
    """Make so many directories in one another."""
    here = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@contextmanager
def swapping(path: Path, target: Path) -> Iterator[None]:
    """Put a link to something else in the place of this path and back, as fast as can be, meanwhile.

    It ends by itself when somebody has removed the one or the other.
    """
    stop = threading.Event()
    away = path.with_name(f"{path.name}.away")

    def swap() -> None:
        with suppress(OSError):
            while not stop.is_set():
                os.rename(path, away)
                os.symlink(target, path)
                os.unlink(path)
                os.rename(away, path)

    thread = threading.Thread(target=swap, name="swapping")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run_program(program: str) -> None:
    """Run a few lines of Python in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd="/",
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
