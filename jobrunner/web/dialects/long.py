"""Answers that may be too long to be in memory as a whole."""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain

from flask import Response

from jobrunner.service.waiting import Waiters
from jobrunner.web.dialects.dialect import answer
from jobrunner.web.dialects.written import gather
from jobrunner.web.services import services
from jobrunner.web.streaming import finish

SHORT = 1 << 20
"""Bytes of an answer that is sent as a whole; what is longer is sent bit by bit, to who has a seat."""


def answer_long(text: Iterable[str], status: int = 200, *, content_type: str, seats: Waiters | None = None) -> Response:
    """Answer with a text.

    Args:
        text: what is longer than `SHORT` is read while it is sent.
        status: the HTTP status.
        content_type: as the header has it.
        seats: where its client gets one; None: among the followers.

    Raises:
        TooBusy: it is long, and there is no seat.
    """
    pieces = gather(text)
    begin, size = [], 0
    for piece in pieces:
        begin.append(piece)
        size += len(piece)
        if size > SHORT:
            break
    else:
        return answer(b"".join(begin), status, content_type=content_type)
    seat = ExitStack()
    # Its client may take it slowly, and a thread waits for that: not one of those for ordinary requests.
    seat.enter_context((seats or services().followers).seat())
    response = Response(finish(chain(begin, pieces)), status, content_type=content_type)
    response.call_on_close(seat.close)
    return response
