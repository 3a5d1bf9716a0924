"""Commands of the command line as processes of their own, and what may stand between them and the service."""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, Self

from tests.service import ROOT, Service, eventually

DONE, FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE = range(6)
TIMED_OUT, TROUBLE, NOT_EXECUTABLE, NO_SUCH_COMMAND, CANCELED, BROKEN_PIPE = 124, 125, 126, 127, 130, 141

COMMAND = (sys.executable, "-m", "jobrunner")

Process = subprocess.Popen[bytes]


def at(service: Service, port: int | None = None, **more: str) -> dict[str, str]:
    """Return the environment in which the command line finds a service, here or behind another port."""
    return {**service.environment, **remote(service, port), **more}


@contextmanager
def started(
    *words: str,
    environment: Mapping[str, str],
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    prefix: tuple[str, ...] = (),
    terminal: int | None = None,
    **arguments: Any,
) -> Iterator[Process]:
    """Start a command, with this as its controlling terminal; kill it if the test leaves it running."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has it ignored by what it runs in the background
        if terminal is not None:
            os.login_tty(os.dup(terminal))

    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": prepare, **arguments}
    with subprocess.Popen([*prefix, *COMMAND, *words], cwd=ROOT, env=environment, stdin=stdin, **given) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: Process, code: int = DONE, within: float = 60.0) -> tuple[bytes, bytes]:
    """Wait for the end of a command; return the rest of its stdout, and its stderr."""
    out, err = process.communicate(timeout=within)
    assert process.returncode == code, (process.returncode, (out or b"")[-1000:], err)
    assert b"Traceback" not in (err or b"")
    return out, err


def run(
    service: Service, *words: str, code: int = DONE, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> tuple[bytes, bytes]:
    """Run a command to its end, with this on its stdin; return stdout and stderr."""
    ended = subprocess.run(
        [*COMMAND, *words],
        cwd=ROOT,
        env=environment or at(service),
        input=stdin,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == code, (ended.returncode, ended.stdout[-1000:], ended.stderr)
    assert b"Traceback" not in ended.stderr
    return ended.stdout, ended.stderr


def jobrunner(
    service: Service, *words: str, code: int = DONE, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command with the settings of this service, beside it; hold its exit code against what is expected."""
    ended = subprocess.run(
        [*COMMAND, *words],
        cwd=ROOT,
        env={**service.environment, **(environment or {})},
        input=stdin,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
    assert b"Traceback" not in ended.stderr
    # What belongs into a log is no message to people.
    messages = [line for line in ended.stderr.splitlines() if b"jobrunner.audit" not in line]
    assert (code == DONE) == (messages == []), ended.stderr
    return ended


def remote(service: Service, port: int | None = None) -> dict[str, str]:
    """Return what has commands ask this service, and not look at its data."""
    return {"JOBRUNNER_URL": f"http://127.0.0.1:{port or service.port}", "JOBRUNNER_TOKEN": service.token}


def the_job(service: Service, name: str) -> dict[str, Any]:
    """Return the only job of this name, once there is one."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = service.get("/v1/jobs", params={"name": name}).json()["jobs"]
        return bool(found)

    assert eventually(look, within=30), f"nothing named {name} was submitted"
    (job,) = found
    return job


# ── what may stand between ──


class Listener:
    """Accepts connections on a thread each, until it is left."""

    def __init__(self, serve: Callable[[socket.socket], None], *, port: int = 0) -> None:
        self._serve = serve
        self._wanted = port
        self._stack = ExitStack()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self.connections = 0

    def __enter__(self) -> Self:
        self._socket = self._stack.enter_context(socket.create_server(("127.0.0.1", self._wanted)))
        self.port: int = self._socket.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        self._stack.close()

    def refuse(self) -> None:
        """Accept nobody else."""
        with suppress(OSError):  # it may have been told before
            self._socket.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            self._start(self._handle, connection)

    def _handle(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._serve(connection)
        self._open.discard(connection)


class CuttingProxy(Listener):
    """Passes bytes on to a service, and cuts each connection after a number of them that nobody foresees."""

    def __init__(self, service: Service, rng: random.Random, *, most: int) -> None:
        super().__init__(self._relay)
        self._target = service.port
        self._rng = rng
        self._most = most
        self.cuts = 0

    def _relay(self, client: socket.socket) -> None:
        # Some cuts come early: in the head of the answer, or in its first event.
        budget = self._rng.randrange(self._rng.choice([1500, self._most, self._most]))
        is_rude = self._rng.random() < 0.5
        with socket.create_connection(("127.0.0.1", self._target)) as service:
            upwards = threading.Thread(target=_pass_on, args=(client, service))
            upwards.start()
            try:
                while budget and (data := service.recv(min(budget, 4096))):
                    client.sendall(data)
                    budget -= len(data)
                if not budget:
                    self.cuts += 1
                    if is_rude:  # a reset, which takes with it what was not read yet
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        client.shutdown(socket.SHUT_WR)
            finally:
                for end in (client, service):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RD if end is client and is_rude else socket.SHUT_RDWR)
                upwards.join()


def answering(*answers: bytes, then: bytes | None = None) -> Listener:
    """Answer one request after another like this, and all that follow with the last one, or with ``then``.

    An empty answer breaks the connection once the request was read.
    """
    waiting = list(answers)

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        answer = waiting.pop(0) if waiting else (answers[-1] if then is None else then)
        connection.sendall(answer)

    return Listener(serve)


def pass_on_to(service: Service, *, port: int = 0) -> Listener:
    """Pass everything on, one connection for another."""

    def serve(client: socket.socket) -> None:
        relay(client, service)

    return Listener(serve, port=port)


def relay(client: socket.socket, service: Service) -> None:
    """Pass on what comes from either side, until one of them has enough."""
    with socket.create_connection(("127.0.0.1", service.port)) as target:
        back = threading.Thread(target=_pass_on, args=(target, client))
        back.start()
        _pass_on(client, target)
        back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def never_answering() -> Listener:
    """Read requests, and say nothing."""

    def serve(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            time.sleep(0)

    return Listener(serve)


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read a request; return its head, and its body."""
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(1 << 16)):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while lengths and len(body) < lengths[0] and (more := connection.recv(1 << 16)):
        body += more
    return head + b"\r\n\r\n", body


def http(status: str, body: str = "", **headers: str) -> bytes:
    """Write an answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()
