"""What the tests of all dialects share: a request and the answer that it must get, byte for byte."""

import http.client
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from tests.service import Service


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


def doors(service: Service, name: str, port: int, **headers: str) -> list[Asking]:
    """Return clients of a dialect: at its own port, and below its prefix."""
    return [Asking(port, "", headers), Asking(service.port, f"/{name}", headers)]
