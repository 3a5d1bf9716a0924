"""What the command line reads to send it along."""

import io

import pytest

from jobrunner.cli.submission import read_input
from jobrunner.domain.errors import Forbidden


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_an_input_is_read_to_its_end(size: int) -> None:
    assert read_input(io.BytesIO(bytes(size)), most=100_000) == bytes(size)


def test_an_input_without_end_is_not_read_for_ever() -> None:
    with open("/dev/zero", "rb") as endless, pytest.raises(Forbidden, match="/dev/zero has more than 100000 bytes"):
        read_input(endless, most=100_000)
