"""Answers that come bit by bit, and can't be finished."""

from collections.abc import Iterator

import pytest

from jobrunner.domain.errors import JobNotFound
from jobrunner.service.output import Interrupted
from jobrunner.web.streaming import finish


@pytest.mark.parametrize("error", [Interrupted("the service stops"), JobNotFound()], ids=repr)
def test_what_can_not_be_finished_breaks_the_connection(error: Exception) -> None:
    """The job may be deleted between its last byte and its document."""

    def body() -> Iterator[bytes]:
        yield b"a"
        raise error

    sent = finish(body())

    assert next(sent) == b"a"
    with pytest.raises(ConnectionResetError, match=str(error)):
        next(sent)
