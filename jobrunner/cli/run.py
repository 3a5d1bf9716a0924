"""``jobrunner run|wait``: a job in the foreground, as if it ran here."""

import os
import stat
import sys
import time
import uuid
from math import inf
from typing import Any

import click

from jobrunner.cli import BROKEN_PIPE
from jobrunner.cli.common import duration_option, json_option, open_client, print_json
from jobrunner.cli.ending import (
    CANCELED,
    TIMED_OUT,
    describe_end,
    end_by_signals,
    exit_code,
    has_ended,
    trouble_told,
)
from jobrunner.cli.interrupts import Interrupted, Interrupts
from jobrunner.cli.output import describe_dropped, follow_or_give_up, patience_option
from jobrunner.cli.submission import make_submission, print_submitted, read_own_stdin, submission_options
from jobrunner.cli.terminal import STDERR, STDOUT, StatusLine, open_outputs
from jobrunner.client import Client, Document, Dropped, Ended, Event, Moved, NeverSent, Output, Patience, ServiceError
from jobrunner.domain.errors import Forbidden, JobrunnerError, TooBusy, Unauthenticated, Unreachable
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream

_WAIT = 20.0
"""Seconds that one request waits for the end of a job."""

_LOOK = 1.0
"""Seconds between two looks at a job, where the service does not wait."""

_SHORT = 10.0
"""Seconds to try to tell the service that nobody reads any more."""

_DESCRIPTORS = {Stream.STDOUT: STDOUT, Stream.STDERR: STDERR}


@click.command(context_settings={"allow_interspersed_args": False})
@submission_options
@click.option("-d", "--detach", is_flag=True, help="Print the job's id, and leave it alone.")
@patience_option
@json_option
@click.pass_context
def run(
    ctx: click.Context, /, argv: tuple[str, ...], *, detach: bool, patience: float, as_json: bool, **options: Any
) -> None:
    """Run a command over there as if it ran here: its output, its input, its exit code; Ctrl-C ends it.

    Options come before ARGV; -- ends them. Stdin is read to its end first, unless it is a terminal.
    """
    if as_json and not detach:
        raise click.UsageError("--json is for --detach: what the job writes is printed as it is")
    end_by_signals()
    open_outputs()
    if options["merge_stderr"] is None:
        options["merge_stderr"] = not detach and _are_one()
    body = make_submission(argv, options, read_own_stdin)
    key = options["idempotency_key"] or str(uuid.uuid4())
    with trouble_told():
        if detach:
            with open_client(ctx) as client:
                document = client.submit(body, idempotency_key=key, patience=Patience(patience))
            print_submitted(document, as_json=as_json)
            return
        line = StatusLine()
        # In this order: the line's thread must not take the signals.
        with open_client(ctx) as client, open_client(ctx) as other, Interrupts(other, line) as interrupts, line:
            code = _Foreground(client, line, interrupts, patience).run(body, key)
    sys.exit(code)


def _are_one() -> bool:
    """Tell whether stdout and stderr go to the same place, so that only their order tells them apart."""
    try:
        return os.path.sameopenfile(STDOUT, STDERR) and (
            os.isatty(STDOUT) or not stat.S_ISCHR(os.fstat(STDOUT).st_mode)
        )
    except OSError:
        return False


class _Foreground:
    """One job, from its submission to its end."""

    def __init__(self, client: Client, line: StatusLine, interrupts: Interrupts, seconds: float) -> None:
        self._client = client
        self._line = line
        self._interrupts = interrupts
        self._seconds = seconds
        self._state = ""
        self._may_be_submitted = False

    def run(self, body: Document, key: str) -> int:
        """Return what to exit with."""
        try:
            job = self._submit(body, key)
        except Interrupted:
            if self._may_be_submitted:
                self._line.tell(_unknown(key))
            return CANCELED
        self._interrupts.send_to(job)
        try:
            return self._follow(job)
        except OSError as error:  # our own outputs; all else is a JobrunnerError
            self._end_unread(job)
            if isinstance(error, BrokenPipeError):
                return BROKEN_PIPE
            raise

    def _submit(self, body: Document, key: str) -> str:
        patience = Patience(self._seconds, pause=self._pause_before_submission)
        try:
            job: str = self._client.submit(body, idempotency_key=key, patience=patience)["id"]
        except NeverSent:
            raise
        except Unreachable as error:
            raise Unreachable(f"{error}\n{_unknown(key)}") from error
        return job

    def _pause_before_submission(self, seconds: float, error: JobrunnerError) -> None:
        self._may_be_submitted |= not isinstance(error, NeverSent | TooBusy)
        self._line.say(f"not submitted: {error}; trying again")
        self._interrupts.pause(seconds)

    def _follow(self, job: str) -> int:
        patience = Patience(self._seconds, pause=self._pause)
        patience.renew()  # the submission was answered
        try:
            for event in follow_or_give_up(self._client, job, None, patience):
                self._take(event)
                if isinstance(event, Ended):
                    return self._end(event.job)
        except (Forbidden, Unauthenticated, ServiceError):
            self._line.tell(f"job {job} goes on by itself")
            raise
        raise AssertionError("the events of a job end with its end")

    def _take(self, event: Event) -> None:
        match event:
            case Output(stream=stream, data=data):
                self._line.write(_DESCRIPTORS[stream], data)
            case Dropped():
                self._line.tell(describe_dropped(event))
            case Moved(job=job):
                self._state = job["state"]
        if not self._interrupts.came:
            self._line.say(self._state, is_silent=self._state == JobState.QUEUED)

    def _pause(self, seconds: float, error: JobrunnerError) -> None:
        if not self._interrupts.came:
            self._line.say(f"{error}; trying again")
        time.sleep(seconds)

    def _end(self, job: Document) -> int:
        words = describe_end(job)
        if words and not (self._interrupts.came and job["state"] == JobState.CANCELED):
            self._line.tell(words)
        return exit_code(job)

    def _end_unread(self, job: str) -> None:
        """Cancel a job whose output can't be written any more: here it would have got SIGPIPE."""
        patience = Patience(_SHORT)
        patience.renew()
        try:
            patience.insist(lambda: self._client.cancel(job))
        except JobrunnerError as error:
            self._line.tell(f"the job could not be canceled: {error}")


def _unknown(key: str) -> str:
    return f"whether the job was submitted is not known; with --idempotency-key {key} it will not be a second time"


@click.command()
@click.argument("job")
@duration_option("--timeout", help="Wait no longer than this.")
@patience_option
@json_option
@click.pass_context
def wait(ctx: click.Context, job: str, *, timeout: float | None, patience: float, as_json: bool) -> None:
    """Wait for the end of a job, and exit as it did; with 124 if it has not ended in time."""
    end_by_signals()
    with trouble_told(), open_client(ctx) as client, StatusLine() as line:
        patient = Patience(patience)
        document = patient.insist(lambda: client.get(job))
        document = _wait(client, document, timeout, patient, line)
        if has_ended(document):
            words, code = describe_end(document), exit_code(document)
        else:
            words, code = f"is {document['state']} after {timeout:g} s", TIMED_OUT
        if words:
            line.tell(words)
    if as_json:
        print_json(document)
    sys.exit(code)


def _wait(client: Client, document: Document, seconds: float | None, patience: Patience, line: StatusLine) -> Document:
    """Return a job as it is when it has ended, or after so many seconds."""
    deadline = time.monotonic() + (inf if seconds is None else seconds)
    is_busy = False
    while not has_ended(document) and (now := time.monotonic()) < deadline:
        line.say(document["state"])
        asked = min(_WAIT, deadline - now)
        try:
            document = client.get(document["id"], wait=0 if is_busy else asked)
        except JobrunnerError as error:
            # Without a waiter's seat a look is all that can be had.
            is_busy = isinstance(error, TooBusy)
            patience.endure(error)
            continue
        is_busy = False
        patience.renew()
        if not has_ended(document) and time.monotonic() - now < min(_LOOK, asked):
            time.sleep(min(_LOOK, asked))
    return document


COMMANDS = {"run": run, "wait": wait}
