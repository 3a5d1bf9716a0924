"""``jobrunner status|list``: from the database, or from a service."""

import os
from typing import TYPE_CHECKING, Any

import click

from jobrunner.cli.common import json_option, open_client, open_data, print_json, print_table, split_pair
from jobrunner.domain.access import ADMINISTRATOR, Caller
from jobrunner.domain.job import Job, JobFilter, parse_label_filters
from jobrunner.domain.states import ACTIVE, ENDED, JobState
from jobrunner.domain.text import escape_controls
from jobrunner.service.tokens import LOCAL_NAME

if TYPE_CHECKING:
    from jobrunner.service.jobs import JobService

_LOCAL = Caller(LOCAL_NAME, ADMINISTRATOR)
"""Who can read the data directory may see all that is in it."""

_STATES = {state.value: frozenset({state}) for state in JobState} | {"active": ACTIVE, "ended": ENDED}


def _is_remote() -> bool:
    """Tell whether a server is meant; else the database is read directly, so that these work with the server down."""
    return bool(os.environ.get("JOBRUNNER_URL"))


@click.command()
@click.argument("job")
@json_option
@click.pass_context
def status(ctx: click.Context, job: str, *, as_json: bool) -> None:
    """Show a job, by its id or number."""
    if _is_remote():
        document = open_client(ctx).get(job)
    else:
        from jobrunner.service.document import render_job

        house = open_data(ctx)
        document = render_job(house.jobs.get(job, _LOCAL), house.output)
    if as_json:
        print_json(document)
        return
    for name, value in _facts(document):
        click.echo(f"{name + ':':12} {escape_controls(value)}")


@click.command(name="list")
@click.option("--state", "states", multiple=True, type=click.Choice(sorted(_STATES)), help="Only these; repeatable.")
@click.option("--name", help="Only jobs of this name.")
@click.option("--label", "labels", multiple=True, metavar="KEY:VALUE", help="Only jobs with all of these.")
@click.option("-q", "text", metavar="TEXT", help="Only jobs with this in name or command.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
@click.pass_context
def list_jobs(
    ctx: click.Context,
    states: tuple[str, ...],
    name: str | None,
    labels: tuple[str, ...],
    text: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """List jobs, newest first."""
    if _is_remote():
        filters = {"state": states, "name": name, "label": labels, "q": text, "limit": limit}
        documents = open_client(ctx).list(filters)
    else:
        from jobrunner.service.document import render_job

        house = open_data(ctx)
        wanted = JobFilter(
            states=frozenset().union(*(_STATES[state] for state in states)),
            name=name,
            labels=parse_label_filters(split_pair(label, ":") for label in labels),
            text=text,
        )
        documents = [render_job(job, house.output) for job in _find_jobs(house.jobs, wanted, limit)]
    if as_json:
        print_json(documents)
        return
    print_table(("number", "id", "state", "exit", "created", "name", "command"), [_row(job) for job in documents])


def _find_jobs(jobs: "JobService", wanted: JobFilter, limit: int) -> list[Job]:
    """Return as many jobs as asked for, from as many pages as it takes."""
    found: list[Job] = []
    before: int | None = None
    while True:
        page = jobs.list(wanted, _LOCAL, limit=limit - len(found), before=before)
        found += page.jobs
        before = page.before
        if before is None or len(found) >= limit:
            return found


def _facts(job: dict[str, Any]) -> list[tuple[str, str]]:
    facts: list[tuple[str, Any]] = [
        ("id", job["id"]),
        ("number", str(job["number"])),
        ("name", job["name"]),
        ("state", job["state"]),
        ("command", _command(job) if len(job["steps"]) == 1 else None),
        *_steps(job),
        ("exit code", job["exit_code"]),
        ("signal", job["signal"]),
        ("error", f"{job['error']['code']}: {job['error']['detail']}" if job["error"] else None),
        ("owner", job["owner"]),
        ("created", job["created_at"]),
        ("started", job["started_at"]),
        ("finished", job["finished_at"]),
        ("stdout", f"{job['stdout']['bytes']} bytes"),
        ("stderr", f"{job['stderr']['bytes']} bytes"),
        ("canceled by", job["cancel"]["by"] if job["cancel"] else None),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    ended = job["signal"] or (str(job["exit_code"]) if job["exit_code"] is not None else "")
    created = job["created_at"][:19] + "Z"
    return (str(job["number"]), job["id"], job["state"], ended, created, job["name"] or "", _command(job))


def _command(job: dict[str, Any]) -> str:
    """Return the commands on one line, cut for a screen."""
    return _cut("; ".join(map(_words, job["steps"])))


def _words(step: dict[str, Any]) -> str:
    words = step["argv"][2:] if step["kind"] == "command" else step["argv"]
    return " ".join(words)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"


def _steps(job: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a line for each of several steps."""
    steps = job["steps"]
    if len(steps) == 1:
        return []
    return [
        (f"step {step['index']}", f"{step['state']:12} {_cut(_words(step) if step['name'] is None else step['name'])}")
        for step in steps
    ]


COMMANDS = {"status": status, "list": list_jobs}
