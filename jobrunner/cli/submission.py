"""What can be run, and what is to be: ``jobrunner submit|rerun|scripts``, and the options that ``run`` has as well."""

import base64
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from jobrunner.cli.common import duration_option, json_option, open_client, print_json, print_table, split_pair
from jobrunner.client import Document
from jobrunner.domain.errors import Forbidden

_PLAIN = ("command", "script", "cwd", "timeout", "grace", "name", "priority", "callback_url")
"""Options that are members of the submission as they are."""

_MOST = 1_000_000_000
"""Bytes that are read of an input: what is larger can't be stored by any service (SQLite's SQLITE_MAX_LENGTH)."""

_PIECE = 1 << 16

_OPTIONS = (
    click.option("--shell", "command", metavar="TEXT", help="Run TEXT by /bin/sh -c."),
    click.option("--script", metavar="NAME", help="Run a catalogued script; ARGV are its arguments."),
    click.option("--source", type=click.File("rb"), help="Run the text of this file as a script; - is stdin."),
    click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="Add to the environment; repeatable."),
    click.option(
        "--file",
        "files",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Send along; repeatable.",
    ),
    click.option("--stdin", type=click.File("rb"), help="Feed the job with this file; - is stdin."),
    click.option("--cwd", help="Where to run; default: the job's own directory."),
    duration_option("--timeout", help="How long it may run, like 5m."),
    duration_option("--grace", help="Between SIGTERM and SIGKILL."),
    click.option("--name"),
    click.option("--exclusive", is_flag=True, help="Only if no other job of its name waits or runs."),
    click.option("--priority", type=click.Choice(["low", "normal", "high"])),
    click.option("--label", "labels", multiple=True, metavar="KEY:VALUE", help="For filtering; repeatable."),
    click.option(
        "--merge-stderr/--separate-stderr",
        "merge_stderr",
        default=None,
        help="Keep both streams as one, in their exact order.",
    ),
    click.option("--callback-url", metavar="URL", help="Told when the job has ended."),
    click.option("--idempotency-key", metavar="KEY", help="A repeat with the same key starts nothing."),
)


def submission_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options, and the ARGV, that say what to run."""
    for option in (*_OPTIONS, click.argument("argv", nargs=-1, type=click.UNPROCESSED))[::-1]:
        command = option(command)
    return command


def make_submission(
    argv: tuple[str, ...], options: dict[str, Any], read_stdin: Callable[[], bytes | None] = lambda: None
) -> Document:
    """Return what to send to the service.

    Args:
        argv: the words behind the options.
        options: those of `submission_options`.
        read_stdin: reads what the job is fed with if no option says so.

    Raises:
        UsageError: an option makes no sense, or can't be sent.
        Forbidden: no service takes so much.
    """
    _check_text(argv, options)
    body: Document = {name: options[name] for name in _PLAIN}
    if options["source"]:
        # Before stdin, which it may be.
        body["source"] = _decode_source(read_input(options["source"]))
    if options["script"]:
        body["args"] = list(argv)
    elif argv:
        body["argv"] = list(argv)
    stdin = read_input(options["stdin"]) if options["stdin"] else read_stdin()
    body["stdin"] = _content(stdin) if stdin else None
    body["files"] = _read_files(options["files"]) or None
    body["env"] = dict(split_pair(pair, "=") for pair in options["env"]) or None
    body["labels"] = dict(split_pair(pair, ":") for pair in options["labels"]) or None
    body["exclusive"] = options["exclusive"] or None
    body["stderr"] = "stdout" if options["merge_stderr"] else None
    return {name: value for name, value in body.items() if value is not None}


def read_own_stdin() -> bytes | None:
    """Return all of this process's stdin; None: it is a terminal, or closed.

    Raises:
        Forbidden: no service takes so much.
        OSError: it can't be read.
    """
    return None if sys.stdin is None or sys.stdin.isatty() else read_input(sys.stdin.buffer)


def read_input(file: BinaryIO, most: int = _MOST) -> bytes:
    """Return all that is in a file.

    Raises:
        Forbidden: it is more than this; it may have no end at all.
        OSError: it can't be read.
    """
    pieces: list[bytes] = []
    size = 0
    while (piece := _read(file)) != b"":
        if piece is None:  # whom we share it with has made it non-blocking
            select.select([file], [], [])
            continue
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise Forbidden(f"{file.name} has more than {most} bytes: no service takes that")
    return b"".join(pieces)


def _read(file: BinaryIO) -> bytes | None:
    """Read on; None, which the type of ``read`` does not know, is nothing at present."""
    return file.read(_PIECE)


def _read_files(paths: tuple[Path, ...]) -> dict[str, Document]:
    files: dict[str, Document] = {}
    for path in paths:
        if path.name in files:
            raise click.UsageError(f"two files are named {path.name!r}; the job has one directory for them")
        with path.open("rb") as file:
            files[path.name] = _content(read_input(file))
    return files


def _check_text(argv: tuple[str, ...], options: dict[str, Any]) -> None:
    """Refuse words that JSON has no characters for: arguments are bytes here."""
    names = (path.name for path in options["files"])
    for text in (*argv, *options["env"], *options["labels"], *names, *(str(options[name]) for name in _PLAIN)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"{text!r} is not UTF-8, and can't be sent") from None


def _decode_source(source: bytes) -> str:
    try:
        return source.decode()
    except UnicodeDecodeError:
        raise click.UsageError("the source is not UTF-8, and can't be sent") from None


def _content(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


@click.command(context_settings={"allow_interspersed_args": False})
@submission_options
@json_option
@click.pass_context
def submit(ctx: click.Context, /, argv: tuple[str, ...], *, as_json: bool, **options: Any) -> None:
    """Submit a job and print its id. Options come before ARGV; -- ends them."""
    with open_client(ctx) as client:
        document = client.submit(make_submission(argv, options), idempotency_key=options["idempotency_key"])
    print_submitted(document, as_json=as_json)


@click.command()
@click.argument("job")
@click.option("--idempotency-key", metavar="KEY", help="A repeat with the same key starts nothing.")
@json_option
@click.pass_context
def rerun(ctx: click.Context, job: str, *, idempotency_key: str | None, as_json: bool) -> None:
    """Submit a job with the specification and inputs of another one; print its id."""
    with open_client(ctx) as client:
        document = client.rerun(job, idempotency_key=idempotency_key)
    print_submitted(document, as_json=as_json)


@click.command()
@json_option
@click.pass_context
def scripts(ctx: click.Context, *, as_json: bool) -> None:
    """List the scripts of the catalogue."""
    with open_client(ctx) as client:
        found = client.scripts()
    if as_json:
        print_json(found)
        return
    rows = [(script["name"], " ".join((script["description"] or "").split())) for script in found]
    print_table(("name", "description"), rows)


def print_submitted(document: Document, *, as_json: bool) -> None:
    """Print the id of a new job, or its document."""
    if as_json:
        print_json(document)
    else:
        click.echo(document["id"])


COMMANDS = {"submit": submit, "rerun": rerun, "scripts": scripts}
