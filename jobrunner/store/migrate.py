"""Brings the database to the schema that this version knows; Alembic does the work."""

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

import jobrunner
from jobrunner.domain.errors import SchemaTooNew, StorageError
from jobrunner.locks import FileLock
from jobrunner.store.engine import Database

HEAD = "0009"
"""The newest revision in ``migrations/versions`` (a test compares them). Revisions are numbered, so that they sort."""


def migrations_directory() -> Path:
    """Return where the migrations are: in the installed package, or at the top of a checkout."""
    package = Path(jobrunner.__file__).parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def current_revision(database: Database) -> str | None:
    """Return the revision of the schema; None is an empty database."""
    with database.read() as connection:
        return _current(connection)


def upgrade(database: Database) -> None:
    """Bring the schema up to date. Safe to call from several processes at once: one does it, the others wait.

    Raises:
        SchemaTooNew: a later version of jobrunner wrote this database.
        StorageError: the database can't be written.
    """
    if current_revision(database) == HEAD:
        return  # the usual case, without Alembic's half second
    with FileLock(database.path.with_name(database.path.name + ".migrate-lock")):
        found = current_revision(database)
        if found is not None and found > HEAD:
            raise SchemaTooNew(found, HEAD)
        if found != HEAD:
            _run(database)


def check(database: Database) -> None:
    """Make sure that this version can work with the database, without changing it.

    Raises:
        SchemaTooNew: a later version of jobrunner wrote it.
        StorageError: an earlier one did, or it can't be read.
    """
    found = current_revision(database)
    if found is not None and found > HEAD:
        raise SchemaTooNew(found, HEAD)
    if found != HEAD:
        raise StorageError(f"the database has schema {found or 'none'}, not {HEAD}; run: jobrunner db upgrade")


def _run(database: Database) -> None:
    # In a process of its own: Alembic would cost a service that runs for
    # months 12 MiB for the second in which it is needed.
    done = subprocess.run(
        [sys.executable, "-m", "jobrunner.store.migrate", str(database.path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StorageError(f"the schema can't be brought up to date: {done.stderr.strip()}")


def _main(path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    try:
        # One transaction for all steps: a crash leaves the old schema, not half of the new one.
        with Database(path).write(durable=True) as connection:
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")
    except StorageError as error:
        sys.exit(str(error))


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return revision


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
