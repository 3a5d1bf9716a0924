"""Whether the service takes no new jobs: a file in the data directory, for all of its processes to see."""

from pathlib import Path


class Drain:
    """A mark that is set until somebody takes it away; a restart of the service does (see ``supervisor.py``)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def is_on(self) -> bool:
        """Whether it is set; asked for every submission."""
        return self._path.exists()

    def begin(self) -> None:
        """Set it.

        Raises:
            OSError: it can't be written.
        """
        self._path.touch(mode=0o600)

    def end(self) -> None:
        """Take it away, if it is set."""
        self._path.unlink(missing_ok=True)
