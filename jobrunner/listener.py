"""The socket that clients connect to: opened once by the supervisor, and kept over every restart behind it."""

import errno
import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from jobrunner.config import Server

BACKLOG = 2048
"""Connections that wait while nobody accepts; the kernel's net.core.somaxconn is the ceiling."""


def is_given() -> bool:
    """Tell whether systemd has opened the socket for us: sd_listen_fds(3)."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0"


def open_listener(server: Server, *, patience: float = 0.0) -> socket.socket:
    """Listen where the settings say, or take the socket that was given to us.

    Args:
        server: the settings.
        patience: seconds to wait for somebody else to leave the address: the workers of a service that was killed are
            told so by the kernel, but it takes them a moment.

    Raises:
        OSError: with where, as its filename.
    """
    if is_given():
        return _take_given()
    deadline = time.monotonic() + patience
    while True:
        try:
            listener = _open_unix(server.unix_socket) if server.unix_socket else _open_tcp(server.host, server.port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            where = str(server.unix_socket or f"{server.host}:{server.port}")
            raise OSError(error.errno, f"can't listen: {error.strerror}", where) from None
        listener.listen(BACKLOG)
        return listener


def close_listener(listener: socket.socket) -> None:
    """Stop listening; remove the socket's file if it has one, unless systemd goes on listening there."""
    if listener.family == socket.AF_UNIX and not is_given():
        with suppress(OSError):
            Path(listener.getsockname()).unlink()
    listener.close()


def _take_given() -> socket.socket:
    try:
        listener = socket.socket(fileno=3)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    except OSError as error:
        what = "the socket unit has given us no listening socket (it needs ListenStream= and Accept=no)"
        raise OSError(error.errno, f"{what}: {error.strerror}") from None
    listener.set_inheritable(False)
    return listener


def _open_tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _open_unix(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        # Whoever may enter its directory may connect: a proxy runs as another
        # user. What they may do, their token tells.
        path.chmod(0o666)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove the socket of one who died; never a file that is none, or one that somebody listens at."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "a file that is no socket is in the way")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, TimeoutError):
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
