"""``jobrunner db``: the database itself."""

from pathlib import Path

import click

from jobrunner.cli.common import json_option, open_data, print_json, read_config


@click.group()
def db() -> None:
    """Upgrade, look at and back up the database."""


@db.command()
@json_option
@click.pass_context
def upgrade(ctx: click.Context, *, as_json: bool) -> None:
    """Bring the database to the schema of this version; serve does it by itself."""
    from jobrunner.house import open_house
    from jobrunner.store.migrate import HEAD

    open_house(read_config(ctx)).prepare()
    if as_json:
        print_json({"schema": HEAD, "known": HEAD})
    else:
        click.echo(HEAD)


@db.command()
@json_option
@click.pass_context
def current(ctx: click.Context, *, as_json: bool) -> None:
    """Print the schema that the database has, and the one that this version knows."""
    from jobrunner.house import House
    from jobrunner.store.migrate import HEAD, current_revision

    house = House(read_config(ctx))
    found = current_revision(house.database) if house.database.path.exists() else None
    if as_json:
        print_json({"schema": found, "known": HEAD})
    else:
        click.echo(f"{found or 'none'} (known: {HEAD})")


@db.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def backup(ctx: click.Context, file: Path, *, as_json: bool) -> None:
    """Copy the database to FILE while the service runs. FILE must not exist."""
    if file.exists():
        raise click.ClickException(f"{file} exists; name a new file")
    open_data(ctx).database.backup(file)
    if as_json:
        print_json({"file": str(file.absolute()), "bytes": file.stat().st_size})


COMMANDS = {"db": db}
