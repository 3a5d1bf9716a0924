"""Makes trees as a hostile job does, and looks at them as another user would."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
def swapping(directory: Path, target: Path) -> Iterator[None]:
    """Put a link to another directory in the place of this one and back, as fast as can be, meanwhile."""
    stop = threading.Event()
    away = directory.with_name(f"{directory.name}.away")

    def swap() -> None:
        while not stop.is_set():
            os.rename(directory, away)
            os.symlink(target, directory)
            os.unlink(directory)
            os.rename(away, directory)

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
