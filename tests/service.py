"""A real service for tests: ``jobrunner serve`` or a plain gunicorn, on loopback, with a data directory of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import requests

from tests.factories import children_of, is_dead

ROOT = Path(__file__).parent.parent
STARTUP = 30.0


def eventually(condition: Callable[[], object], *, within: float = 10.0, every: float = 0.02) -> bool:
    """Poll until the condition holds; False when it does not in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(every)
    return bool(condition())


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(**more: str) -> dict[str, str]:
    """Return an environment without settings of jobrunner, in which this checkout is importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBRUNNER_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPATH": str(ROOT), **more}


class Service:
    """A running service, and a client of it.

    Args:
        data_dir: its data directory.
        settings: ``{"executor": {"max_running": "2"}}``, given by environment.
        command: what to start instead of ``jobrunner serve``; ``{port}`` is filled in.
    """

    def __init__(
        self,
        data_dir: Path,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "jobrunner", "serve"),
        port: int | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        wanted = {"storage": {"data_dir": str(data_dir), "min_free_bytes": "0"}, "server": {"port": str(self.port)}}
        for section, values in (settings or {}).items():
            wanted.setdefault(section, {}).update(values)
        self.environment = clean_environment(
            **{
                f"JOBRUNNER_{section}_{key}".upper(): str(value)
                for section, values in wanted.items()
                for key, value in values.items()
            }
        )
        self.command = tuple(word.format(port=self.port) for word in command)
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.http = requests.Session()
        self.http.trust_env = False

    def start(self) -> "Service":
        """Start it and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        process = self.process

        def is_ready() -> bool:
            assert process.poll() is None, f"the service has ended:\n{self.log.read_text()}"
            try:
                return self.http.get(f"{self.url}/readyz", timeout=5).ok
            except requests.RequestException:
                return False

        try:
            assert eventually(is_ready, within=STARTUP, every=0.05), f"it does not start:\n{self.log.read_text()}"
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        self.http.headers["Authorization"] = f"Bearer {self.token}"
        return self

    @property
    def token(self) -> str:
        """The administrator's token."""
        return (self.data_dir / "admin.token").read_text().strip()

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self.process is not None
        return self.process.pid

    def processes(self) -> list[int]:
        """Return all processes of the service, its jobs included."""
        found = [self.pid]
        for pid in found:
            found.extend(children_of(pid))
        return found

    def stop(self, number: int = signal.SIGTERM, *, within: float = 30.0) -> int:
        """Tell it to stop, wait, and return its exit code. None of its processes may be left, but for jobs."""
        assert self.process is not None
        self.http.close()
        own = [
            pid for pid in self.processes() if b"gunicorn" in _command_line(pid) or b"jobrunner" in _command_line(pid)
        ]
        if self.process.poll() is None:
            os.kill(self.pid, number)
        try:
            code = self.process.wait(within)
        finally:
            for pid in [self.pid, *own]:
                if self.process.poll() is None or not is_dead(pid):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
        assert eventually(lambda: all(is_dead(pid) for pid in own)), "a process of the service is left"
        return code

    # ── a client ──

    def request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Send a request; a full URL path as ``path``."""
        return self.http.request(method, self.url + path, timeout=arguments.pop("timeout", 30), **arguments)

    def get(self, path: str, **arguments: Any) -> requests.Response:
        """GET."""
        return self.request("GET", path, **arguments)

    def post(self, path: str, body: Any = None, **arguments: Any) -> requests.Response:
        """POST a JSON body, if there is one."""
        return self.request("POST", path, **({} if body is None else {"json": body}), **arguments)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[HTTPResponse]:
        """GET on a connection of its own, to read the answer as it comes; headers None: the token."""
        if headers is None:
            headers = {"Authorization": f"Bearer {self.token}"}
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", path, headers=dict(headers))
            with connection.getresponse() as response:
                yield response

    def submit(self, **body: Any) -> dict[str, Any]:
        """Submit a job; return its document."""
        response = self.post("/v1/jobs", body)
        assert response.status_code == 202, response.text
        document: dict[str, Any] = response.json()
        return document

    def run(self, **body: Any) -> dict[str, Any]:
        """Submit a job and wait for its end; return its document, with output."""
        return self.wait(self.submit(**body)["id"])

    def wait(self, job: str | int, within: float = 60.0) -> dict[str, Any]:
        """Wait for the end of a job; return its document, with output."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            response = self.get(f"/v1/jobs/{job}?wait=10&include=output")
            assert response.status_code == 200, response.text
            document: dict[str, Any] = response.json()
            if document["state"] not in {"queued", "running"}:
                return document
        raise AssertionError(f"job {job} has not ended within {within} s")


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
