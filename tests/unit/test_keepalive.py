"""When a connection is kept for another request."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from gunicorn.config import Config

from jobrunner.gunicorn_connection import PatientConn
from jobrunner.gunicorn_worker import PatientWorker

HERE = ("127.0.0.1", 1)


class Hurried(PatientWorker):
    """One whose threads are so late that there is no time left for anything."""

    unread_patience = 0.0


@pytest.fixture
def connect() -> Iterator[Callable[[bytes], PatientConn]]:
    """Return connections that have received this of a request, and have had its head read."""
    ours, theirs = socket.socketpair()

    def connect(data: bytes) -> PatientConn:
        conn = PatientConn(Config(), ours, HERE, HERE)
        conn.incoming.feed(data, time.monotonic())
        conn.init()
        assert next(conn.parser).method == "POST"
        return conn

    with closing(ours), closing(theirs):
        yield connect


@pytest.mark.parametrize(
    "body", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
def test_a_request_that_is_here_keeps_its_connection_however_late_its_thread_is(
    connect: Callable[[bytes], PatientConn], body: bytes
) -> None:
    conn = connect(b"POST / HTTP/1.1\r\nHost: x\r\n" + body)

    assert Hurried.__new__(Hurried)._keepalive_after(conn, True)


def test_nobody_waits_for_the_rest_of_a_body_that_is_not_wanted(connect: Callable[[bytes], PatientConn]) -> None:
    conn = connect(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")

    assert not Hurried.__new__(Hurried)._keepalive_after(conn, True)
