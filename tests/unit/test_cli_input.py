"""What the command line reads to send it along."""

import io
import os
import threading

import pytest

from jobrunner.cli.submission import read_input
from jobrunner.domain.errors import Forbidden


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_an_input_is_read_to_its_end(size: int) -> None:
    assert read_input(io.BytesIO(bytes(size)), most=100_000) == bytes(size)


def test_an_input_without_end_is_not_read_for_ever() -> None:
    with open("/dev/zero", "rb") as endless, pytest.raises(Forbidden, match="/dev/zero has more than 100000 bytes"):
        read_input(endless, most=100_000)


def test_a_pipe_that_somebody_has_made_non_blocking_gives_all() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    asked = threading.Event()

    class Slow(io.FileIO):
        """Has nothing to read at first."""

        def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
            found = super().readinto(buffer)
            asked.set()
            return found

    def write() -> None:
        with open(writing, "wb") as pipe:
            for piece in (b"one", b"two"):
                asked.wait(30)
                asked.clear()
                pipe.write(piece)
                pipe.flush()

    writer = threading.Thread(target=write)
    writer.start()
    with io.BufferedReader(Slow(reading)) as file:
        assert read_input(file) == b"onetwo"
    writer.join()
