"""Answers that come bit by bit, as long as a job runs."""

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from flask import Response, request

from jobrunner.domain.errors import JobNotFound, TooBusy, Unauthenticated
from jobrunner.domain.job import Job
from jobrunner.service.output import Dropped, Happening, Interrupted, Written, notice
from jobrunner.service.waiting import Listener
from jobrunner.web.services import caller, services


def send_stream(job: Job, make_body: Callable[[Listener], Iterator[bytes]], content_type: str) -> Response:
    """Answer with what a follower's seat is needed for; the seat is taken now, and given back with the answer's end.

    Args:
        job: that is followed.
        make_body: makes what is sent, with the seat's listener; an empty piece is for nobody but the server.
        content_type: as the header has it.

    Raises:
        TooBusy: too many follow already, or this server has no thread to spare.
    """
    if request.method == "HEAD":
        return _stream(iter(()), content_type)  # of a list Werkzeug would tell the length, which no stream has
    require_threads()
    seat = ExitStack()
    try:
        listener = seat.enter_context(services().output.following(job, caller()))
        return stream_with(seat, make_body(listener), content_type)
    except BaseException:
        seat.close()
        raise


def require_threads() -> None:
    """Let those pass whose request does not keep this server from answering others.

    Raises:
        TooBusy: it would.
    """
    if not request.environ.get("wsgi.multithread"):
        raise TooBusy("this server answers one request at a time; start it with threads to follow output")


def stream_with(seat: ExitStack, body: Iterator[bytes], content_type: str) -> Response:
    """Answer with a body as it comes, the head at once; ``seat`` is closed with the answer's end."""
    response = _stream(finish(_after_the_head(body)), content_type)
    response.call_on_close(seat.close)
    return response


def _stream(body: Iterator[bytes], content_type: str) -> Response:
    response = Response(body, content_type=content_type)
    response.headers["X-Accel-Buffering"] = "no"  # nginx would keep it until it has a page full
    return response


def finish(body: Iterator[bytes]) -> Iterator[bytes]:
    """Pass a body on; break the connection where it breaks off, so that no client takes it for the whole.

    Raises:
        ConnectionResetError: it can't be finished.
    """
    try:
        yield from body
    except (Interrupted, JobNotFound, Unauthenticated) as error:
        raise ConnectionResetError(errno.ECONNRESET, str(error)) from error


def bytes_of(happenings: Iterable[Happening], *, may_drop: bool = True) -> Iterator[bytes]:
    """Return what is to be sent, with a notice in the place of what was dropped.

    Raises:
        Interrupted: bytes were dropped whose number was promised.
    """
    for happening in happenings:
        match happening:
            case Written(data=data):
                yield data
            case Dropped(hole=hole):
                if not may_drop:
                    raise Interrupted("what was asked for is no longer kept")
                yield notice(hole)


def _after_the_head(body: Iterator[bytes]) -> Iterator[bytes]:
    yield b""  # has the head sent at once, while the job may be silent for long
    yield from body
