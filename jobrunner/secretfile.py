"""Secrets in files that only their owner can read."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_secret(path: Path, secret: str) -> None:
    """Write a secret to a file (0600), whole or not at all, in the place of what was there.

    Raises:
        OSError: it can't be written.
    """
    _write(new := _beside(path), secret)
    new.rename(path)


def load_secret(path: Path) -> bytes:
    """Return the secret of a file; make one at first. Processes that do so at once get the same.

    Raises:
        OSError: it can be neither read nor made.
    """
    with suppress(FileNotFoundError):
        return path.read_bytes().strip()
    _write(new := _beside(path), secrets.token_urlsafe(32))
    try:
        with suppress(FileExistsError):
            path.hardlink_to(new)  # unlike a rename this lets the first one win
    finally:
        new.unlink()
    return path.read_bytes().strip()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def _write(path: Path, secret: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        os.fchmod(fd, 0o600)
        file.write(secret + "\n")
        file.flush()
        os.fsync(fd)
