"""``jobrunner token``: works on the database, with the server up or down."""

from datetime import datetime
from typing import TYPE_CHECKING

import click

from jobrunner.cli.common import duration_option, json_option, open_data, print_json, print_table
from jobrunner.domain.access import EVERYTHING, Grant, Scope
from jobrunner.log import set_up_logging
from jobrunner.programs import pattern_warning
from jobrunner.service.document import render_time
from jobrunner.store.tokens import Token

if TYPE_CHECKING:
    from jobrunner.house import House


@click.group()
def token() -> None:
    """Make, list and revoke tokens."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it is for; repeatable. read: look; run: submit catalogued scripts; exec: submit anything; "
    "cancel: end, signal and delete jobs; admin: everything.",
)
@click.option("--all-jobs", is_flag=True, help="It sees and touches the jobs of others, too.")
@click.option("--scripts", "scripts", multiple=True, metavar="PATTERN", help="Only these scripts; repeatable.")
@click.option(
    "--commands",
    "commands",
    multiple=True,
    metavar="PATTERN",
    help="Only these programs, by the absolute path of the file that is executed; repeatable.",
)
@click.option("--images", "images", multiple=True, metavar="PATTERN", help="Only these container images; repeatable.")
@duration_option("--expires", "valid_for", metavar="AGE", help="Worthless after AGE, like 30d.")
@json_option
@click.pass_context
def create(
    ctx: click.Context,
    name: str,
    scopes: tuple[str, ...],
    scripts: tuple[str, ...],
    commands: tuple[str, ...],
    images: tuple[str, ...],
    valid_for: float | None,
    *,
    all_jobs: bool,
    as_json: bool,
) -> None:
    """Make a token and print it: it is shown this once."""
    patterns = (given or EVERYTHING for given in (scripts, commands, images))
    grant = Grant(frozenset(map(Scope, scopes)), all_jobs, *patterns)
    secret = _open_audited(ctx).tokens.create(name, grant, valid_for=valid_for)
    for warning in filter(None, map(pattern_warning, commands)):
        click.echo(f"jobrunner: --commands {warning}", err=True)
    if as_json:
        print_json({"name": name, "token": secret, **grant.describe()})
    else:
        click.echo(secret)


@token.command(name="list")
@json_option
@click.pass_context
def list_tokens(ctx: click.Context, *, as_json: bool) -> None:
    """List all tokens."""
    found = open_data(ctx).tokens.list()
    if as_json:
        print_json([_render(entry) for entry in found])
        return
    columns = ("name", "scopes", "jobs", "scripts", "commands", "images", "created", "expires", "last used")
    print_table(columns, [_row(entry) for entry in found])


@token.command()
@click.argument("name")
@json_option
@click.pass_context
def revoke(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Make a token worthless; a running server notices within seconds."""
    _open_audited(ctx).tokens.revoke(name)
    if as_json:
        print_json({"revoked": name})


def _open_audited(ctx: click.Context) -> "House":
    """Open the data directory for a change that belongs into a log: it is told on stderr, in the service's own form."""
    house = open_data(ctx)
    set_up_logging(house.config.logging.format, "warning")
    return house


def _render(entry: Token) -> dict[str, object]:
    return {
        "name": entry.name,
        **entry.grant.describe(),
        "created_at": render_time(entry.created_at),
        "expires_at": render_time(entry.expires_at),
        "last_used_at": render_time(entry.last_used_at),
    }


def _row(entry: Token) -> tuple[str, ...]:
    jobs = "all" if entry.grant.sees_all else "own"
    times = (_to_the_second(at) for at in (entry.created_at, entry.expires_at, entry.last_used_at))
    patterns = map(" ".join, (entry.grant.scripts, entry.grant.commands, entry.grant.images))
    return (entry.name, " ".join(sorted(entry.grant.scopes)), jobs, *patterns, *times)


def _to_the_second(at: datetime | None) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z") if at is not None else ""


COMMANDS = {"token": token}
