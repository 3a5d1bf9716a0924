"""Processes that an executor starts: how they are made, and watched without being reaped."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode
from jobrunner.executor.spawning import ChildProcess, SpawnError
from tests.factories import is_dead
from tests.process.conftest import RUNS_ON, Spawn, has_ended
from tests.process.running import open_descriptors
from tests.service import eventually


def descriptors(child: ChildProcess) -> dict[str, str]:
    """Return what a process has open; the loader has its libraries open for a moment."""
    found = {}
    for fd in Path(f"/proc/{child.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found[fd.name] = str(fd.readlink())
    return found


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


# ── spawn ──


def test_a_process_leads_a_session_of_its_own(spawned: Spawn) -> None:
    child = spawned(*RUNS_ON)

    assert os.getsid(child.pid) == child.pid
    assert os.getpgid(child.pid) == child.pid


def test_a_process_has_its_three_streams_open_and_nothing_else(spawned: Spawn, tmp_path: Path) -> None:
    """Not even a descriptor that was made inheritable."""
    careless = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(careless, True)
    try:
        child = spawned(*RUNS_ON)

        expected = {"0": "/dev/null", "1": str(tmp_path / "stdout"), "2": str(tmp_path / "stderr")}
        assert eventually(lambda: descriptors(child) == expected), descriptors(child)
    finally:
        os.close(careless)


def test_processes_started_at_once_do_not_inherit_each_others_streams(spawned: Spawn) -> None:
    started: list[ChildProcess] = []
    threads = [threading.Thread(target=lambda: started.append(spawned(*RUNS_ON))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(started) == 16
    assert all(eventually(lambda: sorted(descriptors(child)) == ["0", "1", "2"]) for child in started)  # noqa: B023


def test_a_process_has_exactly_the_environment_it_was_given(spawned: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBRUNNER_TOKEN", "secret")
    child = spawned(*RUNS_ON, env={"A": "1", "EMPTY": "", "UMLAUT": "ä\n"})

    environ = Path(f"/proc/{child.pid}/environ")
    # It is empty for a moment in the middle of execve(2).
    assert eventually(environ.read_bytes)
    assert environ.read_bytes() == "A=1\0EMPTY=\0UMLAUT=ä\n\0".encode()


def test_a_process_blocks_no_signal_and_may_die_of_a_broken_pipe(spawned: Spawn) -> None:
    """Python itself ignores SIGPIPE, which ``yes | head`` would inherit."""
    child = spawned(*RUNS_ON)

    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0


def test_a_program_without_a_slash_is_looked_for_in_the_path_of_the_job(spawned: Spawn, tmp_path: Path) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    script(bin_dir / "only-here", "#!/bin/sh\nexit 5\n")
    child = spawned("only-here", env={"PATH": str(bin_dir)})

    assert has_ended(child)
    assert child.exit_status() == ExitStatus(code=5)


def test_many_processes_leave_no_descriptor_behind(spawned: Spawn) -> None:
    before = open_descriptors()
    for _ in range(20):
        child = spawned("/bin/true")
        assert has_ended(child)
        child.release()
        with pytest.raises(SpawnError):
            spawned("/no/such/program")

    assert open_descriptors() == before


# ── what can't be started ──


def test_a_program_that_is_not_there(spawned: Spawn) -> None:
    with pytest.raises(SpawnError, match="No such file or directory: no-such-program") as caught:
        spawned("no-such-program")

    assert caught.value.error.code is ErrorCode.NOT_FOUND


def test_a_program_below_a_file(spawned: Spawn) -> None:
    with pytest.raises(SpawnError, match="Not a directory: /bin/sh/x") as caught:
        spawned("/bin/sh/x")

    assert caught.value.error.code is ErrorCode.NOT_FOUND


def test_a_file_that_is_not_executable(spawned: Spawn, tmp_path: Path) -> None:
    program = script(tmp_path / "plain", "#!/bin/sh\n", mode=0o644)

    with pytest.raises(SpawnError, match=f"Permission denied: {program}") as caught:
        spawned(program)

    assert caught.value.error.code is ErrorCode.PERMISSION_DENIED


def test_a_script_whose_interpreter_is_not_there(spawned: Spawn, tmp_path: Path) -> None:
    """The system says only ``No such file or directory`` of a file that is plainly there."""
    program = script(tmp_path / "odd", "#!/no/such/interpreter\n")

    with pytest.raises(SpawnError, match="the interpreter it names is not") as caught:
        spawned(program)

    assert caught.value.error.code is ErrorCode.NOT_FOUND


def test_a_text_without_an_interpreter(spawned: Spawn, tmp_path: Path) -> None:
    program = script(tmp_path / "text", "echo hello\n")

    with pytest.raises(SpawnError, match=f"Exec format error: {program}") as caught:
        spawned(program)

    assert caught.value.error.code is ErrorCode.EXEC_FORMAT


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_working_directory_that_is_none(spawned: Spawn, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    cwd = tmp_path / name

    with pytest.raises(SpawnError, match=f": {cwd}$") as caught:
        spawned("/bin/true", cwd=cwd)

    assert caught.value.error.code is ErrorCode.BAD_CWD


@pytest.mark.parametrize("argv", [("/bin/true", "x" * 200_000), ("/bin/true", *["x" * 100_000] * 100)])
def test_arguments_that_are_too_long(spawned: Spawn, argv: tuple[str, ...]) -> None:
    """Both limits of execve(2): 128 KiB for one argument, a part of the stack for all."""
    with pytest.raises(SpawnError, match="Argument list too long") as caught:
        spawned(*argv)

    assert caught.value.error.code is ErrorCode.ARGUMENTS_TOO_LONG


def test_a_file_that_is_still_being_written_is_tried_again(spawned: Spawn, tmp_path: Path) -> None:
    """execve(2) refuses with ETXTBSY while anybody has it open for writing."""
    program = script(tmp_path / "busy", "#!/bin/sh\nexit 4\n")
    holds = "import sys, time; f = open(sys.argv[1], 'a'); print(flush=True); time.sleep(0.1)"
    with subprocess.Popen([sys.executable, "-c", holds, program], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        child = spawned(program)

    assert has_ended(child)
    assert child.exit_status() == ExitStatus(code=4)


# ── our own children ──


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 0", ExitStatus(code=0)),
        ("exit 255", ExitStatus(code=255)),
        ("exit 137", ExitStatus(code=137)),
        ("kill -KILL $$", ExitStatus(signal=signal.SIGKILL)),
        ("kill -TERM $$", ExitStatus(signal=signal.SIGTERM)),
        ("ulimit -c 0; kill -ABRT $$", ExitStatus(signal=signal.SIGABRT)),
        ("kill -RTMIN+5 $$ || kill -39 $$", ExitStatus(signal=39)),
    ],
)
def test_a_status_is_seen_without_being_reaped(spawned: Spawn, command: str, status: ExitStatus) -> None:
    child = spawned("/bin/sh", "-c", command)

    assert has_ended(child)
    assert [child.exit_status(), child.exit_status()] == [status, status]
    assert Path(f"/proc/{child.pid}").exists(), "the zombie has gone"
    child.release()
    assert not Path(f"/proc/{child.pid}").exists()


def test_a_process_that_runs_has_no_status(spawned: Spawn) -> None:
    assert spawned(*RUNS_ON).exit_status() is None


def test_a_stopped_process_has_no_status(spawned: Spawn) -> None:
    child = spawned(*RUNS_ON)
    child.signal_group(signal.SIGSTOP)

    assert eventually(lambda: "T (stopped)" in Path(f"/proc/{child.pid}/status").read_text())
    assert child.exit_status() is None


def test_a_process_that_is_left_is_not_reaped_by_the_start_of_another(spawned: Spawn) -> None:
    """subprocess reaps forgotten children whenever it makes a new one."""
    child = spawned("/bin/sh", "-c", "exit 3")
    assert has_ended(child)
    pid = child.pid
    child.leave()
    del child

    spawned("/bin/true")

    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    assert info is not None
    assert info.si_status == 3


def test_a_signal_reaches_the_whole_group(spawned: Spawn, tmp_path: Path) -> None:
    child = spawned("/bin/sh", "-c", "sleep 60 & echo $! > started; wait")
    started = tmp_path / "started"
    assert eventually(lambda: started.exists() and started.read_text().endswith("\n"))

    assert child.signal_group(signal.SIGKILL)

    assert eventually(lambda: is_dead(int(started.read_text())))
