"""What the tests of all dialects share: a service, a request, and the answer that it must get, byte for byte."""

import http.client
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobrunner.config_dialects import DIALECTS
from tests.service import Service, free_port

ANYONE = {"auth": "none", "run_as": "admin"}
"""Settings of a dialect that anyone may speak: the original asks for nothing."""

SECRET = "s"
"""What clients of rtot have, where a service speaks all dialects."""


@dataclass(frozen=True)
class Answer:
    """What came back; the names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Asking:
    """A client of a dialect.

    Attributes:
        prefix: what stands before each path; empty on the dialect's own port.
        headers: sent with each request.
    """

    port: int
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, body: bytes | str = b"", **headers: Any) -> Answer:
        """Ask; ``headers`` with ``_`` for ``-``, and None leaves one out."""
        sent: dict[str, str | None] = {
            **self.headers,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        data = body.encode() if isinstance(body, str) else body
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            given = {name: value for name, value in sent.items() if value is not None}
            connection.request(method, self.prefix + path, data or None, given)
            with connection.getresponse() as response:
                found = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, found, response.read())

    @contextmanager
    def stream(self, method: str, path: str, body: str = "") -> Iterator[http.client.HTTPResponse]:
        """Ask, and read the answer as it comes; when this is left, the client goes."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, self.prefix + path, body or None, dict(self.headers))
            with connection.getresponse() as response:
                yield response


@contextmanager
def speaking(directory: Path, name: str, settings: Mapping[str, Any], **others: Mapping[str, Any]) -> Iterator[Service]:
    """Run a plain gunicorn that speaks a dialect, below its prefix and at a port of its own.

    Args:
        directory: where its data directory is made.
        name: of the dialect.
        settings: of its section, besides that it is enabled.
        others: other sections.
    """
    section = {"enabled": "yes", "port": free_port(), **settings}
    command = (sys.executable, "-m", "gunicorn", "wsgi:app", "-w", "2")
    sections = {f"dialect_{_word(name)}": section, **{other: dict(values) for other, values in others.items()}}
    running = Service(directory / "data", sections, command=command).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def doors(service: Service, name: str, **headers: str) -> list[Asking]:
    """Return clients of a dialect: at its own port, and below its prefix."""
    port = int(service.environment[f"JOBRUNNER_DIALECT_{_word(name).upper()}_PORT"])
    return [Asking(port, "", headers), Asking(service.port, f"/{name}", headers)]


def _word(name: str) -> str:
    return name.replace("-", "_")


def all_dialects(**settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings with which a service speaks all dialects, each below its prefix and at a port of its own.

    Args:
        settings: more of them, by section: ``dialect_qmd={"scripts_dir": …}``.
    """
    found: dict[str, dict[str, Any]] = dict(settings)
    for name in DIALECTS:
        section = f"dialect_{_word(name)}"
        who = {"secret": SECRET} if name == "rtot" else ANYONE
        found[section] = {"enabled": "yes", "port": free_port(), **who, **found.get(section, {})}
    return found


def doors_of(service: Service, name: str) -> list[Asking]:
    """Return clients of one of `all_dialects`: at its own port, and below its prefix."""
    return doors(service, name, **({"Authorization": f"rtot {SECRET}"} if name == "rtot" else {}))
