"""``jobrunner cancel|signal|delete``."""

import click

from jobrunner.cli.common import duration_option, json_option, open_client, print_json


@click.command()
@click.argument("job")
@click.option("--signal", metavar="NAME", help="Sent first; default SIGTERM.")
@duration_option("--grace", help="Until SIGKILL; 0 is now.")
@json_option
@click.pass_context
def cancel(ctx: click.Context, job: str, signal: str | None, grace: float | None, *, as_json: bool) -> None:
    """Ask a job to end."""
    with open_client(ctx) as client:
        document = client.cancel(job, signal=signal, grace=grace)
    if as_json:
        print_json(document)


@click.command()
@click.argument("job")
@click.argument("name")
@json_option
@click.pass_context
def signal(ctx: click.Context, job: str, name: str, *, as_json: bool) -> None:
    """Send a running job the signal NAME, like SIGUSR1."""
    with open_client(ctx) as client:
        document = client.signal(job, name)
    if as_json:
        print_json(document)


@click.command()
@click.argument("job")
@click.option("--force", is_flag=True, help="Kill it first if it has not ended.")
@json_option
@click.pass_context
def delete(ctx: click.Context, job: str, *, force: bool, as_json: bool) -> None:
    """Forget an ended job, and what it has written."""
    with open_client(ctx) as client:
        client.delete(job, force=force)
    if as_json:
        print_json({"deleted": job})


COMMANDS = {"cancel": cancel, "signal": signal, "delete": delete}
