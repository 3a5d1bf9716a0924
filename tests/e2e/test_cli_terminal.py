"""``run`` and ``wait`` on a terminal: a line tells how it stands, and is never in the way of output."""

import json
import os
import pty
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import StartService
from tests.e2e.commands import (
    BROKEN_PIPE,
    CANCELED,
    DONE,
    Listener,
    at,
    finish,
    http,
    pass_on_to,
    read_request,
    started,
    the_job,
)
from tests.e2e.test_follow import step, until
from tests.service import Service, eventually

ERASE = b"\r\x1b[K"


class Screen:
    """A terminal, and all that was written there."""

    def __init__(self) -> None:
        self.ours, self.its = pty.openpty()
        self._found = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.ours, 1 << 16):
                self._found += data
        except OSError:  # EIO: nobody has it open any more
            pass

    @property
    def text(self) -> bytes:
        """What was written so far, with line ends as they were before the terminal made two characters of them."""
        return self._found.replace(b"\r\n", b"\n")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.ours, keys)

    def shows(self, text: bytes) -> bool:
        """Wait until this was written."""
        return eventually(lambda: text in self.text, within=30)

    @property
    def is_left(self) -> bytes:
        """What is still to be seen at the end."""
        return b"\n".join(line.rpartition(ERASE)[2] for line in self.text.split(b"\n"))

    def close(self) -> None:
        """Take it away, once nobody uses it."""
        os.close(self.its)
        self._thread.join(30)
        os.close(self.ours)


@contextmanager
def screen() -> Iterator[Screen]:
    """Open a terminal."""
    opened = Screen()
    try:
        yield opened
    finally:
        opened.close()


def test_while_the_output_goes_elsewhere_a_line_tells_how_it_stands(service: Service) -> None:
    script = f"echo out; {until('go')}; echo err >&2; {until('on')}; echo more"
    with (
        screen() as terminal,
        started("run", "--name", "line", "--shell", script, environment=at(service), stderr=terminal.its) as command,
    ):
        assert terminal.shows(b" running")
        assert terminal.shows(b", 4 bytes")
        job = the_job(service, "line")
        step(service, job, "go")
        assert terminal.shows(b"err\n")
        assert terminal.shows(b", 8 bytes")
        step(service, job, "on")
        assert finish(command)[0] == b"out\nmore\n"
    assert terminal.is_left == b"err\n"


def test_a_line_that_the_job_has_not_ended_is_left_alone(service: Service) -> None:
    """A progress bar of the job's own, for one. The job is silent for longer than it takes the line to come."""
    script = "printf half >&2; sleep 2.5; echo ' line' >&2; sleep 2.5"
    words = ["run", "--shell", script]
    with screen() as terminal, started(*words, environment=at(service), stderr=terminal.its) as command:
        finish(command)
    assert terminal.text.partition(b"half")[2].startswith(b" line\n" + ERASE)
    assert terminal.is_left == b"half line\n"


def test_what_reads_the_output_may_write_to_the_terminal(service: Service) -> None:
    """As in ``jobrunner run make | tee log``: the line steps aside for it, too, and leaves half a line alone."""
    script = f"{until('go')}; printf half; sleep 2.5; echo; {until('on')}; printf 'binary\\0'; {until('end')}"
    with (
        screen() as terminal,
        started("run", "--name", "piped", "--shell", script, environment=at(service), stderr=terminal.its) as command,
    ):
        assert terminal.shows(b" running")
        job = the_job(service, "piped")
        step(service, job, "go")
        assert command.stdout
        assert command.stdout.read(4) == b"half"
        assert eventually(lambda: terminal.text.endswith(ERASE))
        assert command.stdout.read(1) == b"\n"
        assert terminal.shows(b", 5 bytes")
        assert b", 4 bytes" not in terminal.text
        step(service, job, "on")
        assert command.stdout.read(7) == b"binary\0"  # which no terminal is meant for
        assert terminal.shows(b", 12 bytes")
        step(service, job, "end")
        finish(command)


def test_on_one_terminal_with_the_output_there_is_nothing_else(service: Service) -> None:
    """Both streams keep their order there."""
    script = "sleep 2.5; for i in $(seq 50); do echo out $i; echo err $i >&2; done; sleep 2.5"
    with (
        screen() as terminal,
        started("run", "--shell", script, environment=at(service), stdout=terminal.its, stderr=terminal.its) as command,
    ):
        finish(command)
    assert terminal.text == "".join(f"out {number}\nerr {number}\n" for number in range(1, 51)).encode()


def test_on_one_terminal_a_line_tells_why_nothing_happens_yet(start_service: StartService) -> None:
    """First the queue is full, then the job waits in it."""
    service = start_service({"executor": {"max_running": 1, "max_queued": 1}})
    first = service.submit(command=until("go"))
    second = service.submit(command="true")
    third = ["run", "--name", "third", "--", "echo", "out"]
    with (
        screen() as terminal,
        started(*third, environment=at(service), stdout=terminal.its, stderr=terminal.its) as command,
    ):
        assert terminal.shows(b"not submitted: 1 jobs wait already ([executor] max_queued)")
        service.post(f"/v1/jobs/{second['id']}/cancel")
        assert terminal.shows(b" queued")
        step(service, first, "go")
        finish(command)
    assert terminal.is_left == b"out\n"


def test_a_connection_that_is_lost_is_told(start_service: StartService) -> None:
    service = start_service()
    with screen() as terminal:
        words = ["run", "--name", "lost", "--shell", f"echo one; {until('go')}; echo two"]
        with started(*words, environment=at(service), stdout=terminal.its, stderr=terminal.its) as command:
            assert terminal.shows(b"one\n")
            job = the_job(service, "lost")
            assert service.stop() == 0
            assert terminal.shows(b"Connection refused; trying again")
            step(start_service(port=service.port), job, "go")
            finish(command)
    assert terminal.is_left == b"one\ntwo\n"


def test_a_service_that_goes_behind_the_submission_is_waited_for(service: Service) -> None:
    job = service.submit(command="echo x")
    answer = http("202 Accepted", json.dumps(job))

    def serve(client: socket.socket) -> None:
        read_request(client)
        submission.refuse()
        client.sendall(answer)

    with (
        screen() as terminal,
        Listener(serve) as submission,
        started("run", "echo", "x", environment=at(service, submission.port), stderr=terminal.its) as command,
    ):
        assert terminal.shows(b"Connection refused; trying again")
        with pass_on_to(service, port=submission.port):
            assert finish(command)[0] == b"x\n"


def test_a_terminal_that_can_not_erase_is_spared(service: Service) -> None:
    environment = at(service, TERM="dumb")
    with screen() as terminal, started("run", "sleep", "2.5", environment=environment, stderr=terminal.its) as command:
        finish(command)
    assert terminal.text == b""


def test_who_waits_sees_for_what(service: Service) -> None:
    job = service.submit(command=until("go"))
    with screen() as terminal, started("wait", job["id"], environment=at(service), stderr=terminal.its) as command:
        assert terminal.shows(b" running")
        step(service, job, "go")
        finish(command)
    assert terminal.is_left == b""


def test_a_terminal_is_not_the_jobs_stdin(service: Service) -> None:
    with screen() as terminal, started("run", "cat", environment=at(service), stdin=terminal.its) as command:
        assert finish(command) == (b"", b"")


@pytest.mark.parametrize(("command", "code"), [("run", CANCELED), ("wait", -2), ("logs", -2)])
def test_ctrl_c_ends_what_is_on_the_terminal(service: Service, command: str, code: int) -> None:
    """Of the commands only ``run`` takes the job with it."""
    name = f"ctrl-c {command}"
    script = "echo ready; exec sleep 60"
    words = ["run", "--name", name, "--shell", script]
    if command != "run":
        job = service.submit(name=name, command=script)
        words = ["wait", job["id"]] if command == "wait" else ["logs", "-f", job["id"]]
    with (
        screen() as terminal,
        started(
            *words,
            environment=at(service),
            stdin=terminal.its,
            stdout=terminal.its,
            stderr=terminal.its,
            terminal=terminal.its,
        ) as process,
    ):
        assert terminal.shows(b" running" if command == "wait" else b"ready\n")
        terminal.type(b"\x03")
        finish(process, code)
    job = the_job(service, name)
    assert b"Traceback" not in terminal.text
    assert b"Aborted" not in terminal.text
    assert (job["cancel"] is not None) == (command == "run")
    assert (job["state"] == "canceled") == (command == "run")
    service.post(f"/v1/jobs/{job['id']}/cancel")


def test_tables_are_for_people_on_a_terminal_only(service: Service) -> None:
    script = service.data_dir / "scripts" / "described"
    script.write_text("#!/bin/sh\n# Says\n# nothing.\n")
    script.chmod(0o755)

    with screen() as terminal, started("scripts", environment=at(service), stdout=terminal.its) as command:
        finish(command)
    assert b"description" in terminal.text
    with started("scripts", environment=at(service)) as command:
        out, _ = finish(command, DONE)
    assert b"described\tSays nothing.\n" in out
    assert b"description" not in out


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--json"], ["list", "-h"], ["status", "1"], ["run", "-d", "true"]]
)
def test_who_reads_no_more_is_told_nothing(service: Service, words: list[str]) -> None:
    """As in ``jobrunner list | true``."""
    service.run(argv=["true"])
    reading, writing = os.pipe()
    os.close(reading)

    with started(*words, environment=at(service), stdout=writing) as command:
        os.close(writing)
        assert finish(command, BROKEN_PIPE)[1] == b""


def test_a_table_for_nobody_is_no_mistake(service: Service) -> None:
    service.run(argv=["true"])

    with started("list", environment=at(service), prefix=("sh", "-c", 'exec "$@" >&-', "sh")) as command:
        assert finish(command) == (b"", b"")
