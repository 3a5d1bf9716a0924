"""The database: readers never wait, writers queue, and what is committed stays."""

import ctypes
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from jobrunner.domain.access import ADMINISTRATOR
from jobrunner.domain.errors import StorageError, StorageFull, StorageReadOnly
from jobrunner.store import tokens
from jobrunner.store.engine import Database
from jobrunner.store.tokens import Token
from tests.conftest import miss
from tests.integration.stored import EPOCH, add_job, count, rows
from tests.integration.workers import run_crew
from tests.service import eventually


def put(connection: Connection, name: str, content: str = "") -> None:
    tokens.add_token(connection, Token(name, content, EPOCH, ADMINISTRATOR))


def in_child(work: Callable[[], None]) -> int:
    """Run this in a fork of this process; return its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 it must not become a second pytest
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


# ── transactions ──


def test_a_reader_sees_each_commit_as_soon_as_it_is_made(database: Database) -> None:
    with database.read() as reader:
        assert tokens.list_tokens(reader) == []
        with database.write() as writer:
            put(writer, "a")
            assert tokens.list_tokens(reader) == []
        assert [token.name for token in tokens.list_tokens(reader)] == ["a"]


def test_what_other_processes_have_committed_is_seen(database: Database, data_dir: Path) -> None:
    def write() -> None:
        with Database(data_dir / "jobrunner.db").write() as connection:
            put(connection, "a")

    with database.read() as reader:
        assert not tokens.has_token(reader, "a")
    database.close()
    assert in_child(write) == 0

    with database.read() as reader:
        assert tokens.has_token(reader, "a")


def test_an_exception_rolls_everything_back_and_goes_on(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            put(connection, "a")
            raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        fail()

    assert count(database, "token") == 0
    with database.write() as connection:
        put(connection, "b")
    assert count(database, "token") == 1


def test_a_broken_rule_of_the_schema_is_a_mistake_of_ours_and_not_of_the_storage(database: Database) -> None:
    def twice() -> None:
        with database.write() as connection:
            put(connection, "a")
            put(connection, "a")

    with pytest.raises(IntegrityError):
        twice()
    assert count(database, "token") == 0


def dirty_pages(path: Path) -> int:
    """Ask the kernel how many pages of a file are not on the disk yet (cachestat(2), Linux ≥ 6.5)."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        whole = (ctypes.c_uint64 * 2)(0, 0)
        if libc.syscall(_CACHESTAT, file.fileno(), ctypes.byref(whole), ctypes.byref(found), 0) != 0:
            pytest.skip(f"cachestat(2): {os.strerror(ctypes.get_errno())}")
    return found[1] + found[2]  # dirty, and being written


_CACHESTAT = 451  # on every architecture


@pytest.mark.parametrize("together", [False, True])
def test_what_is_acknowledged_is_on_the_disk(data_dir: Path, *, together: bool) -> None:
    with closing(Database(data_dir / "jobrunner.db", synchronous="full")) as database:
        wal = data_dir / "jobrunner.db-wal"

        def write(name: str, *, durable: bool) -> None:
            if together:
                database.write_together(lambda connection: put(connection, name), durable=durable)
                return
            with database.write(durable=durable) as connection:
                put(connection, name)

        write("a", durable=False)
        if not dirty_pages(wal):
            pytest.skip("this file system does not tell what is on the disk")
        write("b", durable=True)
        assert dirty_pages(wal) == 0
        write("c", durable=False)
        assert dirty_pages(wal) > 0


def test_synchronous_normal_leaves_the_time_to_the_system(data_dir: Path) -> None:
    wal = data_dir / "jobrunner.db-wal"
    with (
        closing(Database(data_dir / "jobrunner.db", synchronous="normal")) as lazy,
        closing(Database(data_dir / "jobrunner.db", synchronous="full")) as careful,
    ):
        with careful.write() as connection:
            put(connection, "a")
        if not dirty_pages(wal):
            pytest.skip("this file system does not tell what is on the disk")
        with careful.write(durable=True) as connection:
            put(connection, "b")
        assert dirty_pages(wal) == 0

        with lazy.write(durable=True) as connection:
            put(connection, "c")
        assert dirty_pages(wal) > 0


def test_what_is_committed_survives_a_process_that_is_killed_right_after(database: Database, data_dir: Path) -> None:
    def write_and_die() -> None:
        with Database(data_dir / "jobrunner.db").write(durable=True) as connection:
            put(connection, "a")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write_and_die) == signal.SIGKILL
    assert count(database, "token") == 1


def test_a_writer_that_is_killed_in_its_transaction_leaves_nothing_and_blocks_nobody(
    database: Database, data_dir: Path
) -> None:
    def die_inside() -> None:
        with Database(data_dir / "jobrunner.db").write() as connection:
            put(connection, "a")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die_inside) == signal.SIGKILL
    begun = time.monotonic()
    with database.write() as connection:
        put(connection, "b")

    assert time.monotonic() - begun < 2
    assert [row.name for row in rows(database, "SELECT name FROM token")] == ["b"]


def test_a_closed_database_can_be_used_again_on_both_sides_of_a_fork(database: Database) -> None:
    with database.write() as connection:
        put(connection, "before")
    database.close()

    def write() -> None:
        with database.write() as connection:
            put(connection, "child")
        with database.read() as connection:
            assert tokens.has_token(connection, "before")

    status = in_child(write)
    with database.write() as connection:
        put(connection, "parent")

    assert status == 0
    assert {row.name for row in rows(database, "SELECT name FROM token")} == {"before", "child", "parent"}


def test_closing_twice_or_unused_is_harmless(data_dir: Path) -> None:
    database = Database(data_dir / "jobrunner.db")
    database.close()
    database.close()


@pytest.mark.parametrize("content", ["new", "restored from a backup"])
def test_all_get_in_who_open_a_database_for_the_first_time_at_once(
    tmp_path: Path, migrated: Path, content: str
) -> None:
    """Such a file is not in WAL mode yet, and SQLite does not wait for its turn to change that."""
    for attempt in range(12):
        path = tmp_path / f"{attempt}.db"
        path.write_bytes(b"" if content == "new" else migrated.read_bytes())

        def look(path: Path = path) -> None:
            with Database(path).read() as connection:
                connection.execute(text("SELECT 1"))

        assert at_once(6, look) == [0] * 6, f"attempt {attempt}"


def at_once(size: int, work: Callable[[], None]) -> list[int]:
    """Run this in forks of this process that begin together; return their wait statuses."""
    gate, opener = os.pipe()
    children = []
    for _ in range(size):
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            os.read(gate, 1)  # until all copies of the other end are closed
            try:
                work()
            except BaseException:  # noqa: BLE001 it must not become a second pytest
                os._exit(1)
            os._exit(0)
        children.append(pid)
    os.close(opener)
    os.close(gate)
    return [os.waitpid(pid, 0)[1] for pid in children]


# ── writers queue ──


def test_no_update_is_lost_among_threads(database: Database) -> None:
    with database.write() as connection:
        put(connection, "counter", "0")

    def add_fifty() -> None:
        for _ in range(50):
            with database.write() as connection:
                (value,) = connection.execute(text("SELECT sha256 FROM token")).one()
                connection.execute(text("UPDATE token SET sha256 = :value"), {"value": str(int(value) + 1)})

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(add_fifty) for _ in range(8)]:
            done.result()

    assert [row.sha256 for row in rows(database, "SELECT sha256 FROM token")] == ["400"]


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as writer, ThreadPoolExecutor(1) as pool:
        put(writer, "a")
        assert pool.submit(count, database, "token").result(timeout=5) == 0


def test_a_writer_waits_for_one_that_does_not_queue_with_us(database: Database, data_dir: Path) -> None:
    """A shell or a backup tool: it knows nothing of our lock file."""
    assert count(database, "token") == 0
    with closing(sqlite3.connect(data_dir / "jobrunner.db", isolation_level=None, check_same_thread=False)) as outsider:
        outsider.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, outsider.execute, args=("COMMIT",))
        release.start()
        with database.write() as connection:
            put(connection, "a")
        release.join()

    assert count(database, "token") == 1


def test_writers_of_several_processes_get_their_turns_fairly(database: Database, data_dir: Path) -> None:
    """4 processes with 4 threads each, all of them durable, for three seconds."""
    with database.write() as connection:
        put(connection, "row")
    database.close()

    crew = run_crew(4, "commit", data_dir / "jobrunner.db", 4, 3)

    commits = [found["commits"] for found in crew]
    mean = sum(commits) / len(commits)
    assert min(commits) >= mean / 4, commits
    assert all(found["least"] > 0 for found in crew), crew
    assert max(found["worst"] for found in crew) < 2, crew


# ── a storage that refuses ──


@contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Path]:
    """Mount a file system of one's own; where that is refused, skip, or fail in CI."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        miss(f"can't mount a tmpfs: {done.stderr.strip()}")
    try:
        yield path
    finally:
        if subprocess.run(["umount", path], check=False).returncode != 0:
            subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def tiny(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """A database on a file system of 1 MiB."""
    with tmpfs(tmp_path / "tiny", "size=1m,mode=700") as mounted:
        (mounted / "jobrunner.db").write_bytes(migrated.read_bytes())
        database = Database(mounted / "jobrunner.db")
        yield database
        database.close()


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def fill(database: Database) -> int:
    """Write until the disk is full; return how many rows were taken."""
    for written in range(1000):
        try:
            with database.write(durable=True) as connection:
                put(connection, f"{written}", "x" * 50_000)
        except StorageFull:
            return written
    raise AssertionError("the disk is never full")


def test_a_full_disk_is_told_apart_and_nothing_of_the_transaction_is_there(tiny: Database) -> None:
    written = fill(tiny)

    assert written > 0
    assert count(tiny, "token") == written


def test_a_full_disk_refuses_again_and_again_with_the_same_words(tiny: Database) -> None:
    fill(tiny)

    for durable in (True, False, True):
        with pytest.raises(StorageFull, match="full"), tiny.write(durable=durable) as connection:
            put(connection, "again", "x" * 500_000)


def test_writing_goes_on_when_there_is_space_again(tiny: Database) -> None:
    ballast = tiny.path.with_name("ballast")
    ballast.write_bytes(b"x" * 400_000)
    written = fill(tiny)

    ballast.unlink()
    with tiny.write(durable=True) as connection:
        put(connection, "after", "x" * 50_000)

    assert count(tiny, "token") == written + 1


def test_what_is_there_can_be_deleted_on_a_full_disk(tiny: Database) -> None:
    """Else nobody, gc included, could ever make space."""
    for written in range(8):
        with tiny.write() as connection:
            put(connection, f"{written}", "x" * 50_000)
        tiny.close()  # moves the row from the log to the database
    ballast = tiny.path.with_name("ballast")
    ballast.write_bytes(b"x" * (free_bytes(tiny.path.parent) - 150_000))
    with pytest.raises(StorageFull), tiny.write() as connection:
        put(connection, "big", "x" * 150_000)

    with tiny.write() as connection:
        tokens.remove_token(connection, "0")
    with tiny.write() as connection:
        put(connection, "small")

    assert [row.name for row in rows(tiny, "SELECT name FROM token WHERE name IN ('0', 'small')")] == ["small"]


def stuff(path: Path) -> None:
    """Write a file until not a byte is left."""
    with path.open("wb", buffering=0) as ballast:
        for size in (65536, 4096, 1):
            while True:
                try:
                    ballast.write(b"x" * size)
                except OSError:
                    break


def test_a_disk_that_is_full_of_other_files_is_full_too(tiny: Database) -> None:
    assert count(tiny, "token") == 0
    stuff(tiny.path.with_name("ballast"))

    with pytest.raises(StorageFull), tiny.write() as connection:
        put(connection, "a")
    with pytest.raises(StorageFull):
        tiny.check_writable()
    assert count(tiny, "token") == 0


def test_a_disk_that_can_only_be_read_is_told_apart(tiny: Database) -> None:
    add_job(tiny)
    tiny.close()
    subprocess.run(["mount", "-o", "remount,ro", tiny.path.parent], check=True)

    with pytest.raises(StorageReadOnly), tiny.write() as connection:
        put(connection, "a")
    with pytest.raises(StorageReadOnly):
        tiny.check_writable()


def test_a_disk_that_can_be_written_again_is_used_at_once(tiny: Database) -> None:
    subprocess.run(["mount", "-o", "remount,ro", tiny.path.parent], check=True)
    with pytest.raises(StorageReadOnly):
        tiny.check_writable()

    subprocess.run(["mount", "-o", "remount,rw", tiny.path.parent], check=True)

    tiny.check_writable()
    add_job(tiny)


def test_a_database_that_is_open_when_its_file_becomes_read_only_is_told_apart(tmp_path: Path, migrated: Path) -> None:
    """The lock file can still be opened then; only SQLite can tell. An immutable file binds root too."""
    path = tmp_path / "jobrunner.db"
    path.write_bytes(migrated.read_bytes())
    path.with_name("jobrunner.db.write-lock").touch()
    with closing(Database(path)) as database:
        if subprocess.run(["chattr", "+i", path], capture_output=True, check=False).returncode != 0:
            pytest.skip("this file system knows no immutable files")
        try:
            with pytest.raises(StorageReadOnly):
                database.check_writable()
            with pytest.raises(StorageReadOnly), database.write() as connection:
                put(connection, "a")
        finally:
            subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.parametrize("durable", [True, False])
def test_a_directory_that_is_absent_is_an_error_of_the_storage(tmp_path: Path, *, durable: bool) -> None:
    with closing(Database(tmp_path / "absent" / "jobrunner.db")) as database:
        with pytest.raises(StorageError, match="No such file"), database.write(durable=durable):
            pass
        with pytest.raises(StorageError, match="unable to open"), database.read() as connection:
            connection.execute(text("SELECT 1"))


def test_a_file_that_is_no_database_is_an_error_of_the_storage(tmp_path: Path) -> None:
    path = tmp_path / "jobrunner.db"
    path.write_bytes(b"not a database" * 1000)

    with closing(Database(path)) as database:
        with pytest.raises(StorageError, match="not a database"), database.read() as connection:
            connection.execute(text("SELECT 1"))
        with pytest.raises(StorageError, match="not a database"):
            database.check_writable()


def test_the_check_of_a_writable_database_changes_nothing_that_anyone_reads(database: Database) -> None:
    add_job(database)
    before = dump(database)

    database.check_writable()

    assert dump(database) == before


def dump(database: Database) -> list[str]:
    with closing(sqlite3.connect(database.path)) as connection:
        return [*connection.iterdump()]


# ── backup ──


def test_a_backup_is_a_whole_database_of_one_file(database: Database, tmp_path: Path) -> None:
    job = add_job(database, "echo", "hello", labels={"a": "b"})
    target = tmp_path / "backup.db"

    database.backup(target)

    assert [path.name for path in tmp_path.glob("backup*")] == ["backup.db"]
    assert target.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT id FROM job").fetchall() == [(job.id,)]
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_backup_is_consistent_while_others_write(database: Database, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            add_job(database, labels={"one": "1"})

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        assert eventually(lambda: count(database, "job") > 20)
        database.backup(tmp_path / "backup.db")
        stop.set()
        writing.result()

    with closing(sqlite3.connect(tmp_path / "backup.db")) as copy:
        (jobs,) = copy.execute("SELECT count(*) FROM job").fetchone()
        (labels,) = copy.execute("SELECT count(*) FROM job_label").fetchone()
    assert jobs == labels > 20


def test_a_backup_that_cannot_be_written_is_an_error_of_the_storage(database: Database, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        database.backup(tmp_path / "absent" / "backup.db")


def test_an_error_does_not_tell_what_was_to_be_written(database: Database) -> None:
    """What jobs are given, the values of their environment for one, must get into no log."""
    with database.write() as connection:
        put(connection, "ci")

    with pytest.raises(IntegrityError) as caught, database.write() as connection:
        put(connection, "ci", "hunter2")

    assert "hunter2" not in str(caught.value)
