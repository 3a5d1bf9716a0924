"""The ports of dialects are opened, kept and closed with the service's own."""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import requests

from tests.conftest import StartService
from tests.process.test_systemd import answers, started
from tests.service import Service, eventually, free_port

RTOT = "[dialect:rtot]\nenabled = yes\nsecret = s\n"


def speaks_rtot(port: int, path: str = "/ping") -> bool:
    try:
        return "still here" in requests.get(f"http://127.0.0.1:{port}{path}", timeout=5).text
    except requests.RequestException:
        return False


def with_file(tmp_path: Path, text: str) -> tuple[Path, tuple[str, ...]]:
    settings = tmp_path / "jobrunner.ini"
    settings.write_text(text)
    return settings, (sys.executable, "-m", "jobrunner", "--config", str(settings), "serve")


def test_a_reload_opens_moves_and_closes_the_port_of_a_dialect(start_service: StartService, tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    settings, command = with_file(tmp_path, f"{RTOT}port = {first}\n")
    service = start_service(command=command)
    assert speaks_rtot(first)
    assert speaks_rtot(service.port, "/rtot/ping")

    def reload(text: str, times: int) -> None:
        settings.write_text(text)
        os.kill(service.pid, signal.SIGHUP)
        assert eventually(lambda: service.log.read_text().count("supervisor took over") == times, within=30)

    reload(f"{RTOT}port = {second}\n", 1)
    assert speaks_rtot(second)
    assert eventually(lambda: not answers(("127.0.0.1", first)))
    reload(f"{RTOT}port = {second}\n", 2)
    assert speaks_rtot(second)
    reload("", 3)
    assert eventually(lambda: not answers(("127.0.0.1", second)))
    assert service.get("/rtot/ping").status_code == 404
    assert service.run(command="true")["state"] == "succeeded"
    assert service.stop() == 0


def test_a_reload_to_a_port_that_is_taken_changes_nothing(start_service: StartService, tmp_path: Path) -> None:
    port = free_port()
    settings, command = with_file(tmp_path, f"{RTOT}port = {port}\n")
    service = start_service(command=command)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings.write_text(f"{RTOT}port = {taken.getsockname()[1]}\n")
        os.kill(service.pid, signal.SIGHUP)
        assert eventually(lambda: "not reloaded, all goes on as before" in service.log.read_text())

    assert speaks_rtot(port)
    assert service.get("/readyz").ok


def test_a_dialect_has_its_port_beside_a_socket_that_systemd_has_opened(tmp_path: Path) -> None:
    port = free_port()
    dialect = {"enabled": "yes", "secret": "s", "port": port}
    service = Service(tmp_path / "data", {"dialect_rtot": dialect})
    with socket.create_server(("127.0.0.1", 0)) as listener, started(service, listener=listener):
        assert eventually(lambda: answers(listener.getsockname()), within=30), service.log.read_text()
        assert eventually(lambda: speaks_rtot(port), within=30)
        assert speaks_rtot(listener.getsockname()[1], "/rtot/ping")
    assert not answers(("127.0.0.1", port))


@pytest.mark.parametrize("server", ["tcp", "unix"])
def test_a_plain_gunicorn_listens_there_as_well(start_service: StartService, server: str, tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    settings: dict[str, dict[str, object]] = {
        "dialect_rtot": {"enabled": "yes", "secret": "s", "port": port},
        "dialect_http_runner": {"enabled": "yes", "port": other},
    }
    service = Service(tmp_path / "data", settings, command=(sys.executable, "-m", "gunicorn", "wsgi:app", "-w", "1"))
    if server == "unix":
        service.environment["JOBRUNNER_SERVER_UNIX_SOCKET"] = str(tmp_path / "s")
    with started(service):
        assert eventually(lambda: speaks_rtot(port), within=30), service.log.read_text()
        answer = requests.get(f"http://127.0.0.1:{other}/ping", timeout=5)
        assert (answer.status_code, answer.json()) == (401, {"message": "Unauthorized"}), "each at its own"
        if server == "tcp":
            assert speaks_rtot(service.port, "/rtot/ping")
        else:
            # What a client on the unix socket says of a port in Host leads nowhere else.
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s"))
                client.sendall(f"GET /ping HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n".encode())
                assert b"still here" not in client.recv(65536)
