"""The command line: click. Exit codes live here and nowhere else.

0 done · 1 failed · 2 usage · 3 not found · 4 refused · 5 unreachable · 141 nobody reads the output any more

Those of ``run`` and ``wait`` are the job's: see `jobrunner.cli.ending`.
"""

import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click

import jobrunner
from jobrunner.domain import errors

FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE = 1, 2, 3, 4, 5
BROKEN_PIPE = 128 + signal.SIGPIPE

_EXIT_CODES: dict[type[errors.JobrunnerError], int] = {
    errors.ConfigError: USAGE,
    errors.InvalidRequest: USAGE,
    errors.NotFound: NOT_FOUND,
    errors.Unauthenticated: REFUSED,
    errors.Forbidden: REFUSED,
    errors.Conflict: REFUSED,
    errors.TooBusy: REFUSED,
    errors.Unreachable: UNREACHABLE,
}

# A command is imported when it is asked for: the supervisor must stay small.
_COMMANDS = {
    "serve": "serve",
    "drain": "drain",
    "executor": "serve",
    "web": "serve",
    "gc": "gc",
    "status": "jobs",
    "list": "jobs",
    "run": "run",
    "wait": "run",
    "logs": "output",
    "submit": "submission",
    "rerun": "submission",
    "scripts": "submission",
    "cancel": "control",
    "signal": "control",
    "delete": "control",
    "token": "tokens",
    "db": "db",
    "config": "config",
    "selftest": "selftest",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"jobrunner.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            sys.exit(BROKEN_PIPE)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(jobrunner.__version__)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="INI file with the settings; default: $JOBRUNNER_CONFIG, else built-in defaults.",
)
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """Run commands and scripts for whoever may ask over HTTP, and remember them."""
    ctx.obj = config


def main() -> None:
    """Run the command line and exit."""
    try:
        cli.main(standalone_mode=True)
    except errors.JobrunnerError as error:
        code = next((_EXIT_CODES[kind] for kind in type(error).__mro__ if kind in _EXIT_CODES), FAILED)
        _fail(str(error), code)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED)


def _fail(message: str, code: int) -> None:
    with suppress(OSError):  # nobody hears of it
        for line in message.splitlines():
            click.echo(f"jobrunner: {line}", err=True)
    sys.exit(code)
