"""What several commands share: the house, the client, tables."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobrunner.config import Config
from jobrunner.config_loading import load_config
from jobrunner.config_values import parse_duration
from jobrunner.domain.errors import ConfigError, Unauthenticated
from jobrunner.domain.text import escape_controls

if TYPE_CHECKING:
    from jobrunner.client import Client
    from jobrunner.house import House

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def reads(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Make a click callback of a function that raises ValueError."""

    def read(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> Any:
        try:
            return parse(text) if text is not None else None
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


duration_option = partial(click.option, callback=reads(parse_duration), metavar="DURATION")
"""An option whose value is read as those of the settings are: seconds, or ``5m``."""


def read_config(ctx: click.Context) -> Config:
    """Read the settings that this call of the command line is about.

    Raises:
        ConfigError: they are wrong.
    """
    path: Path | None = ctx.find_root().obj
    return load_config(path)


def open_data(ctx: click.Context) -> "House":
    """Open the data directory, for commands that work with the server down as well.

    Raises:
        ConfigError, SchemaTooNew, StorageError: it can't be used.
        ClickException: there is none yet.
    """
    from jobrunner.house import House
    from jobrunner.store.migrate import check

    house = House(read_config(ctx))
    if not house.database.path.exists():
        raise click.ClickException(f"there is no database {house.database.path} yet; jobrunner serve makes it")
    check(house.database)
    return house


def open_client(ctx: click.Context) -> "Client":
    """Return a client for the server at ``JOBRUNNER_URL``, else for the one of the settings.

    The token in the data directory is for the server of the settings only.

    Raises:
        ConfigError: the settings are wrong, or name no address that a client can use, or the environment doesn't.
        Unauthenticated: there is no token to be found.
    """
    from jobrunner.client import Client

    url = os.environ.get("JOBRUNNER_URL")
    token = os.environ.get("JOBRUNNER_TOKEN")
    if url:
        if not token:
            raise Unauthenticated(f"set JOBRUNNER_TOKEN to a token of the service at {url} (JOBRUNNER_URL)")
    else:
        config = read_config(ctx)
        if config.server.unix_socket:
            where = config.server.unix_socket
            raise ConfigError([f"the service listens on {where}; set JOBRUNNER_URL to where it answers HTTP over TCP"])
        url, token = config.url, token or _local_token(config)
    try:
        return Client(url, token)
    except ValueError as error:
        raise ConfigError([f"JOBRUNNER_URL, JOBRUNNER_TOKEN: {error}"]) from None


def _local_token(config: Config) -> str:
    try:
        return (config.data_dir / "admin.token").read_text(encoding="ascii").strip()
    except OSError as error:
        raise Unauthenticated(f"set JOBRUNNER_TOKEN ({error.filename}: {error.strerror})") from None


def split_pair(text: str, separator: str) -> tuple[str, str]:
    """Cut what was given as ``KEY=VALUE``, or with another separator.

    Raises:
        UsageError: it has none.
    """
    key, found, value = text.partition(separator)
    if not found:
        raise click.UsageError(f"{text!r}: expected KEY{separator}VALUE")
    return key, value


def print_json(value: Any) -> None:
    """Print a value on one line."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: for people on a terminal, tab-separated without a head in a pipe. Each row is one line."""
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    if sys.stdout is None or not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
