"""What systemd is told, and the socket that it may have opened: sd_notify(3), sd_listen_fds(3)."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.factories import children_of, is_dead
from tests.process.serving import child, ended
from tests.service import ROOT, Service, eventually, free_port

TAKES_A_SOCKET = """
import os, sys
given = int(sys.argv[1])
if given != 3:
    os.dup2(given, 3)
    os.close(given)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "jobrunner", *sys.argv[2:]])
"""


class Manager:
    """Hears what the service says, as systemd does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._inbox.bind(str(path))
        self._inbox.settimeout(20)

    def hear(self, word: str) -> list[str]:
        """Wait for a message with this line; return all of its lines."""
        while True:
            lines = self._inbox.recv(4096).decode().splitlines()
            if word in lines:
                return lines

    def close(self) -> None:
        self._inbox.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(tmp_path / "notify")) as listening:
        yield listening


@contextmanager
def started(service: Service, *, listener: socket.socket | None = None, **environ: str) -> Iterator[Service]:
    """Start a service with these variables, and with a socket that is open already; end it at the end."""
    fds = (listener.fileno(),) if listener is not None else ()
    command = service.command
    for fd in fds:
        command = (sys.executable, "-c", TAKES_A_SOCKET, str(fd), *command[3:])
    with service.log.open("ab") as log:
        service.process = subprocess.Popen(
            command, cwd=ROOT, env={**service.environment, **environ}, stdout=log, stderr=log, pass_fds=fds
        )
    try:
        yield service
    finally:
        service.http.close()
        if service.process.poll() is None:
            assert service.stop() == 0, service.log.read_text()


def answers(address: str | tuple[str, int]) -> bool:
    """Tell whether the service says at this address that it is ready."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(10)
        try:
            client.connect(address)
            client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
            return b" 200 OK" in client.recv(100)
        except OSError:
            return False


def test_systemd_is_told_what_happens(tmp_path: Path, manager: Manager) -> None:
    service = Service(tmp_path / "data")
    with started(service, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="400000"):
        manager.hear("READY=1")
        assert service.get("/readyz").ok
        manager.hear("WATCHDOG=1")
        os.kill(service.pid, signal.SIGHUP)
        manager.hear("RELOADING=1")
        manager.hear("READY=1")
        os.kill(service.pid, signal.SIGTERM)
        manager.hear("STOPPING=1")
        assert ended(service, 15) == 0


def test_systemd_is_told_of_a_reload_that_fails(tmp_path: Path, manager: Manager) -> None:
    """It waits for the end of each reload that it has asked for."""
    settings = tmp_path / "jobrunner.ini"
    settings.write_text("[executor]\nmax_timeout = 100000\n")
    service = Service(
        tmp_path / "data", command=(sys.executable, "-m", "jobrunner", "--config", str(settings), "serve")
    )
    with started(service, NOTIFY_SOCKET=str(manager.path)):
        manager.hear("READY=1")
        settings.write_text("[executor]\nmax_timeout = nonsense\n")

        os.kill(service.pid, signal.SIGHUP)

        manager.hear("RELOADING=1")
        assert any(line.startswith("STATUS=") and "not reloaded" in line for line in manager.hear("READY=1"))


def test_the_file_of_a_socket_that_systemd_has_opened_stays(tmp_path: Path) -> None:
    """systemd listens there after the end of the service as well, and starts it anew for the next client."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        for _ in range(2):
            with started(Service(tmp_path / "data"), listener=listener) as service:
                assert eventually(lambda: answers(path), within=30), service.log.read_text()
            assert Path(path).is_socket()


def test_only_those_who_answer_inherit_the_socket(tmp_path: Path) -> None:
    """Whoever else has it open keeps clients waiting when the service has ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with started(Service(tmp_path / "data"), listener=listener) as service:
            assert eventually(lambda: answers(address), within=30), service.log.read_text()
            ours = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.name == str(listener.fileno())}
            theirs = {str(fd.readlink()) for fd in Path(f"/proc/{child(service, 'executor')}/fd").iterdir()}

    assert len(ours) == 1
    assert not ours & theirs


def test_a_reload_keeps_the_socket_that_systemd_has_opened(tmp_path: Path) -> None:
    """Where to listen is the socket unit's, whatever the settings say."""
    settings = tmp_path / "jobrunner.ini"
    settings.write_text(f"[server]\nport = {free_port()}\n")
    service = Service(
        tmp_path / "data", command=(sys.executable, "-m", "jobrunner", "--config", str(settings), "serve")
    )
    del service.environment["JOBRUNNER_SERVER_PORT"]
    with socket.create_server(("127.0.0.1", 0)) as listener, started(service, listener=listener):
        address = listener.getsockname()
        assert eventually(lambda: answers(address), within=30), service.log.read_text()
        before = children_of(service.pid)
        settings.write_text(f"[server]\nport = {service.port}\n")

        os.kill(service.pid, signal.SIGHUP)

        assert eventually(lambda: all(is_dead(pid) for pid in before), within=20), service.log.read_text()
        assert eventually(lambda: "supervisor took over" in service.log.read_text(), within=20)
        assert answers(address)
        assert not answers(("127.0.0.1", service.port))


def test_what_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    """A socket unit with Accept=yes gives a connection instead."""
    service = Service(tmp_path / "data")
    service.http.close()
    with socket.socket() as other:
        done = subprocess.run(
            [sys.executable, "-c", TAKES_A_SOCKET, str(other.fileno()), "serve"],
            cwd=ROOT,
            env=service.environment,
            pass_fds=(other.fileno(),),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert done.returncode == 1
    assert "Accept=no" in done.stderr
    assert "Traceback" not in done.stderr
