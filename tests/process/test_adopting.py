"""Processes that another executor has started: found again by their record, or by their cookie, and watched."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.spec import COOKIE
from jobrunner.executor.adopting import AdoptedProcess, adopt, find_by_cookie, identify
from jobrunner.executor.process import StatusUnknown
from jobrunner.executor.spawning import ChildProcess
from jobrunner.proc import boot_id
from jobrunner.spool import ProcessRecord
from tests.process.conftest import PATH, RUNS_ON, Spawn, has_ended
from tests.service import ROOT, eventually


def no_end(_pid: int, _start_ticks: int) -> None:
    """No supervisor has written anything down."""


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
from jobrunner.executor.adopting import adopt
from jobrunner.executor.process import StatusUnknown
from jobrunner.executor.spawning import ChildProcess
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


def end_untold(child: ChildProcess, adopted: AdoptedProcess) -> None:
    """End a process, and reap it, as on Linux before 6.15: its descriptor does not know PIDFD_GET_INFO."""
    os.close(adopted.pidfd)
    adopted.pidfd, outbox = os.pipe()
    os.close(outbox)
    child.signal_group(signal.SIGKILL)
    assert has_ended(child)
    child.release()


def test_the_status_is_unknown_where_the_kernel_does_not_tell(spawned: Spawn) -> None:
    child = spawned(*RUNS_ON)
    adopted = adopt(identify(child), no_end)
    assert adopted is not None
    end_untold(child, adopted)

    with pytest.raises(StatusUnknown):
        adopted.exit_status()
    adopted.release()


def test_where_the_kernel_does_not_tell_the_supervisor_may(spawned: Spawn) -> None:
    child = spawned(*RUNS_ON)
    record = identify(child)
    written = {(record.pid, record.start_ticks): 9 << 8}
    adopted = adopt(record, lambda pid, start_ticks: written.get((pid, start_ticks)))
    assert adopted is not None
    end_untold(child, adopted)

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
