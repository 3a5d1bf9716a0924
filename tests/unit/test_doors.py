"""Which application answers a request."""

import socket
from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.test import Client

from jobrunner.web.doors import Doors


def telling(name: str) -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [f"{name}|{environ['SCRIPT_NAME']}|{environ['PATH_INFO']}".encode("latin-1")]

    return application


DOORS = Doors(telling("main"), {"one": telling("one"), "two": telling("two")}, {1001: "one", 1002: "two"})


@pytest.mark.parametrize(
    ("port", "path", "answer"),
    [
        (80, "/", "main||/"),
        (80, "/v1/jobs", "main||/v1/jobs"),
        (80, "/one", "one|/one|"),
        (80, "/one/", "one|/one|/"),
        (80, "/one//x", "one|/one|//x"),
        (80, "/two/one/x", "two|/two|/one/x"),
        (80, "/onex", "main||/onex"),
        (80, "/One/", "main||/One/"),
        (80, "//one/", "main||//one/"),
        (80, "/v1/one/", "main||/v1/one/"),
        (1001, "/", "one||/"),
        (1001, "/one/x", "one||/one/x"),
        (1001, "/two/x", "one||/two/x"),
        (1001, "/v1/jobs", "one||/v1/jobs"),
        (1002, "/v1/jobs", "two||/v1/jobs"),
    ],
)
def test_the_port_decides_and_then_the_begin_of_the_path(port: int, path: str, answer: str) -> None:
    environ = {"SERVER_PORT": str(port), "HTTP_HOST": "localhost:1002", "HTTP_X_FORWARDED_PORT": "1002"}

    assert Client(DOORS).open("/", environ_overrides={**environ, "PATH_INFO": path}).text == answer


def test_a_unix_socket_has_no_port() -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
        for connection, answer in ((unix, "main||/"), (tcp, "one||/")):
            environ = {"SERVER_PORT": "1001", "gunicorn.socket": connection}
            assert Client(DOORS).open("/", environ_overrides=environ).text == answer
