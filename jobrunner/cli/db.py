"""``jobrunner db``: the database itself."""

from pathlib import Path

import click

from jobrunner.cli.common import open_data, read_config


@click.group()
def db() -> None:
    """Upgrade, look at and back up the database."""


@db.command()
@click.pass_context
def upgrade(ctx: click.Context) -> None:
    """Bring the database to the schema of this version; serve does it by itself."""
    from jobrunner.house import open_house
    from jobrunner.store.migrate import HEAD

    open_house(read_config(ctx)).prepare()
    click.echo(HEAD)


@db.command()
@click.pass_context
def current(ctx: click.Context) -> None:
    """Print the schema that the database has, and the one that this version knows."""
    from jobrunner.house import House
    from jobrunner.store.migrate import HEAD, current_revision

    house = House(read_config(ctx))
    found = current_revision(house.database) if house.database.path.exists() else None
    click.echo(f"{found or 'none'} (known: {HEAD})")


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def backup(ctx: click.Context, file: Path) -> None:
    """Copy the database to FILE while the service runs. FILE must not exist."""
    if file.exists():
        raise click.ClickException(f"{file} exists; name a new file")
    open_data(ctx).database.backup(file)


COMMANDS = {"db": db}
