"""``jobrunner logs``: what a job has written, or writes."""

from collections.abc import Iterator
from contextlib import closing

import click

from jobrunner.cli.common import duration_option, open_client
from jobrunner.cli.ending import end_by_signals
from jobrunner.cli.terminal import STDOUT, open_outputs, write_all
from jobrunner.client import Client, Dropped, Event, Output, Patience, event_id
from jobrunner.client.patience import SECONDS, passes
from jobrunner.domain.errors import JobrunnerError, Unreachable
from jobrunner.domain.streams import Stream

patience_option = duration_option(
    "--patience", default=f"{SECONDS:g}", show_default=True, help="How long the service may be away."
)

_NEVER = 10**18 - 1
"""An offset that no stream reaches: nothing of it is sent."""


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the job has ended.")
@click.option("--stderr", "stream", flag_value=Stream.STDERR, help="What it wrote to stderr instead.")
@click.option("--tail", type=click.IntRange(0), metavar="BYTES", help="Only so many from the end.")
@patience_option
@click.pass_context
def logs(ctx: click.Context, job: str, *, follow: bool, stream: str | None, tail: int | None, patience: float) -> None:
    """Print what a job has written so far, byte for byte."""
    end_by_signals()
    open_outputs()
    wanted = Stream(stream or Stream.STDOUT)
    with open_client(ctx) as client:
        if follow:
            _follow(client, job, wanted, tail, patience)
            return
        for piece in client.output(job, wanted, tail=tail):
            write_all(STDOUT, piece)


def _follow(client: Client, job: str, stream: Stream, tail: int | None, patience: float) -> None:
    patient = Patience(patience)
    size = patient.insist(lambda: client.get(job))[stream]["bytes"]
    begin = {Stream.STDOUT: _NEVER, Stream.STDERR: _NEVER, stream: 0 if tail is None else max(size - tail, 0)}
    last = event_id(stdout=begin[Stream.STDOUT], stderr=begin[Stream.STDERR])
    for event in follow_or_give_up(client, job, last, patient):
        match event:
            case Output(stream=where, data=data) if where is stream:
                write_all(STDOUT, data)
            case Dropped(stream=where) if where is stream:
                click.echo(f"jobrunner: {describe_dropped(event)}", err=True)


def follow_or_give_up(client: Client, job: str, last_event_id: str | None, patience: Patience) -> Iterator[Event]:
    """Return what happens to a job up to its end.

    Raises:
        Unreachable: for longer than the patience lasts; it says how to go on.
    """
    try:
        with closing(client.follow(job, last_event_id, patience=patience)) as events:
            yield from events
    except JobrunnerError as error:
        if not passes(error):
            raise
        raise Unreachable(f"{error}\ngiven up; the job goes on by itself: jobrunner logs -f {job}") from error


def describe_dropped(event: Dropped) -> str:
    """Say what is missing."""
    return f"{event.stop - event.start} bytes of {event.stream} are no longer kept, {event.start} to {event.stop - 1}"


COMMANDS = {"logs": logs}
