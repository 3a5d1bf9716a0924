"""``/v1/jobs/ID/events``: what a job writes and what becomes of it, as a browser's ``EventSource`` reads it."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flask import Response, request

from jobrunner.domain.errors import InvalidRequest
from jobrunner.domain.streams import Stream
from jobrunner.service.document import job_path, render_job, render_time
from jobrunner.service.output import Dropped, Happening, Moved, Quiet, Written
from jobrunner.service.waiting import Listener
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import ProblemDocument, StreamUrlDocument
from jobrunner.web.api.schema import EventsQuery, JobPath
from jobrunner.web.render import json_response
from jobrunner.web.services import caller, services
from jobrunner.web.sse import HEARTBEAT, RETRY, TextCutter, render_event
from jobrunner.web.streaming import send_stream

bp = ApiBlueprint("events", __name__, url_prefix="/v1/jobs", abp_responses={"default": ProblemDocument})

HEARTBEAT_SECONDS = 15.0
"""Proxies give a quiet connection up after a minute or less."""

_AT_A_TIME = 1 << 15
"""Most bytes in one event."""

_ENDED = "end"


@bp.get("/<job_id>/events")
def events(path: JobPath, query: EventsQuery) -> Response:  # noqa: ARG001 the guard has taken the signature
    """Send what happens to a job as server-sent events: `stdout`, `stderr`, `dropped`, `state`, and `end`, the last.

    Each `id` has the offsets of both streams: sent in `Last-Event-ID` it goes on at the exact byte. After `end`: 204.
    """
    offsets = _parse_last_event_id(request.headers.get("Last-Event-ID"))
    job = services().jobs.get(path.job_id, caller())
    if offsets is None:
        return Response(status=204)  # has an EventSource give up
    output, jobs, who = services().output, services().jobs, caller()

    def document() -> dict[str, Any]:
        return render_job(jobs.get(job.id, who), output)

    def body(listener: Listener) -> Iterator[bytes]:
        return _Writer(offsets, document).write(output.follow(job, offsets, listener))

    return send_stream(job, body, "text/event-stream")


@bp.post("/<job_id>/stream-url", responses={200: StreamUrlDocument})
def stream_url(path: JobPath) -> Response:
    """Make a URL of the events that needs no token, for some minutes: an `EventSource` sends no header."""
    signed = services().jobs.sign_stream(path.job_id, caller())
    url = f"{job_path(signed.job)}/events?signature={signed.signature}"
    return json_response({"url": url, "expires_at": render_time(signed.expires_at)})


def _parse_last_event_id(text: str | None) -> dict[Stream, int] | None:
    """Return where to begin; None: the client has seen the end.

    Raises:
        InvalidRequest: it is not one of ours.
    """
    found = re.fullmatch(r"(\d{1,18})-(\d{1,18})(-end)?", text or "0-0", re.ASCII)
    if not found:
        raise InvalidRequest.at("Last-Event-ID", "is not an id of these events; send the last one as it was")
    return None if found[3] else {Stream.STDOUT: int(found[1]), Stream.STDERR: int(found[2])}


class _Writer:
    """Turns what happens to one job into events."""

    def __init__(self, offsets: Mapping[Stream, int], document: Callable[[], dict[str, Any]]) -> None:
        self._cutters = {stream: TextCutter(at) for stream, at in offsets.items()}
        self._document = document
        self._sent_at = time.monotonic()

    def write(self, happenings: Iterable[Happening]) -> Iterator[bytes]:
        """Return what is to be sent, to the end of the job."""
        yield RETRY
        for happening in happenings:
            for piece in self._render(happening):
                yield piece
                self._sent_at = time.monotonic()
        for stream in self._cutters:
            yield from self._flush(stream)
        yield self._event(_ENDED, self._document(), f"-{_ENDED}")

    def _render(self, happening: Happening) -> Iterator[bytes]:
        match happening:
            case Written(stream, _, data):
                for begin in range(0, len(data), _AT_A_TIME):
                    for told in self._cutters[stream].feed(data[begin : begin + _AT_A_TIME]):
                        yield self._event(stream, told)
            case Dropped(stream, hole):
                yield from self._flush(stream)
                self._cutters[stream].at = hole.stop
                yield self._event("dropped", {"stream": stream, "from": hole.start, "to": hole.stop})
            case Moved():
                yield self._event("state", self._document())
            case Quiet():
                if time.monotonic() >= self._sent_at + HEARTBEAT_SECONDS:
                    yield HEARTBEAT

    def _flush(self, stream: Stream) -> Iterator[bytes]:
        for told in self._cutters[stream].flush():
            yield self._event(stream, told)

    def _event(self, name: str, data: Any, mark: str = "") -> bytes:
        event_id = f"{self._cutters[Stream.STDOUT].at}-{self._cutters[Stream.STDERR].at}{mark}"
        return render_event(name, event_id, data)
