"""``jobrunner token``: works on the database, with the server up or down."""

import click

from jobrunner.cli.common import json_option, open_data, print_json, print_table


@click.group()
def token() -> None:
    """Make, list and revoke tokens."""


@token.command()
@click.argument("name")
@json_option
@click.pass_context
def create(ctx: click.Context, name: str, *, as_json: bool) -> None:
    """Make a token and print it: it is shown this once."""
    secret = open_data(ctx).access.create_token(name)
    if as_json:
        print_json({"name": name, "token": secret})
    else:
        click.echo(secret)


@token.command(name="list")
@json_option
@click.pass_context
def list_tokens(ctx: click.Context, *, as_json: bool) -> None:
    """List the names of all tokens."""
    found = open_data(ctx).access.list_tokens()
    rows = [(entry.name, entry.created_at.isoformat(timespec="seconds").replace("+00:00", "Z")) for entry in found]
    if as_json:
        print_json([{"name": name, "created_at": created_at} for name, created_at in rows])
    else:
        print_table(("name", "created"), rows)


@token.command()
@click.argument("name")
@click.pass_context
def revoke(ctx: click.Context, name: str) -> None:
    """Make a token worthless; a running server notices within seconds."""
    open_data(ctx).access.revoke_token(name)


COMMANDS = {"token": token}
