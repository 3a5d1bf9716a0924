"""Group commit: writes that come at the same time share a transaction, and nothing else."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from jobrunner.domain.access import ADMINISTRATOR
from jobrunner.domain.errors import StorageError
from jobrunner.store import tokens
from jobrunner.store.engine import Database
from jobrunner.store.together import GroupCommit
from jobrunner.store.tokens import Token
from tests.integration.stored import EPOCH, count, rows
from tests.service import eventually


class Gate:
    """Begins transactions, the first of them only when it is told to: meanwhile others come."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.opened = threading.Event()
        self.begun = 0
        self.synced = 0
        self.disk_error: OSError | None = None

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        self.begun += 1
        assert self.opened.wait(30)
        with self._database.write() as connection:
            yield connection

    def sync(self) -> None:
        self.synced += 1
        if self.disk_error:
            raise self.disk_error


@pytest.fixture
def gate(database: Database) -> Gate:
    """A gate before the database."""
    return Gate(database)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that write."""
    with ThreadPoolExecutor(20) as made:
        yield made


def put(connection: Connection, name: str) -> str:
    tokens.add_token(connection, Token(name, "", EPOCH, ADMINISTRATOR))
    return name


def come(
    group: GroupCommit, gate: Gate, pool: ThreadPoolExecutor, names: list[str], *, durable: bool = False
) -> list["Future[str]"]:
    """Have a first write wait at the gate, these come behind it, and then open the gate."""
    first = pool.submit(group.write, lambda connection: put(connection, "first"), durable=False)
    assert eventually(lambda: gate.begun == 1)
    writes = [
        pool.submit(group.write, lambda connection, name=name: put(connection, name), durable=durable and index == 0)
        for index, name in enumerate(names)
    ]
    assert eventually(lambda: len(group._waiting) == len(names))
    gate.opened.set()
    first.result(timeout=10)
    return writes


def names_of(database: Database) -> set[str]:
    return {row.name for row in rows(database, "SELECT name FROM token")}


def test_a_write_alone_is_a_transaction_of_its_own(database: Database) -> None:
    assert database.write_together(lambda connection: put(connection, "a")) == "a"
    assert names_of(database) == {"a"}


def test_writes_that_wait_for_the_same_commit_share_the_next_one(
    database: Database, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    group = GroupCommit(gate.begin, gate.sync)

    writes = come(group, gate, pool, [f"{n}" for n in range(10)])

    assert [write.result(timeout=10) for write in writes] == [f"{n}" for n in range(10)]
    assert gate.begun == 2
    assert len(names_of(database)) == 11


def test_a_batch_is_synced_once_if_one_of_it_must_be_durable(gate: Gate, pool: ThreadPoolExecutor) -> None:
    for write in come(GroupCommit(gate.begin, gate.sync), gate, pool, ["a", "b"], durable=True):
        write.result(timeout=10)

    assert (gate.begun, gate.synced) == (2, 1)


def test_a_disk_that_can_not_be_trusted_is_told_to_those_who_must_know(gate: Gate, pool: ThreadPoolExecutor) -> None:
    gate.disk_error = OSError(5, "Input/output error")

    durable, other = come(GroupCommit(gate.begin, gate.sync), gate, pool, ["a", "b"], durable=True)

    with pytest.raises(OSError, match="Input/output error"):
        durable.result(timeout=10)
    assert other.result(timeout=10) == "b"


def test_a_write_that_fails_fails_alone(database: Database, gate: Gate, pool: ThreadPoolExecutor) -> None:
    """``first`` is taken, so the one in the middle breaks a rule of the schema."""
    writes = come(GroupCommit(gate.begin, gate.sync), gate, pool, ["a", "first", "b"])

    assert [type(write.exception(timeout=10)).__name__ for write in writes] == [
        "NoneType",
        "IntegrityError",
        "NoneType",
    ]
    assert [writes[0].result(), writes[2].result()] == ["a", "b"]
    assert names_of(database) == {"first", "a", "b"}


def test_after_a_failure_the_next_write_goes_through(database: Database) -> None:
    def fail(_connection: Connection) -> None:
        raise KeyError("of the work")

    for _ in range(3):
        with pytest.raises(KeyError, match="of the work"):
            database.write_together(fail)

    assert database.write_together(lambda connection: put(connection, "a")) == "a"


def test_what_is_written_before_a_failure_is_not_kept(database: Database) -> None:
    def fail(connection: Connection) -> None:
        put(connection, "half")
        raise KeyError("of the work")

    with pytest.raises(KeyError):
        database.write_together(fail)
    assert count(database, "token") == 0


def test_of_hundreds_of_writes_by_many_threads_each_is_kept_once(database: Database, pool: ThreadPoolExecutor) -> None:
    def write(number: int) -> tuple[int, str]:
        name = f"{number // 2 if number % 10 == 1 else number}"  # a tenth of them is taken, or soon will be
        return number, database.write_together(lambda connection: put(connection, name), durable=number % 3 == 0)

    done = [pool.submit(write, number) for number in range(400)]
    kept = [write.result(timeout=30) for write in done if write.exception(timeout=30) is None]

    assert len(kept) == count(database, "token")
    assert {name for _, name in kept} == names_of(database)


def test_a_storage_that_refuses_is_told_to_everyone_who_waits(
    tmp_path: Path, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    absent = Database(tmp_path / "absent" / "jobrunner.db")
    gate._database = absent
    gate.opened.set()
    group = GroupCommit(gate.begin, gate.sync)

    writes = [
        pool.submit(group.write, lambda connection: connection.execute(text("SELECT 1")), durable=False)
        for _ in range(10)
    ]

    for write in writes:
        with pytest.raises(StorageError, match="No such file"):
            write.result(timeout=10)
    absent.close()
