"""How a job's end becomes the end of a command: ``run`` and ``wait`` exit as the job's own command would have.

its own code · 128+n signal n · 124 timed out · 125 lost, output limit, or a mistake of the service · 126 not
executable · 127 not found · 130 canceled · 141 nobody reads the output any more, as for all commands
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from jobrunner.client import Document, ServiceError
from jobrunner.domain.exitstatus import parse_signal
from jobrunner.domain.job import ErrorCode
from jobrunner.domain.states import ACTIVE, JobState

TIMED_OUT, TROUBLE, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127
CANCELED = 128 + signal.SIGINT

_OF_STATES = {
    JobState.TIMED_OUT: TIMED_OUT,
    JobState.CANCELED: CANCELED,
    JobState.OUTPUT_LIMIT: TROUBLE,
    JobState.LOST: TROUBLE,
}

_OF_ERRORS = {
    ErrorCode.NOT_FOUND: NOT_FOUND,
    ErrorCode.PERMISSION_DENIED: NOT_EXECUTABLE,
    ErrorCode.EXEC_FORMAT: NOT_EXECUTABLE,
    ErrorCode.ARGUMENTS_TOO_LONG: NOT_EXECUTABLE,
}


def has_ended(job: Document) -> bool:
    """Tell whether a job's document is its last one."""
    return job["state"] not in ACTIVE


def exit_code(job: Document) -> int:
    """Return what to exit with for a job that has ended, by its document."""
    if job["state"] in _OF_STATES:
        return _OF_STATES[job["state"]]
    if job["exit_code"] is not None:
        return int(job["exit_code"])
    if job["signal"]:
        name = job["signal"].removeprefix("SIG")
        return 128 + (int(name) if name.isdecimal() else parse_signal(name))
    return _OF_ERRORS.get(job["error"]["code"], TROUBLE) if job["error"] else TROUBLE


def describe_end(job: Document) -> str | None:
    """Say how a job has ended; None: its exit code says it all."""
    words = None
    if job["state"] == JobState.TIMED_OUT:
        words = f"timed out after {job['timeout']:g} s"
    elif job["state"] == JobState.CANCELED:
        words = f"canceled by {job['cancel']['by']}" if job["cancel"] else "canceled"
    elif job["error"]:
        words = f"{job['error']['code']}: {job['error']['detail']}"
    elif job["state"] in _OF_STATES:
        words = job["state"].replace("_", " ")
    elif job["signal"]:
        words = f"ended by {job['signal']}"
    return words


def end_by_signals() -> None:
    """Have Ctrl-C end this process as it ends most others, without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def trouble_told() -> Iterator[None]:
    """Keep mistakes of the service apart from what a job may exit with."""
    try:
        yield
    except ServiceError as error:
        click.echo(f"jobrunner: {error}", err=True)
        sys.exit(TROUBLE)
