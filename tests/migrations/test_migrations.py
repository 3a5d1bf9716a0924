"""The history of the schema leads to the tables that the store knows, and back."""

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from jobrunner.domain.access import ADMINISTRATOR
from jobrunner.domain.errors import SchemaTooNew, StorageError
from jobrunner.locks import FileLock
from jobrunner.store.engine import Connection, Database
from jobrunner.store.migrate import HEAD, check, current_revision, migrations_directory, upgrade
from jobrunner.store.models import Base
from jobrunner.store.tokens import list_tokens
from tests.integration.stored import add_job
from tests.integration.workers import run_crew
from tests.service import clean_environment


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A database that is not there yet."""
    opened = Database(tmp_path / "jobrunner.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a migrated database: to make one takes most of a second."""
    directory = tmp_path_factory.mktemp("migrated")
    with closing(Database(directory / "jobrunner.db")) as made:
        upgrade(made)
        made.backup(directory / "copy.db")
    return directory / "copy.db"


@pytest.fixture
def migrated(database: Database, template: Path) -> Database:
    """A migrated database."""
    shutil.copyfile(template, database.path)
    return database


def settings(connection: Connection | None = None) -> Config:
    made = Config()
    made.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def schema(database: Database) -> dict[str, str]:
    with database.read() as connection:
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
    return {row.name: row.sql for row in rows}


def stamp(database: Database, revision: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_the_store_knows_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(settings()).get_heads() == [HEAD]


def test_revisions_are_numbered_without_a_gap_and_their_files_say_so() -> None:
    revisions = [script.revision for script in ScriptDirectory.from_config(settings()).walk_revisions()][::-1]
    files = sorted(path.name for path in (migrations_directory() / "versions").glob("[0-9]*.py"))

    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]
    assert [name[:4] for name in files] == revisions


def test_an_empty_database_is_brought_up_to_date(database: Database) -> None:
    assert current_revision(database) is None

    upgrade(database)

    assert current_revision(database) == HEAD
    check(database)
    add_job(database, labels={"a": "b"})


def test_upgrading_again_changes_nothing(migrated: Database) -> None:
    before = schema(migrated)
    job = add_job(migrated)

    upgrade(migrated)

    assert schema(migrated) == before
    with migrated.read() as connection:
        assert connection.execute(text("SELECT id FROM job")).scalar_one() == job.id


def test_the_migrated_tables_are_those_of_the_models(migrated: Database) -> None:
    with migrated.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_rules_and_partial_indexes_are_those_of_the_models_too(migrated: Database, tmp_path: Path) -> None:
    """Autogenerate compares neither check constraints nor what an index is limited to."""
    with closing(Database(tmp_path / "models.db")) as models:
        with models.write() as connection:
            Base.metadata.create_all(connection)
        expected = schema(models)

    found = schema(migrated)
    found.pop("alembic_version")
    assert set(found) == set(expected)
    for name, statement in expected.items():
        assert _normal(found[name]) == _normal(statement), name


def _normal(statement: str) -> list[str]:
    """Forget the order of the lines, which differs, and spaces."""
    # A column that was added later stands behind another one, on its line.
    lines = re.split(r"\n|, (?=\w+ [A-Z]+\b)", statement.replace("\t", "").replace('"', ""))
    return sorted(" ".join(line.strip().rstrip(",").split()) for line in lines if line.strip())


def test_numbers_are_never_given_twice_by_the_migrated_schema(migrated: Database) -> None:
    assert "AUTOINCREMENT" in schema(migrated)["job"]


def test_the_schema_can_be_taken_back_and_made_again(migrated: Database) -> None:
    before = schema(migrated)
    add_job(migrated)

    with migrated.write() as connection:
        command.downgrade(settings(connection), "base")
    assert set(schema(migrated)) - {"sqlite_sequence"} == {"alembic_version"}
    assert current_revision(migrated) is None

    upgrade(migrated)
    assert schema(migrated) == before


def test_a_migration_that_fails_leaves_the_schema_as_it_was(database: Database) -> None:
    """One transaction for all steps: here a table is in the way of the last ones."""
    with database.write() as connection:
        connection.execute(text("CREATE TABLE job_signal (x)"))
    before = schema(database)

    with pytest.raises(StorageError, match="can't be brought up to date"):
        upgrade(database)

    assert schema(database) == before
    assert current_revision(database) is None


# ── a schema that does not fit ──


@pytest.mark.parametrize("revision", [f"{int(HEAD) + 1:04}", "0100", "9999"])
def test_a_schema_from_the_future_is_refused_with_what_to_do(migrated: Database, revision: str) -> None:
    stamp(migrated, revision)
    before = schema(migrated)

    for refuse in (upgrade, check):
        with pytest.raises(SchemaTooNew, match=f"schema {revision}.* up to {HEAD}.*install"):
            refuse(migrated)
    assert schema(migrated) == before
    assert current_revision(migrated) == revision


def test_a_database_without_schema_is_not_worked_with(database: Database) -> None:
    with pytest.raises(StorageError, match="run: jobrunner db upgrade"):
        check(database)


def test_checking_changes_nothing(database: Database) -> None:
    with pytest.raises(StorageError):
        check(database)

    assert schema(database) == {}


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobrunner.db").write_bytes(b"not a database" * 1000)
    with closing(Database(tmp_path / "jobrunner.db")) as database:
        for refuse in (upgrade, check):
            with pytest.raises(StorageError, match="not a database"):
                refuse(database)


def test_a_database_with_jobs_keeps_them_over_a_migration(migrated: Database) -> None:
    job = add_job(migrated)
    with migrated.write() as connection:
        connection.execute(text("DELETE FROM alembic_version"))

    with pytest.raises(StorageError, match="already exists"):
        upgrade(migrated)  # never does it drop what is there

    with migrated.read() as connection:
        assert connection.execute(text("SELECT id FROM job")).scalar_one() == job.id


def test_tokens_of_before_are_for_all_programs(database: Database) -> None:
    with database.write() as connection:
        command.upgrade(settings(connection), "0006")
        connection.execute(
            text("INSERT INTO token (name, sha256, created_at) VALUES ('ci', 'x', '2026-01-01T00:00:00Z')")
        )

    upgrade(database)

    with database.read() as connection:
        (token,) = list_tokens(connection)
    assert token.grant == ADMINISTRATOR


# ── several at once, and elsewhere ──


def test_two_processes_may_upgrade_at_once(database: Database) -> None:
    assert run_crew(2, "migrate", database.path) == ["done", "done"]

    check(database)


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "restored from a backup"])
def test_an_upgrade_waits_for_another_that_is_at_it(database: Database, template: Path, *, is_new: bool) -> None:
    """Such a file is not in WAL mode yet; SQLite refuses at once to change that while another writes."""
    database.path.write_bytes(b"" if is_new else template.read_bytes())
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        for lock in ("migrate-lock", "write-lock"):
            stack.enter_context(FileLock(database.path.with_name(f"jobrunner.db.{lock}")))
        other = stack.enter_context(closing(sqlite3.connect(database.path, isolation_level=None)))
        other.execute("BEGIN IMMEDIATE")
        upgrading = pool.submit(upgrade, database)

        assert not wait([upgrading], timeout=0.3).done, upgrading.exception()
        other.execute("COMMIT")
        stack.close()  # gives the locks back as well
        upgrading.result(timeout=30)

    check(database)


def test_the_migrations_are_found_from_any_directory(tmp_path: Path) -> None:
    """Also in a data directory whose name means something to Alembic's configuration."""
    data = tmp_path / "100%(here)s"
    data.mkdir()
    program = (
        "import sys; from pathlib import Path; from jobrunner.store.engine import Database\n"
        "from jobrunner.store.migrate import upgrade; upgrade(Database(Path(sys.argv[1])))"
    )

    subprocess.run([sys.executable, "-c", program, data / "a.db"], cwd="/", env=clean_environment(), check=True)

    with closing(sqlite3.connect(data / "a.db")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
