"""Where the command line finds the service, whom it tells the token, and whom it trusts."""

import shutil
import socket
import ssl
from pathlib import Path

import pytest

from jobrunner.client import Client
from tests.conftest import miss
from tests.e2e.commands import DONE, REFUSED, UNREACHABLE, USAGE, Listener, http, jobrunner, read_request, remote
from tests.nginx import make_certificate
from tests.service import Service, free_port


def test_without_a_token_nothing_is_asked(service: Service, tmp_path: Path) -> None:
    ended = jobrunner(
        service,
        "list",
        code=REFUSED,
        environment={"JOBRUNNER_URL": service.url, "JOBRUNNER_STORAGE_DATA_DIR": str(tmp_path)},
    )

    assert b"JOBRUNNER_TOKEN" in ended.stderr


def test_the_local_token_stays_here(service: Service) -> None:
    """A server elsewhere has tokens of its own."""
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        where = {"JOBRUNNER_URL": f"http://127.0.0.1:{elsewhere.getsockname()[1]}"}

        ended = jobrunner(service, "list", code=REFUSED, environment=where)

        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert b"JOBRUNNER_TOKEN" in ended.stderr


def test_neither_a_proxy_nor_netrc_comes_between(service: Service, tmp_path: Path) -> None:
    """The one would be told the token; the other has requests send another one."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    proxy = f"http://127.0.0.1:{free_port()}"

    for surroundings in (
        {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""},
        {"NETRC": str(netrc)},
    ):
        jobrunner(service, "submit", "true", environment=surroundings)
        jobrunner(service, "list", environment=remote(service) | surroundings)


def test_a_service_on_a_unix_socket_is_not_looked_for_at_the_port(service: Service, tmp_path: Path) -> None:
    """Whoever listens there would be told the token."""
    behind = {"JOBRUNNER_SERVER_UNIX_SOCKET": str(tmp_path / "socket")}

    for words in (["submit", "true"], ["logs", "1"], ["cancel", "1"]):
        assert b"JOBRUNNER_URL" in jobrunner(service, *words, code=USAGE, environment=behind).stderr
    jobrunner(service, "list", environment=behind)
    jobrunner(service, "list", environment=behind | remote(service))


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://localhost:{port}/", "http://localhost:{port}/x/"])
def test_a_server_that_can_not_be_reached(service: Service, url: str) -> None:
    where = {"JOBRUNNER_URL": url.format(port=free_port()), "JOBRUNNER_TOKEN": "x"}
    ended = jobrunner(service, "list", code=UNREACHABLE, environment=where)

    assert ended.stderr.count(b"\n") == 1, ended.stderr


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "127.0.0.1:8080",
        "localhost:8080",
        "ftp://127.0.0.1",
        "http://",
        "http://[",
        "http://127.0.0.1:99999",
        "http://user:secret@127.0.0.1:8080",
        "http://127.0.0.1:8080/?token=secret",
        "http://127.0.0.1:8080/#jobs",
    ],
)
def test_what_can_not_be_a_url_of_a_service_is_a_usage_error(service: Service, url: str) -> None:
    ended = jobrunner(service, "run", "true", code=USAGE, environment=remote(service) | {"JOBRUNNER_URL": url})

    assert b"JOBRUNNER_URL" in ended.stderr
    assert b"secret" not in ended.stderr


@pytest.mark.parametrize("token", ["two words", "line\n", "\u20ac", "\u00f6"])
def test_what_can_not_be_a_token_is_a_usage_error(service: Service, token: str) -> None:
    """It is not shown: it may be a part of one."""
    for where in (remote(service), {}):
        ended = jobrunner(service, "run", "true", code=USAGE, environment=where | {"JOBRUNNER_TOKEN": token})

        assert b"JOBRUNNER_TOKEN" in ended.stderr
        assert token.strip().encode() not in ended.stderr


def test_a_service_may_be_below_a_path() -> None:
    asked: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        asked.append(read_request(connection)[0].split()[1])
        connection.sendall(http("200 OK", '{"url": "/v1/jobs/x/events?signature=y"}'))

    with Listener(serve) as below, Client(f"http://127.0.0.1:{below.port}/a/b/", "token") as client:
        client.stats()
        list(client.download("/v1/jobs/x/files/y%2F"))
        url = client.stream_url("x")["url"]

    assert asked == [b"/a/b/v1/stats", b"/a/b/v1/jobs/x/files/y%2F", b"/a/b/v1/jobs/x/stream-url"]
    assert url == f"http://127.0.0.1:{below.port}/a/b/v1/jobs/x/events?signature=y"


def test_who_is_trusted_can_be_said_by_the_environment(service: Service, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        miss("needs openssl to make a certificate")
    make_certificate(tmp_path)
    identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    trusted = str(tmp_path / "certificate.pem")

    def serve(connection: socket.socket) -> None:
        with identity.wrap_socket(connection, server_side=True) as secured:
            read_request(secured)
            secured.sendall(http("200 OK", '{"scripts": []}'))

    with Listener(serve) as secure:
        where = {"JOBRUNNER_URL": f"https://127.0.0.1:{secure.port}", "JOBRUNNER_TOKEN": "x"}
        for surroundings, code in (
            ({"REQUESTS_CA_BUNDLE": trusted}, DONE),
            ({"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": trusted}, DONE),
            ({"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": ""}, UNREACHABLE),
            ({"REQUESTS_CA_BUNDLE": str(tmp_path / "absent")}, UNREACHABLE),
        ):
            jobrunner(service, "scripts", code=code, environment=where | surroundings)
