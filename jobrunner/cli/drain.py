"""``jobrunner drain``: let the service run dry."""

import click

from jobrunner.cli.common import json_option, open_data, print_json


@click.command()
@click.option("--undo", is_flag=True, help="Take new jobs again.")
@json_option
@click.pass_context
def drain(ctx: click.Context, *, undo: bool, as_json: bool) -> None:
    """Have the service take no new jobs, and end when the last one has ended.

    What waits in the queue is run first. A plain gunicorn does not end by
    itself; it goes on refusing until --undo.
    """
    house = open_data(ctx)
    if undo:
        house.drain.end()
    else:
        house.drain.begin()
    if as_json:
        print_json({"draining": not undo})


COMMANDS = {"drain": drain}
