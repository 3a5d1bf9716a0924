"""A file that is sent to a client that takes it, slowly or not at all."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from jobrunner.gunicorn_connection import ClientSocket, Takers

SIZE = 5_000_000


@pytest.fixture
def pair() -> Iterator[tuple[ClientSocket, socket.socket]]:
    """A client's socket as the server has it, and the client's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        closing(socket.create_connection(listener.getsockname())) as client,
    ):
        accepted, address = ClientSocket.accept_from(listener)
        with accepted:
            assert address == client.getsockname()
            accepted.settimeout(30)
            yield accepted, client


@pytest.mark.parametrize(("offset", "count"), [(0, None), (7, SIZE - 10), (3, 0), (SIZE - 1, 1)])
def test_a_part_of_a_file_is_sent(
    tmp_path: Path, pair: tuple[ClientSocket, socket.socket], offset: int, count: int | None
) -> None:
    accepted, client = pair
    data = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(data)
    expected = data[offset:] if count is None else data[offset : offset + count]
    received = bytearray()

    def receive() -> None:
        while more := client.recv(1 << 16):
            received.extend(more)

    reader = threading.Thread(target=receive)
    reader.start()
    with (tmp_path / "file").open("rb", buffering=0) as file:
        assert accepted.sendfile(file, offset, count) == len(expected)
        assert file.tell() == offset + len(expected)
    accepted.shutdown(socket.SHUT_WR)
    reader.join()
    assert received == expected


def test_a_file_that_has_become_shorter_is_sent_as_far_as_it_goes(
    tmp_path: Path, pair: tuple[ClientSocket, socket.socket]
) -> None:
    (tmp_path / "file").write_bytes(b"short")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        assert pair[0].sendfile(file, 0, 100) == 5
        assert file.tell() == 5
    assert pair[1].recv(100) == b"short"


def test_a_client_that_takes_nothing_is_not_waited_for_for_ever(
    tmp_path: Path, pair: tuple[ClientSocket, socket.socket]
) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 100_000_000)
    pair[0].patience = 0.2
    pair[0].settimeout(30)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        # What goes into the system's buffers is worth time, too.
        limiter = threading.Timer(60, pair[1].close)
        limiter.start()
        with pytest.raises(TimeoutError):
            pair[0].sendfile(file, 0, 100_000_000)
        limiter.cancel()
        assert 0 < file.tell() < 100_000_000


def test_of_too_many_clients_that_take_a_file_slowly_the_slowest_is_given_up() -> None:
    takers = Takers(2)
    with ExitStack() as stack:
        slow, slowest, quick = ([stack.enter_context(one) for one in socket.socketpair()] for _ in range(3))
        sockets = [stack.enter_context(ClientSocket(fileno=one.detach())) for one, _ in (slow, slowest, quick)]
        stack.enter_context(takers.waiting(sockets[0], 20))
        stack.enter_context(takers.waiting(sockets[1], 10))
        slowest[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            slowest[1].recv(1)
        with takers.waiting(sockets[2], 30):
            assert slowest[1].recv(1) == b""
            for _, client in (slow, quick):
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
