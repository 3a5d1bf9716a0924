"""Logging: one line a record, as text or JSON, with the job's number on every line that is about one."""

import json
import logging
import re
import time
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from jobrunner.domain.access import TOKEN_PREFIX
from jobrunner.domain.text import escape_controls

# No line of ours tells the thread, the process or the place in the code: the
# library then need not find them out (Logging HOWTO, "Optimization").
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
logging._srcfile = None  # noqa: SLF001 as the HOWTO has it

JOB: ContextVar[int | None] = ContextVar("job", default=None)
"""The number of the job that this thread is about."""


_BLANK = r"(?:\s|\\+t)"
"""White space; in a line it may be escaped already."""

_CREDENTIAL = re.compile(
    rf"(authorization[:=]{_BLANK}*(?:[\w-]+{_BLANK}+)?)[^\s\"'\\]+"
    rf"|({TOKEN_PREFIX}|signature=|\b(?:basic|bearer){_BLANK}+)[\w.~+/=-]{{16,}}",
    re.ASCII | re.IGNORECASE,
)
"""A token, or what is as good as one: the signature of a URL, the value of an Authorization header.

Of such a header one word besides its scheme, however short: who writes the line could hide all that follows.
"""

_WORD = re.compile(r"(?!(?:null|true|false|-?\d+(?:\.\d+)?(?:[Ee][+-]?\d+)?)$)[\w./:@+-]+", re.ASCII)
"""A text that needs no quotes, and is taken for nothing else."""


def _hide_credentials(line: str) -> str:
    """Take out of a line what would let its readers in, wherever it has come from."""
    return _CREDENTIAL.sub(lambda found: f"{found[1] or found[2]}***", line)


class _JobFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "job"):
            record.job = JOB.get()
        return True


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """Write the time as RFC 3339, in UTC."""
        return f"{_format_second(int(record.created))}.{int(record.msecs):03d}Z"


class TextFormatter(_Formatter):
    """``2026-01-31T12:00:00.123Z INFO jobrunner.executor [job 17] succeeded``.

    A record is one line, whatever a client or a job has put into it. Only a
    traceback has more, since people read it; its lines are indented, so that
    none of them can pass for a record. Fields (``extra={"fields": {…}}``) come
    as ``key=value``, the value in JSON unless it is a word.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 the library's name
        """Write the line, without a traceback."""
        job = getattr(record, "job", None)
        about = f"[job {job}] " if job is not None else ""
        pairs = " ".join(f"{key}={_render(value)}" for key, value in getattr(record, "fields", {}).items())
        words = _hide_credentials(escape_controls(f"{record.message} {pairs}".strip() if pairs else record.message))
        return f"{self.formatTime(record)} {record.levelname} {record.name} {about}{words}"

    def formatException(self, ei: Any) -> str:  # noqa: N802 the library's name
        """Write a traceback."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {_hide_credentials(escape_controls(line))}" for line in lines)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _render(value: object) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return _encode(value)


@lru_cache(maxsize=2)
def _format_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


_LATE_CONTROL = re.compile(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What steers terminals, ends lines or turns them around, and JSON need not escape."""


class JsonFormatter(_Formatter):
    """One JSON object a line: time, level, logger, job, message, the record's fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record."""
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "job": getattr(record, "job", None),
            "message": record.getMessage() or None,
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        given = {key: value for key, value in fields.items() if value is not None}
        line = json.dumps(given | getattr(record, "fields", {}), ensure_ascii=False)
        return _hide_credentials(_LATE_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line))


_FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}

_LEAST = {"gunicorn.access": "WARNING", "alembic": "WARNING", "jobrunner.audit": "INFO"}
"""The least levels of those who say too much, and of the one who is always heard."""


def logging_config(style: str, level: str) -> dict[str, object]:
    """Return the configuration for gunicorn's ``logconfig_dict``: what `set_up_logging` does.

    Args:
        style: ``text`` or ``json``.
        level: the least level that is written.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"job": {"()": _JobFilter}},
        "formatters": {"line": {"()": _FORMATTERS[style]}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["job"]}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "propagate": True},
            **{name: {"level": least, "propagate": True} for name, least in _LEAST.items()},
        },
    }


def set_up_logging(style: str, level: str) -> None:
    """Send this process's log to stderr. Without logging.config, which is a twentieth of the supervisor's memory."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATTERS[style]())
    handler.addFilter(_JobFilter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, least in _LEAST.items():
        logging.getLogger(name).setLevel(least)
