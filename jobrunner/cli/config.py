"""``jobrunner config``."""

import dataclasses

import click

from jobrunner.cli.common import json_option, print_json, read_config
from jobrunner.config import SECTIONS
from jobrunner.config_values import render_value
from jobrunner.domain.errors import ConfigError
from jobrunner.executor.confine import check_confinement


@click.group()
def config() -> None:
    """Check and show the settings."""


@config.command()
@json_option
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Read the settings and try them out; name every problem, or say nothing."""
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    try:
        loaded = read_config(ctx)
        warnings = loaded.warnings
        for warning in warnings:
            click.echo(f"jobrunner: {warning}", err=True)
        check_confinement(loaded)
    except ConfigError as error:
        problems = error.problems
        raise
    finally:
        if as_json:
            print_json({"problems": problems, "warnings": warnings})


@config.command()
@json_option
@click.pass_context
def show(ctx: click.Context, *, as_json: bool) -> None:
    """Print all settings as they apply, as an INI file."""
    loaded = read_config(ctx)
    shown = {
        section: {
            field.name: render_value(getattr(loaded.section(section), field.name)) for field in dataclasses.fields(kind)
        }
        for section, kind in SECTIONS.items()
    }
    shown["environment"] = dict(loaded.environment)
    if as_json:
        print_json(shown)
        return
    for section, keys in shown.items():
        click.echo(f"[{section}]")
        for key, value in keys.items():
            click.echo(f"{key} = {value}" if value is not None else f"; {key} =")
        click.echo()


COMMANDS = {"config": config}
