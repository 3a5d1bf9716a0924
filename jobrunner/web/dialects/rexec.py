"""rexec: a program runs as long as its client listens, as with the service in Rust."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack

from flask import Blueprint, Response
from werkzeug.exceptions import NotFound

from jobrunner.domain.access import Scope
from jobrunner.domain.errors import InvalidRequest, TooBusy
from jobrunner.domain.job import Job
from jobrunner.domain.spec import StepKind
from jobrunner.domain.step import name_problems
from jobrunner.domain.streams import Stream
from jobrunner.proc import identify_self
from jobrunner.service.output import Dropped, Happening, Interrupted, Written, notice
from jobrunner.service.submission import StepAsked, Submission
from jobrunner.web.dialects.dialect import Dialect, Why, answer, asked_path, here
from jobrunner.web.dialects.rexec_request import HERE, Asked, BadRequest, parse, rejoin
from jobrunner.web.dialects.starting import find_errno, has_run
from jobrunner.web.dialects.texts import PLAIN, in_texts
from jobrunner.web.parse import read_body
from jobrunner.web.services import caller, services
from jobrunner.web.streaming import require_threads, stream_with

NAME = "rexec"

bp = Blueprint(NAME, __name__)


@bp.post("/process")
def run() -> Response:
    """Run a program, and send its stdout as it comes; it is killed when the client goes."""
    if asked_path() != "/process":
        raise NotFound
    try:
        asked = parse(read_body())
    except BadRequest as error:
        return _bad_request(str(error))
    if problem := _start_problem(asked):
        return _not_started(problem)
    for scope in (Scope.EXEC, Scope.READ):
        services().access.require(caller(), scope)
    require_threads()
    seat = ExitStack()
    try:
        return _start(asked, seat)
    except BaseException:
        seat.close()
        raise


def _start(asked: Asked, seat: ExitStack) -> Response:
    """Run it, and answer when it has begun; ``seat`` is closed by the answer's end."""
    who, submissions, output = caller(), services().submissions, services().output
    job_id = submissions.make_id()
    # First: who is refused for want of a seat has not started anything.
    listener = seat.enter_context(services().followers.listen(job_id, who))
    try:
        job = submissions.submit(_submission(asked), who, job_id=job_id).job
    except InvalidRequest as error:
        seat.close()
        return _not_started(_system_text(_errno_of(error)))
    alone = seat.enter_context(ExitStack())
    alone.callback(services().jobs.abandon, job, who)
    try:
        job = output.until_begun(job, listener)
    except Interrupted as error:
        raise TooBusy(str(error)) from error
    if job.state.is_ended and not has_run(job):
        alone.pop_all()
        seat.close()
        return _not_started(_end_text(job))

    def body() -> Iterator[bytes]:
        yield from rejoin(map(_bytes, output.follow(job, {Stream.STDOUT: 0}, listener)))
        alone.pop_all()  # it has ended

    return stream_with(seat, body(), PLAIN)


def _submission(asked: Asked) -> Submission:
    return Submission(
        (StepAsked(StepKind.ARGV, (asked.cmd, *asked.args)),),
        env=asked.envs,
        cwd=str(here().work_dir / asked.cwd),
        is_cwd_ours=asked.cwd == HERE,
        name=_name(asked.alias),
        exclusive=True,
        holder=identify_self(),
    )


def _name(alias: str) -> str:
    """Return the name of the job that has this alias: itself, if it can be one."""
    if any(name_problems("#/alias", alias)):
        return f"sha256 {hashlib.sha256(alias.encode()).hexdigest()}"
    return alias


def _bytes(happening: Happening) -> bytes:
    match happening:
        case Written(data=data):
            return data
        case Dropped(hole=hole):
            return notice(hole)
    return b""


# ── what can't be started ──


def _start_problem(asked: Asked) -> str | None:
    """Say why no system would start this, or return None."""
    if any("\0" in text for text in (asked.cmd, *asked.args, asked.cwd, *asked.envs, *asked.envs.values())):
        return "nul byte found in provided data"
    if not asked.cmd or not asked.cwd:
        return _system_text(errno.ENOENT)
    return None


def _errno_of(error: InvalidRequest) -> int:
    """Return what the system would say of a request that was refused."""
    pointer = error.problems[0].pointer
    if pointer == "#/argv/0":
        return errno.ENOENT
    if pointer == "#/cwd":
        return errno.ENAMETOOLONG
    return errno.EINVAL if pointer.startswith("#/env") else errno.E2BIG


def _end_text(job: Job) -> str:
    """Say why a job that has ended never had a process."""
    if job.error is None:
        return _system_text(errno.ECANCELED)
    number = find_errno(job.error)
    return _system_text(number) if number is not None else job.error.detail


def _system_text(number: int) -> str:
    return f"{os.strerror(number)} (os error {number})"


# ── refusals ──


def _say(kind: str, text: str, status: int) -> Response:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return answer(f'[Rexec] {kind} : "{quoted}"', status, content_type=PLAIN)


def _bad_request(text: str = "") -> Response:
    return _say("InvalidCreateProcessRequest", text, 500)


def _not_started(text: str) -> Response:
    return _say("FailedToExecuteProcess", text, 404)


DIALECT = Dialect(
    name=NAME,
    blueprint=bp,
    refuse=in_texts(
        {
            Why.NO_ROUTE: lambda _: answer("Invalid path.", 501, content_type=PLAIN),
            Why.INVALID: lambda _: _bad_request(),
            Why.FORBIDDEN: lambda _: _not_started(_system_text(errno.EACCES)),
            Why.CONFLICT: lambda _: _say("AlreadyRunning", "", 409),
        }
    ),
    has_head=False,
)
