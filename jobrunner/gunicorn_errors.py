"""What gunicorn has to say about requests: which answer it is worth, and what of it is logged."""

import logging
import sys
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.http import errors

_OURS = (errors.ConfigurationProblem, errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)
"""What is no client's fault, though it looks like it."""

_STATUSES: dict[type[Exception], int] = {
    errors.LimitRequestLine: 414,
    errors.ExpectationFailed: 417,
    errors.LimitRequestHeaders: 431,
    errors.UnsupportedTransferCoding: 501,
    errors.InvalidHTTPVersion: 505,
    errors.ParseException: 400,  # all the others
}


class QuietLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Makes no access log unless somebody reads it; gunicorn's own makes each line first, and then drops it."""

    def access(self, *args: Any) -> None:
        """Log a request."""
        if self.access_log.isEnabledFor(logging.INFO):
            super().access(*args)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log an error with its traceback; a client that was too slow is none."""
        log = super().debug if isinstance(sys.exc_info()[1], TimeoutError) else super().exception
        # Of a URL no query: it may be signed.
        log(msg, *(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in args), **kwargs)


def find_refusal(error: Exception) -> tuple[int, str] | None:
    """Return status and words for a request that gunicorn's parser refuses; None: the mistake is ours."""
    if isinstance(error, _OURS):
        return None
    status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), None)
    # The words may repeat what the client has sent, whatever that is.
    words = "".join(character if character.isprintable() else "?" for character in str(error)[:200])
    return None if status is None else (status, words or type(error).__name__)
