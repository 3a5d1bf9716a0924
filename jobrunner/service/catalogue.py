"""The script catalogue: the files of one directory, picked up without a restart."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobrunner.domain.errors import InvalidRequest

_HEAD = 8192
"""How many bytes of a script are looked at for its description."""


@dataclass(frozen=True, slots=True)
class Script:
    """A catalogued script.

    Attributes:
        name: relative to the catalogue's directory.
        description: the first comment block after the ``#!`` line; may be empty.
    """

    name: str
    description: str
    bytes: int
    modified_at: datetime


class Catalogue:
    """The scripts that may be run by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def directory(self) -> Path:
        """Where they are."""
        return self._directory

    def list(self) -> list[Script]:
        """Return all scripts by name; an absent directory has none. Hidden files are none."""
        return sorted(self._walk(self._directory, ""), key=lambda script: script.name)

    def find(self, name: str) -> Path:
        """Return the file of a script.

        Raises:
            InvalidRequest: there is no such script.
        """
        parts = name.split("/")
        if "\0" in name or any(part.startswith(".") or not part for part in parts):
            raise InvalidRequest.at("#/script", "must be the name of a script in the catalogue, without . or .. in it")
        path = self._directory.joinpath(*parts)
        folders = [self._directory.joinpath(*parts[:depth]) for depth in range(1, len(parts))]
        try:
            # Linked scripts are fine, linked folders are not walked into: what is not listed can't be run.
            is_file = path.is_file() and not any(folder.is_symlink() for folder in folders)
        except OSError:  # a name that is too long, say
            is_file = False
        if not is_file:
            raise InvalidRequest.at("#/script", f"there is no script {name!r}; GET /v1/scripts lists those there are")
        return path

    def name_of(self, path: str) -> str:
        """Return the name of a script that `find` has found; its path if the catalogue is elsewhere by now."""
        return path.removeprefix(f"{self._directory}/")

    def _walk(self, directory: Path, prefix: str) -> Iterator[Script]:
        try:
            entries = list(os.scandir(directory))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.name.startswith(".") or not _is_utf8(name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), f"{name}/")
            elif entry.is_file():
                yield from _read_script(entry.path, name)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_script(path: str, name: str) -> Iterator[Script]:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return
            head = file.read(_HEAD)
    except OSError:
        return  # removed meanwhile, or not ours to read
    modified = datetime.fromtimestamp(status.st_mtime, UTC)
    yield Script(name, describe(head.decode(errors="replace")), status.st_size, modified)


def describe(text: str) -> str:
    """Return the first comment block after the ``#!`` line, without its ``#``."""
    lines = text.splitlines()
    if lines and lines[0].startswith("#!"):
        lines = lines[1:]
    block: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("#").strip())
        elif block or stripped:
            break
    return "\n".join(block).strip()
