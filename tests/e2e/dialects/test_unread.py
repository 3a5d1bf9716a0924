"""What is no request that a dialect could look at: at its own port it is refused in the dialect's form all the same."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest

from jobrunner.house import House
from jobrunner.web.dialects.dialect import make_dialect_app, unread_refusal
from jobrunner.web.dialects.registry import DIALECTS
from tests.e2e.dialects.conversation import Answer
from tests.e2e.dialects.test_authorization import here_of
from tests.service import Service, free_port

HOST = b"Host: localhost\r\n"
UNREAD: Mapping[str, tuple[int, bytes]] = {
    "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00"),
    "two hosts": (400, b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n"),
    "a long line": (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a long head": (431, b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 70_000),
    "a strange coding": (501, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: zip, chunked\r\n\r\n"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings: dict[str, dict[str, Any]] = {
        f"dialect_{name.replace('-', '_')}": {"enabled": "yes", "port": free_port()} for name in DIALECTS
    }
    settings["dialect_rtot"]["secret"] = "s"
    settings["server"] = {"workers": 1}
    running = Service(tmp_path_factory.mktemp("unread") / "data", settings).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def send(port: int, data: bytes) -> Answer:
    """Send bytes, and read to the end of the connection."""
    with closing(socket.create_connection(("127.0.0.1", port), 60)) as connection, connection.makefile("rb") as file:
        connection.sendall(data)
        head, _, body = file.read().partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    return Answer(int(status.split()[1]), {name.lower(): value for name, value in headers.items()}, body)


@pytest.mark.parametrize("what", UNREAD)
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_what_is_no_request_is_refused_in_the_form_of_the_dialect(service: Service, name: str, what: str) -> None:
    status, data = UNREAD[what]
    answer = send(int(service.environment[f"JOBRUNNER_DIALECT_{name.replace('-', '_').upper()}_PORT"]), data)

    check(name, answer, status)
    assert answer.headers["connection"] == "close"


def test_each_status_has_the_form_of_the_dialect(house: House) -> None:
    for name, dialect in DIALECTS.items():
        refuse = unread_refusal(make_dialect_app(dialect, here_of(house, name)))
        for status in (400, 408, 414, 417, 431, 500, 501, 503, 505):
            response = refuse(status, "some words")
            headers = {key.lower(): value for key, value in response.headers}
            check(name, Answer(response.status_code, headers, response.data), status)


@pytest.mark.parametrize("what", UNREAD)
def test_below_a_prefix_nobody_knows_yet_that_a_dialect_was_meant(service: Service, what: str) -> None:
    status, data = UNREAD[what]
    answer = send(service.port, data)

    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert json.loads(answer.body)["status"] == status


def check(name: str, answer: Answer, status: int) -> None:
    assert answer.status == status
    if name == "http-runner":
        assert answer.headers["content-type"] == "application/json"
        assert list(json.loads(answer.body)) == ["message"]
    else:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text.endswith("\n")
        assert "{" not in answer.text
    assert ("x-accel-expires" in answer.headers) == (name == "qmd")
    assert ("retry-after" in answer.headers) == (status == 503)
    assert answer.headers["x-content-type-options"] == "nosniff"
