"""Locks between processes, which the kernel frees when their holder dies."""

import os
import signal
import time
from pathlib import Path

import pytest

from jobrunner.locks import FileLock, is_locked
from tests.service import eventually


def hold_in_child(path: Path) -> int:
    """Have a child take the lock and keep it until it is killed; return its pid."""
    pid = os.fork()
    if pid == 0:
        FileLock(path).acquire()
        signal.pause()
        os._exit(0)
    assert eventually(lambda: is_locked(path))
    return pid


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a lock."""
    return tmp_path / "a.lock"


def test_a_lock_is_held_until_it_is_released(path: Path) -> None:
    lock = FileLock(path)
    assert not is_locked(path)

    assert lock.acquire()
    assert is_locked(path)

    lock.release()
    assert not is_locked(path)
    lock.release()


def test_a_lock_that_another_holds_is_not_taken(path: Path) -> None:
    with FileLock(path):
        assert not FileLock(path).acquire(wait=False)
        assert is_locked(path)

    second = FileLock(path)
    assert second.acquire(wait=False)
    second.release()


def test_looking_at_a_lock_takes_it_from_nobody(path: Path) -> None:
    for _ in range(100):
        is_locked(path)
        with FileLock(path):
            assert is_locked(path)


def test_a_lock_is_free_as_soon_as_its_holder_is_killed(path: Path) -> None:
    pid = hold_in_child(path)
    assert not FileLock(path).acquire(wait=False)

    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    assert not is_locked(path)
    with FileLock(path):
        pass


def test_a_waiting_process_gets_the_lock_when_it_is_free(path: Path) -> None:
    pid = hold_in_child(path)
    killer = os.fork()
    if killer == 0:
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        os._exit(0)

    begun = time.monotonic()
    with FileLock(path):
        assert 0.1 < time.monotonic() - begun < 5

    os.waitpid(killer, 0)
    os.waitpid(pid, 0)


def test_a_lock_is_not_inherited_by_what_its_holder_executes(path: Path) -> None:
    lock = FileLock(path)
    lock.acquire()
    pid = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
    lock.release()
    try:
        # The kernel closes its copy a moment after we go on.
        assert eventually(lambda: not is_locked(path), within=5)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_lock_in_a_directory_that_is_absent_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "absent" / "a.lock").acquire()
    assert not is_locked(tmp_path / "absent" / "a.lock")


def test_only_the_owner_can_open_the_file_of_a_lock(path: Path) -> None:
    """Whoever can open it can hold it."""
    with FileLock(path):
        assert path.stat().st_mode & 0o777 == 0o600
