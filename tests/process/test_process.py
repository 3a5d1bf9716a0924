"""Processes: how they are made, watched without being reaped, and adopted."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.job import ErrorCode
from jobrunner.executor.process import (
    ChildProcess,
    SpawnError,
    StatusUnknown,
    adopt,
    find_by_cookie,
    identify,
    spawn,
)
from jobrunner.executor.tree import COOKIE
from jobrunner.proc import boot_id
from jobrunner.spool import JobStreams, ProcessRecord
from tests.factories import is_dead
from tests.process.running import open_descriptors
from tests.service import ROOT, eventually

PATH = "/usr/local/bin:/usr/bin:/bin"
RUNS_ON: tuple[str, ...] = ("/bin/sleep", "60")

Spawn = Callable[..., ChildProcess]


def no_end(_pid: int, _start_ticks: int) -> None:
    """No supervisor has written anything down."""


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[Spawn]:
    """Start a process whose output goes to files; it is killed and reaped at the end of the test."""
    made: list[ChildProcess] = []

    def start(*argv: str, cwd: Path = tmp_path, env: Mapping[str, str] | None = None) -> ChildProcess:
        stdin = os.open(os.devnull, os.O_RDONLY)
        stdout = os.open(tmp_path / "stdout", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        stderr = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with JobStreams(stdin, stdout, stderr) as streams:
            child = spawn(argv, cwd=str(cwd), env={"PATH": PATH} if env is None else env, streams=streams)
        made.append(child)
        return child

    yield start
    for child in made:
        if child._popen.returncode is None:  # neither released nor left
            child.signal_group(signal.SIGKILL)
            child.release()


def has_ended(child: ChildProcess) -> bool:
    return eventually(lambda: child.exit_status() is not None)


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


# ── adoption ──


def test_an_adopted_process_is_watched_by_its_record(spawned: Spawn) -> None:
    child = spawned(*RUNS_ON)
    adopted = adopt(identify(child), no_end)
    assert adopted is not None
    try:
        assert adopted.exit_status() is None
        assert adopted.signal_group(signal.SIGTERM)
        assert has_ended(child)
        assert not adopted.signal_group(signal.SIGTERM), "its pid may be another's now"
    finally:
        adopted.release()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exit 0", ExitStatus(code=0)),
        ("exit 201", ExitStatus(code=201)),
        ("kill -USR1 $$", ExitStatus(signal=signal.SIGUSR1)),
        ("ulimit -c 0; kill -SEGV $$", ExitStatus(signal=signal.SIGSEGV)),
    ],
)
def test_the_status_of_an_adopted_process_is_exact(
    spawned: Spawn, tmp_path: Path, command: str, status: ExitStatus
) -> None:
    """While its parent has not reaped it, and afterwards."""
    child = spawned("/bin/sh", "-c", f"while [ ! -e go ]; do sleep 0.01; done; {command}")
    adopted = adopt(identify(child), no_end)
    assert adopted is not None
    try:
        (tmp_path / "go").touch()
        assert has_ended(child)
        assert adopted.exit_status() == status
        child.release()
        assert adopted.exit_status() == status
    finally:
        adopted.release()


def test_a_zombie_can_be_adopted(spawned: Spawn) -> None:
    child = spawned("/bin/sh", "-c", "exit 9")
    assert has_ended(child)

    adopted = adopt(identify(child), no_end)

    assert adopted is not None
    assert adopted.exit_status() == ExitStatus(code=9)
    adopted.release()


def test_a_process_that_has_been_reaped_is_not_adopted(spawned: Spawn) -> None:
    child = spawned("/bin/true")
    record = identify(child)
    assert has_ended(child)
    child.release()

    assert adopt(record, no_end) is None


def test_another_process_with_the_same_pid_is_not_adopted(spawned: Spawn) -> None:
    record = identify(spawned(*RUNS_ON))

    assert adopt(record._replace(start_ticks=record.start_ticks - 1), no_end) is None


def test_a_process_of_another_boot_is_not_adopted(spawned: Spawn) -> None:
    record = identify(spawned(*RUNS_ON))

    assert adopt(record._replace(boot_id="00000000-0000-0000-0000-000000000000"), no_end) is None


def test_a_process_is_not_taken_for_gone_for_want_of_a_descriptor(spawned: Spawn) -> None:
    """Its descriptor comes when there is one again."""
    child = spawned(*RUNS_ON)
    record = identify(child)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # every number below is taken
    os.close(lowest)
    threading.Timer(0.3, resource.setrlimit, (resource.RLIMIT_NOFILE, before)).start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))

    adopted = adopt(record, no_end)

    assert adopted is not None
    adopted.release()


def test_a_thread_that_has_got_the_pid_is_not_adopted() -> None:
    """Threads take their ids from the same numbers; pidfd_open(2) has an error of its own for them."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert adopt(ProcessRecord(thread.native_id, 1, boot_id()), no_end) is None
    finally:
        go.set()
        thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs processes of two users")
def test_the_status_of_a_process_that_became_another_users_is_not_guessed(spawned: Spawn) -> None:
    """Of a job that ran ``sudo`` the kernel shows others 0 as the exit code in /proc (proc(5), ptrace(2))."""
    child = spawned("/bin/sh", "-c", "exit 6")
    assert has_ended(child)
    record = identify(child)
    looks = f"""
import os
from jobrunner.executor.process import StatusUnknown, adopt
from jobrunner.proc import boot_id
from jobrunner.spool import ProcessRecord
boot_id()  # what Python needs for it may be nobody else's to read
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
adopted = adopt(ProcessRecord({record.pid}, {record.start_ticks}, "{record.boot_id}"), lambda *_: None)
try:
    print(adopted.exit_status())
except StatusUnknown:
    print("unknown")
"""
    environment = {"PYTHONPATH": str(ROOT)}
    seen = subprocess.run([sys.executable, "-c", looks], env=environment, capture_output=True, text=True, check=False)

    assert seen.returncode == 0, seen.stderr
    assert seen.stdout.strip() in {"None", "unknown", str(ExitStatus(code=6))}


def test_the_status_is_unknown_where_the_kernel_does_not_tell(spawned: Spawn) -> None:
    """As on Linux before 6.15: a descriptor that does not know PIDFD_GET_INFO, of a process that is gone."""
    child = spawned(*RUNS_ON)
    adopted = adopt(identify(child), no_end)
    assert adopted is not None
    os.close(adopted.pidfd)
    adopted.pidfd, outbox = os.pipe()
    os.close(outbox)
    child.signal_group(signal.SIGKILL)
    assert has_ended(child)
    child.release()

    with pytest.raises(StatusUnknown):
        adopted.exit_status()
    adopted.release()


def test_where_the_kernel_does_not_tell_the_supervisor_may(spawned: Spawn) -> None:
    child = spawned(*RUNS_ON)
    record = identify(child)
    written = {(record.pid, record.start_ticks): 9 << 8}
    adopted = adopt(record, lambda pid, start_ticks: written.get((pid, start_ticks)))
    assert adopted is not None
    os.close(adopted.pidfd)
    adopted.pidfd, outbox = os.pipe()
    os.close(outbox)
    child.signal_group(signal.SIGKILL)
    assert has_ended(child)
    child.release()

    assert adopted.exit_status() == ExitStatus(code=9)
    adopted.release()


# ── the cookie ──


def test_a_process_is_found_by_its_cookie(spawned: Spawn) -> None:
    child = spawned(*RUNS_ON, env={COOKIE: "a-job"})

    assert eventually(lambda: find_by_cookie("a-job") == identify(child))


def test_the_cookie_has_to_be_the_whole_value(spawned: Spawn) -> None:
    spawned(*RUNS_ON, env={COOKIE: "a-job-2", "X": f"{COOKIE}=a-job"})
    assert eventually(lambda: find_by_cookie("a-job-2"))

    assert find_by_cookie("a-job") is None


def test_what_a_job_has_started_is_not_taken_for_the_job(spawned: Spawn, tmp_path: Path) -> None:
    child = spawned("/bin/sh", "-c", "sleep 60 & echo > started; exit 0", env={"PATH": PATH, COOKIE: "a-job"})
    assert has_ended(child)
    try:
        assert find_by_cookie("a-job") is None
    finally:
        child.signal_group(signal.SIGKILL)
