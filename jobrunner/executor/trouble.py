"""A storage that refuses: told once, not with every try."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from jobrunner.domain.errors import StorageError

logger = logging.getLogger("jobrunner.executor")


class Trouble:
    """Says once that the storage refuses, and once that it is back."""

    def __init__(self) -> None:
        self.is_on = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Go on after an error of the storage; the next try is the caller's."""
        try:
            yield
        except (StorageError, OSError) as error:
            if not self.is_on:
                logger.error("the storage refuses, trying again: %s", error)  # noqa: TRY400
            self.is_on = True
        else:
            if self.is_on:
                logger.info("the storage is back")
            self.is_on = False
