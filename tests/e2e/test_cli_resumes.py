"""``run`` and ``logs -f`` over broken connections and a service that goes away: not a byte is lost or comes twice."""

import hashlib
import json
import os
import random
import signal
import socket
import threading

import pytest

from tests.conftest import StartService
from tests.e2e.commands import (
    UNREACHABLE,
    CuttingProxy,
    Listener,
    Process,
    answering,
    at,
    finish,
    http,
    read_request,
    relay,
    run,
    started,
    the_job,
)
from tests.e2e.test_follow import PIECES, followed, pieces, step, until
from tests.factories import children_of
from tests.service import Service, _command_line, eventually

SLOWLY = PIECES.replace("0.03", "0.3")
"""Binary output over some seconds: most of it comes as base64."""

BOTH = """
import os, time
text = "".join(f"{number} äöü€🙂 {'x' * (number % 300)}\\n" for number in range(2000)).encode()
for begin in range(0, len(text), 7001):
    os.write(1, text[begin : begin + 7001])
    os.write(2, text[begin : begin + 7001][::-1])
    time.sleep(0.02)
"""

TEXT = "".join(f"{number} äöü€🙂 {'x' * (number % 300)}\n" for number in range(2000))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def backwards(data: bytes) -> bytes:
    return b"".join(data[begin : begin + 7001][::-1] for begin in range(0, len(data), 7001))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_output_is_exact_wherever_the_connections_are_cut(service: Service, seed: int) -> None:
    """The answer to the submission may be cut as well: it is repeated, and starts nothing twice."""
    with CuttingProxy(service, random.Random(seed), most=150_000) as proxy:
        name = f"cut {seed}"
        words = ["run", "--name", name, "--separate-stderr", "--", "python3", "-c", BOTH]
        with started(*words, environment=at(service, proxy.port)) as command:
            out, err = finish(command)
    assert proxy.cuts > 10
    assert digest(out) == digest(TEXT.encode())
    assert digest(err) == digest(backwards(TEXT.encode()))
    assert the_job(service, name)["state"] == "succeeded"


def test_binary_output_is_exact_wherever_the_connections_are_cut(service: Service) -> None:
    with CuttingProxy(service, random.Random(4), most=150_000) as proxy:
        words = ["run", "--", "python3", "-c", f"{PIECES}\nsys.exit(9)"]
        with started(*words, environment=at(service, proxy.port)) as command:
            assert digest(finish(command, 9)[0]) == digest(pieces())
    assert proxy.cuts > 5


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_logs_are_exact_wherever_the_connections_are_cut(service: Service, stream: str) -> None:
    job = service.submit(argv=["python3", "-c", BOTH])
    expected = TEXT.encode() if stream == "stdout" else backwards(TEXT.encode())
    words = ["logs", "-f", job["id"], *(["--stderr"] if stream == "stderr" else [])]

    with (
        CuttingProxy(service, random.Random(5), most=150_000) as proxy,
        started(*words, environment=at(service, proxy.port)) as command,
    ):
        assert digest(finish(command)[0]) == digest(expected)
    assert proxy.cuts > 5
    assert run(service, *words, "--tail", "100")[0] == expected[-100:]


def worker_of(service: Service) -> int:
    master = next(pid for pid in children_of(service.pid) if b"web" in _command_line(pid))
    return children_of(master)[0]


def test_output_is_exact_over_the_death_of_a_worker_and_a_restart(start_service: StartService) -> None:
    service = start_service({"server": {"workers": 1}})
    script = f"{SLOWLY}\nwhile not Path('go').exists(): time.sleep(0.02)\nos.write(1, b'end'); sys.exit(3)"
    with started("run", "--name", "restarts", "python3", "-c", script, environment=at(service)) as command:
        found = Reader(command)
        assert eventually(lambda: found.size > 10_000, within=30)
        job = the_job(service, "restarts")
        service.http.close()
        for _ in range(2):
            os.kill(worker_of(service), signal.SIGKILL)
            assert found.grows()
        assert service.stop() == 0
        again = start_service({"server": {"workers": 1}}, port=service.port)
        assert eventually(lambda: found.size == len(pieces()), within=60)
        again.http.close()
        for pid in [
            pid for pid in again.processes() if b"jobrunner" in _command_line(pid) or b"gunicorn" in _command_line(pid)
        ]:
            os.kill(pid, signal.SIGKILL)
        assert again.process
        again.process.wait()
        last = start_service(port=service.port)
        assert eventually(lambda: "adopted process" in last.log.read_text())
        step(last, job, "go")
        command.wait(60)
        assert command.returncode == 3
        assert digest(found.join()) == digest(pieces() + b"end")


class Reader:
    """Reads the stdout of a command as it comes."""

    def __init__(self, command: Process) -> None:
        self._command = command
        self._found: list[bytes] = []
        self.size = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._command.stdout
        while data := os.read(self._command.stdout.fileno(), 1 << 16):
            self._found.append(data)
            self.size += len(data)

    def grows(self) -> bool:
        """Wait until more has come."""
        before = self.size
        return eventually(lambda: self.size > before, within=30)

    def join(self) -> bytes:
        """Return all, once there is no more."""
        self._thread.join(60)
        return b"".join(self._found)


def test_when_the_service_stays_away_it_says_how_to_go_on(start_service: StartService) -> None:
    service = start_service()
    words = ["run", "--name", "away", "--patience", "1", "--shell", f"echo one; {until('go')}; echo two"]
    with started(*words, environment=at(service)) as command:
        assert command.stdout
        assert command.stdout.readline() == b"one\n"
        job = the_job(service, "away")
        assert service.stop() == 0
        out, err = finish(command, UNREACHABLE)
    assert out == b""
    assert f"jobrunner logs -f {job['id']}".encode() in err

    again = start_service(port=service.port)
    assert again.get(f"/v1/jobs/{job['id']}").json()["state"] == "running"  # nobody has canceled it
    step(again, job, "go")
    assert run(again, "logs", "-f", job["id"])[0] == b"one\ntwo\n"


def test_a_seat_among_the_followers_is_waited_for(start_service: StartService) -> None:
    service = start_service({"server": {"max_followers": 1, "workers": 1}})
    other = service.submit(command=until("go"))
    with followed(service, other):
        _, err = run(service, "run", "--patience", "1", "--shell", "echo x", code=UNREACHABLE)
        assert b"jobrunner logs -f" in err
        with started("run", "--name", "waits", "--shell", "echo x", environment=at(service)) as command:
            assert eventually(lambda: the_job(service, "waits")["state"] == "succeeded")
            assert command.poll() is None
            step(service, other, "go")
            assert finish(command) == (b"x\n", b"")


# ── an answer that is lost ──


def losing_answers(service: Service, number: int) -> tuple[Listener, list[bytes]]:
    """Pass requests on to the service, and swallow the first so many answers."""
    heads: list[bytes] = []

    def serve(client: socket.socket) -> None:
        if len(heads) == number:
            relay(client, service)
            return
        with socket.create_connection(("127.0.0.1", service.port)) as target:
            head, body = read_request(client)
            heads.append(head)
            target.sendall(head + body)
            target.recv(100)  # it has been done

    return Listener(serve), heads


@pytest.mark.parametrize("detach", [False, True])
def test_a_submission_whose_answer_was_lost_starts_nothing_twice(service: Service, detach: bool) -> None:
    listener, heads = losing_answers(service, 2)
    name = f"lost answer {detach}"
    with listener:
        words = ["run", *(["-d"] if detach else []), "--name", name, "echo", "once"]
        out, err = run(service, *words, environment=at(service, listener.port))

    job = the_job(service, name)
    assert (out, err) == (f"{job['id']}\n".encode() if detach else b"once\n", b"")
    keys = [field for head in heads for field in head.split(b"\r\n") if field.startswith(b"Idempotency-Key")]
    assert len(keys) == 2
    assert len(set(keys)) == 1


@pytest.mark.parametrize("answer", [b"", http("502 Bad Gateway", "<html>")])
def test_when_no_answer_comes_it_says_how_to_repeat_it(service: Service, answer: bytes) -> None:
    with answering(answer) as deaf:
        _, err = run(service, "run", "--patience", "1", "true", code=UNREACHABLE, environment=at(service, deaf.port))
        assert deaf.connections > 1
    assert b"--idempotency-key" in err


def test_when_a_submission_may_have_been_heard_a_refusal_later_does_not_hide_it(service: Service) -> None:
    busy = http("503 Service Unavailable", '{"detail": "full"}', Retry_After="9")
    with answering(b"", busy) as deaf:
        _, err = run(service, "run", "--patience", "5", "true", code=UNREACHABLE, environment=at(service, deaf.port))
    assert b"--idempotency-key" in err


def test_a_gateway_that_stays_without_its_service_is_given_up(service: Service) -> None:
    job = service.run(command="echo x")
    with answering(http("202 Accepted", json.dumps(job)), http("502 Bad Gateway", "<html>")) as gateway:
        _, err = run(service, "run", "--patience", "1", "x", code=UNREACHABLE, environment=at(service, gateway.port))
    assert f"jobrunner logs -f {job['id']}".encode() in err


def test_a_gateway_without_its_service_is_waited_for(service: Service) -> None:
    """nginx, say, while the service behind it restarts."""
    broken = http("502 Bad Gateway", "<html>")
    seen: list[bytes] = []

    def serve(client: socket.socket) -> None:
        if len(seen) == 3:
            relay(client, service)
            return
        seen.append(read_request(client)[0])
        client.sendall(broken)

    with Listener(serve) as gateway:
        assert run(service, "run", "echo", "x", environment=at(service, gateway.port)) == (b"x\n", b"")
