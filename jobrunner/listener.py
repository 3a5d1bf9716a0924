"""The sockets that clients connect to: opened once by the supervisor, and kept over every restart behind it."""

import errno
import os
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jobrunner.config import Config, Server

BACKLOG = 2048
"""Connections that wait while nobody accepts; the kernel's net.core.somaxconn is the ceiling."""


def is_given() -> bool:
    """Tell whether systemd has opened the socket for us: sd_listen_fds(3)."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS", "0") != "0"


def open_listener(server: Server, *, patience: float = 0.0) -> socket.socket:
    """Listen where the settings say, or take the socket that was given to us.

    Raises:
        OSError: as `open_address`.
    """
    return _take_given() if is_given() else open_address(server, patience=patience)


def open_address(server: Server, *, patience: float = 0.0) -> socket.socket:
    """Listen where the settings say.

    Args:
        server: the settings.
        patience: seconds to wait for somebody else to leave the address: the workers of a service that was killed are
            told so by the kernel, but it takes them a moment.

    Raises:
        OSError: with where, as its filename.
    """
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


@dataclass(frozen=True)
class Listeners:
    """All sockets that the service accepts connections from.

    Attributes:
        main: where ``/v1`` is.
        others: where a dialect is at the root, by `Config.binds`.
    """

    main: socket.socket
    others: Mapping[str, socket.socket] = field(default_factory=dict)

    @property
    def sockets(self) -> list[socket.socket]:
        """All of them, the main one first."""
        return [self.main, *self.others.values()]

    def close(self, *, but: "Listeners | None" = None) -> None:
        """Stop listening, but at the sockets that are among the others' too."""
        kept = but.sockets if but is not None else []
        for listener in self.sockets:
            if listener not in kept:
                close_listener(listener)


def open_listeners(
    config: Config, *, patience: float = 0.0, before: tuple[Config, Listeners] | None = None
) -> Listeners:
    """Listen everywhere where the settings say.

    Args:
        config: the settings.
        patience: as `open_listener`.
        before: settings and sockets that there are already: those that stay where they are are kept.

    Raises:
        OSError: with where, as its filename. What was open before still is.
    """
    kept: dict[str, socket.socket] = {}
    if before is not None:
        kept = {before[0].bind: before[1].main, **before[1].others}
        if is_given():
            kept = {**before[1].others, config.bind: before[1].main}
    opened: list[socket.socket] = []
    others: dict[str, socket.socket] = {}
    try:
        main = kept.get(config.bind) or open_listener(config.server, patience=patience)
        opened.append(main)
        for bind, (host, port) in config.dialect_binds.items():
            others[bind] = kept.get(bind) or open_address(Server(host=host, port=port), patience=patience)
            opened.append(others[bind])
    except OSError:
        for listener in opened:
            if listener not in kept.values():
                close_listener(listener)
        raise
    return Listeners(main, others)


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
