"""``jobrunner run``: a command over there feels as if it ran here."""

import array
import fcntl
import hashlib
import json
import os
import subprocess
import termios
from pathlib import Path

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.e2e.commands import (
    BROKEN_PIPE,
    DONE,
    FAILED,
    NO_SUCH_COMMAND,
    NOT_EXECUTABLE,
    REFUSED,
    TIMED_OUT,
    TROUBLE,
    UNREACHABLE,
    USAGE,
    answering,
    at,
    finish,
    http,
    run,
    started,
    the_job,
)
from tests.e2e.test_follow import PIECES, pieces, step, until
from tests.e2e.test_output_limit import MAX, NUMBERS
from tests.service import Service, eventually, free_port

PIPE_BUFFER = 1 << 16
"""Bytes that a pipe takes before anybody reads (pipe(7))."""


def test_both_streams_and_the_exit_code_are_the_jobs(service: Service) -> None:
    assert run(service, "run", "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7) == (b"out\n", b"err\n")


def test_options_end_where_the_command_begins(service: Service) -> None:
    assert run(service, "run", "echo", "--name", "-n", "--", "x") == (b"--name -n -- x\n", b"")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["true"], DONE, b""),
        (["--shell", "exit 255"], 255, b""),
        (["--shell", "kill -9 $$"], 137, b"SIGKILL"),
        (["--shell", "kill -SEGV $$"], 139, b"SIGSEGV"),
        (["--timeout", "0.2", "--grace", "5", "sleep", "60"], TIMED_OUT, b"timed out after 0.2 s"),
        (["there-is-no-such-command"], NO_SUCH_COMMAND, b"there-is-no-such-command"),
        (["/etc/passwd"], NOT_EXECUTABLE, b"Permission denied"),
        (["--cwd", "/there/is/none", "true"], TROUBLE, b"/there/is/none"),
        (["--script", "there-is-none"], USAGE, b"there-is-none"),
        (["--timeout", "-1", "true"], USAGE, b"--timeout"),
        (["--timeout", "nan", "true"], USAGE, b"--timeout"),
        (["--exclusive", "true"], USAGE, b"name"),
        ([], USAGE, b"command"),
        (["--json", "true"], USAGE, b"--detach"),
    ],
)
def test_it_exits_as_the_command_would_have(service: Service, words: list[str], code: int, told: bytes) -> None:
    out, err = run(service, "run", *words, code=code)

    assert out == b""
    assert told in err
    assert (err == b"") == (told == b"")


def test_a_job_that_is_lost_is_trouble(start_service: StartService) -> None:
    """It is ended while nobody who could know its exit code is there."""
    service = start_service()
    with started("run", "--name", "x", "--shell", "echo $$; exec sleep 60", environment=at(service)) as command:
        assert command.stdout
        pid = int(command.stdout.readline())
        for own in [pid for pid in service.processes() if pid != service.pid]:
            os.kill(own, 9)
        os.kill(service.pid, 9)
        assert service.process
        service.process.wait()
        assert eventually(lambda: not Path(f"/proc/{pid}").exists())  # reaped, by whoever adopts orphans here
        service.http.close()
        start_service(port=service.port)
        out, err = finish(command, TROUBLE)
    assert (out, b"worker-lost" in err) == (b"", True)


def test_lines_come_while_the_job_runs(service: Service) -> None:
    """The job writes the next line only when the one before was seen."""
    script = "; ".join(f"echo line {number}; {until(f'go{number}')}; echo err {number} >&2" for number in range(4))
    with started("run", "--name", "line by line", "--shell", f"{script}; exit 4", environment=at(service)) as command:
        job = the_job(service, "line by line")
        assert command.stdout
        assert command.stderr
        for number in range(4):
            assert command.stdout.readline() == f"line {number}\n".encode()
            step(service, job, f"go{number}")
            assert command.stderr.readline() == f"err {number}\n".encode()
        assert finish(command, 4) == (b"", b"")


def test_bytes_are_the_jobs_own(service: Service) -> None:
    out, err = run(service, "run", "--", "python3", "-c", PIECES + "\nos.write(2, bytes(range(256)))")

    assert hashlib.sha256(out).hexdigest() == hashlib.sha256(pieces()).hexdigest()
    assert err == bytes(range(256))


def test_what_was_closed_is_nothing(service: Service) -> None:
    """No connection is taken for a stream."""
    for closed, code in (("<&-", DONE), (">&-", FAILED), ("2>&-", DONE), ("<&- 2>&-", DONE)):
        prefix = ("sh", "-c", f'exec "$@" {closed}', "sh")
        with started(
            "run", "--separate-stderr", "sh", "-c", "cat; echo out", environment=at(service), prefix=prefix
        ) as command:
            out, err = finish(command, code)
        assert out == (b"" if code else b"out\n")
        assert (b"Bad file descriptor" in err) == bool(code)


def test_streams_that_go_to_one_place_keep_their_order(service: Service, tmp_path: Path) -> None:
    """Only their order tells them apart there."""
    script = "for i in $(seq 200); do echo out $i; echo err $i >&2; done"
    expected = "".join(f"out {number}\nerr {number}\n" for number in range(1, 201)).encode()

    with started("run", "--shell", script, environment=at(service), stderr=subprocess.STDOUT) as command:
        assert finish(command)[0] == expected
    with (
        (tmp_path / "file").open("wb") as file,
        started("run", "--shell", script, environment=at(service), stdout=file, stderr=file) as command,
    ):
        finish(command)
    assert (tmp_path / "file").read_bytes() == expected


def test_a_job_that_is_detached_runs_by_itself(service: Service) -> None:
    out, err = run(service, "run", "--detach", "--name", "detached", "--shell", f"{until('go')}; cat", stdin=b"in")
    job = the_job(service, "detached")

    assert (out, err) == (f"{job['id']}\n".encode(), b"")
    assert job["state"] in {"queued", "running"}
    step(service, job, "go")
    assert service.wait(job["id"])["stdout"]["text"] == "in"
    shown = json.loads(run(service, "run", "-d", "--json", "true")[0])
    assert check_job(shown)["steps"][0]["argv"] == ["true"]


def test_a_key_makes_the_second_run_another_look_at_the_first(service: Service) -> None:
    words = ["run", "--idempotency-key", "once", "--name", "once", "--shell", "echo $JOBRUNNER_JOB_NUMBER; exit 3"]

    first, second = (run(service, *words, code=3) for _ in range(2))

    assert first == second == (f"{the_job(service, 'once')['number']}\n".encode(), b"")
    assert b"Idempotency-Key" in run(service, "run", "--idempotency-key", "once", "true", code=USAGE)[1]


def test_who_reads_no_more_ends_the_job(service: Service) -> None:
    """As SIGPIPE would: ``yes | head -1``."""
    with started("run", "--name", "unread", "yes", environment=at(service)) as command:
        assert command.stdout
        assert command.stdout.read(2) == b"y\n"
        command.stdout.close()
        command.stdout = None
        assert finish(command, BROKEN_PIPE)[1] == b""
    assert service.wait(the_job(service, "unread")["id"])["state"] == "canceled"


def test_a_pipe_that_somebody_has_made_non_blocking_takes_all(service: Service) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    size = 3 << 20
    with (
        open(reading, "rb") as ours,
        started("run", "head", "-c", str(size), "/dev/zero", environment=at(service), stdout=writing) as command,
    ):
        os.close(writing)
        assert eventually(lambda: unread(reading) == PIPE_BUFFER, within=30)
        assert ours.read() == bytes(size)
        finish(command)


def unread(pipe: int) -> int:
    """Return how many bytes wait in a pipe."""
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0]


def test_a_disk_that_is_full_ends_the_job(service: Service) -> None:
    with (
        open("/dev/full", "wb") as full,
        started("run", "--name", "full", "yes", environment=at(service), stdout=full) as command,
    ):
        assert b"No space left on device" in finish(command, FAILED)[1]
    assert service.wait(the_job(service, "full")["id"])["state"] == "canceled"


def test_what_is_no_longer_kept_is_told(start_service: StartService) -> None:
    service = start_service({"output": {"max_bytes": "64K"}})
    words = ["--idempotency-key", "long", "--name", "long", "seq", "200000"]
    run(service, "run", "--detach", *words)
    job = service.wait(the_job(service, "long")["id"])
    dropped = job["stdout"]["dropped_bytes"]
    start, stop = MAX // 4, MAX // 4 + dropped
    notice = f"jobrunner: {dropped} bytes of stdout are no longer kept, {start} to {stop - 1}\n".encode()

    for command in (["run", *words], ["logs", "-f", job["id"]]):
        assert run(service, *command) == (NUMBERS[:start] + NUMBERS[stop:], notice)
    assert run(service, "logs", "-f", "--stderr", job["id"]) == (b"", b"")


def test_a_job_that_is_ended_for_writing_too_much_is_trouble(start_service: StartService) -> None:
    service = start_service({"output": {"max_bytes": "64K", "on_limit": "kill"}})

    assert b"output-limit" in run(service, "run", "seq", "2000000", code=TROUBLE)[1]


def test_a_job_that_may_not_be_watched_goes_on(service: Service) -> None:
    secret = run(service, "token", "create", "blind", "--scope", "exec")[0].decode().strip()

    _, err = run(
        service, "run", "--name", "blind", "true", code=REFUSED, environment=at(service, JOBRUNNER_TOKEN=secret)
    )

    job = the_job(service, "blind")
    assert f"job {job['id']} goes on by itself".encode() in err
    assert service.wait(job["id"])["state"] == "succeeded"


# ── a service that can't be used ──


def test_a_service_that_is_not_there_is_not_waited_for(service: Service) -> None:
    for command in (["run", "true"], ["run", "-d", "true"], ["wait", "1"], ["logs", "-f", "1"]):
        _, err = run(service, *command, code=UNREACHABLE, environment=at(service, free_port()))
        assert err.count(b"\n") == 1
        assert b"Connection refused" in err


def test_a_wrong_token_is_refused_at_once(service: Service) -> None:
    for command in (["run", "true"], ["wait", "1"], ["logs", "-f", "1"]):
        run(service, *command, code=REFUSED, environment=at(service, JOBRUNNER_TOKEN="wrong"))


def test_when_patience_is_at_its_end_a_submission_is_refused(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1, "max_queued": 1}})
    jobs = [service.submit(command=until("go")) for _ in range(2)]

    assert b"max_queued" in run(service, "run", "--patience", "1", "true", code=REFUSED)[1]

    assert len(service.get("/v1/jobs").json()["jobs"]) == 2
    for job in jobs:
        run(service, "cancel", job["id"])


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (http("200 OK", "<html>Welcome"), TROUBLE, b"something else"),
        (http("200 OK", "[]", Content_Type="application/json"), TROUBLE, b"something else"),
        (http("500 Internal Server Error", "<html>"), TROUBLE, b"500 Internal Server Error"),
        (http("507 Insufficient Storage", '{"detail": "disk full"}'), TROUBLE, b"disk full"),
        (http("301 Moved", Location="https://there/"), TROUBLE, b"https://there/"),
        (http("421 Misdirected Request", '{"detail": "not a name"}'), REFUSED, b"not a name"),
        (http("409 Conflict", '{"detail": "in use", "job_id": "the-other"}'), REFUSED, b"the-other"),
        (b"SSH-2.0-OpenSSH\r\n", UNREACHABLE, b"SSH"),
    ],
)
def test_whatever_answers_is_told_in_a_line(service: Service, answer: bytes, code: int, told: bytes) -> None:
    with answering(answer) as somebody:
        environment = at(service, somebody.port)
        out, err = run(service, "run", "--patience", "0.5", "true", code=code, environment=environment)

    assert out == b""
    assert told in err
