"""A migrated database for each test, copied from one: migrating takes most of a second."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.house import House
from jobrunner.store.engine import Database
from jobrunner.store.migrate import upgrade
from tests.factories import make_house
from tests.integration.statements import connections_watched, told


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with the newest schema and no rows."""
    directory = tmp_path_factory.mktemp("migrated")
    database = Database(directory / "jobrunner.db")
    upgrade(database)
    database.backup(directory / "copy.db")
    database.close()
    return directory / "copy.db"


@pytest.fixture
def data_dir(tmp_path: Path, migrated: Path) -> Path:
    """A data directory with nothing but a migrated database."""
    made = tmp_path / "data"
    made.mkdir(mode=0o700)
    shutil.copyfile(migrated, made / "jobrunner.db")
    (made / "jobrunner.db").chmod(0o600)
    return made


@pytest.fixture
def database(data_dir: Path) -> Iterator[Database]:
    """A migrated database without rows."""
    opened = Database(data_dir / "jobrunner.db")
    yield opened
    opened.close()


@pytest.fixture
def for_everyone() -> Iterator[Path]:
    """A directory that another user can reach; those of pytest are closed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        Path(made).chmod(0o777)
        yield Path(made)
        for path in Path(made).rglob("closed"):
            path.chmod(0o777)


@pytest.fixture
def house(data_dir: Path) -> Iterator[House]:
    """The parts of a service over a fresh data directory, in this process; nobody runs its jobs."""
    built = make_house(data_dir)
    yield built
    built.database.close()
    built.hints.close()


@pytest.fixture(autouse=True)
def ends_no_job_past_the_outbox() -> Iterator[None]:
    """Fail whatever ends a job but by `store.callbacks.end_job`: its callback would be forgotten."""

    def look(statement: str, _parameters: object) -> None:
        if statement.startswith("UPDATE job SET") and "finished_at" in statement.partition(" WHERE ")[0]:
            assert "callback_url" in statement.rpartition("RETURNING")[2], f"not by end_job: {statement}"

    with connections_watched(), told(look):
        yield
