"""``jobrunner serve``, and the two commands that it starts."""

import os
import sys

import click

from jobrunner.cli.common import read_config
from jobrunner.log import set_up_logging
from jobrunner.parent import die_with_parent
from jobrunner.supervisor import Supervisor


@click.command()
@click.pass_context
def serve(ctx: click.Context) -> None:
    """Run the service: HTTP and jobs. Ends on SIGTERM or Ctrl-C."""
    config = read_config(ctx)
    set_up_logging(config.logging.format, config.logging.level)
    environ = dict(os.environ)
    if ctx.find_root().obj:
        environ["JOBRUNNER_CONFIG"] = str(ctx.find_root().obj.absolute())
    # Jobs that are to be killed have their grace period first, and requests in
    # flight their ten seconds.
    sys.exit(Supervisor(environ, patience=max(config.executor.grace, 10) + 5).run())


@click.command(hidden=True)
def executor() -> None:
    """Run jobs; ``serve`` starts this."""
    die_with_parent()
    from jobrunner.app import open_house, run_executor

    house = open_house()
    house.prepare()
    run_executor(house)


@click.command(hidden=True)
def web() -> None:
    """Answer HTTP; ``serve`` starts this."""
    die_with_parent()
    from gunicorn.app.wsgiapp import run

    # Loaded once, before the fork: workers share the memory of the code.
    sys.argv = ["gunicorn", "--config", "python:jobrunner.gunicorn_conf", "--preload", "jobrunner.app:create_app()"]
    run()


COMMANDS = {"serve": serve, "executor": executor, "web": web}
