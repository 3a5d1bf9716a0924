"""Callbacks: somebody is told by HTTP that a job has ended."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Any, Self

from jobrunner.domain.job import Job

URL_MAX = 2048

ATTEMPTS_MAX = 100
"""Attempts that are remembered: the last ones, since a callback may be sent again and again."""

_URL = re.compile(
    r"""(?P<scheme>https?)://
    (?: \[(?P<six>[0-9a-f:.]+)(?:%25(?P<zone>[a-z0-9._~-]+))?\] | (?P<name>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?) )
    (?: :(?P<port>\d{1,5}))?
    (?P<target>[/?\#].*)?""",
    re.VERBOSE | re.ASCII | re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443}

ID_HEADER = "webhook-id"
"""Names the header that every callback has, and nothing else that is sent (Standard Webhooks)."""


class CallbackState(StrEnum):
    """Where a callback is on its way."""

    PENDING = "pending"
    """It is owed: it was not taken yet."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """It was not taken as often as the schedule says."""

    STOPPED = "stopped"
    """The receiver does not want it (410)."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """What a URL says: where to connect to, and what to ask for there.

    Attributes:
        scheme: ``http`` or ``https``.
        host: a name in lower case without a dot at the end, or an address without brackets.
        lookup: the host as the resolver gets it: with that dot, or with the zone of the address.
        target: path and query.
    """

    scheme: str
    host: str
    lookup: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port, as the field ``Host`` has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def key(self) -> str:
        """What is the same for all callbacks that go to the same place."""
        return f"{self.host}:{self.port}"


def parse_url(url: str) -> Receiver:
    """Read the URL of a callback. Strictly: what two programs may read in two ways is refused.

    Raises:
        ValueError: it can't be one, and why.
    """
    if len(url) > URL_MAX:
        raise ValueError(f"must have at most {URL_MAX} characters")
    if not re.fullmatch(r"[!-~]+", url):
        raise ValueError("must be printable ASCII without spaces: write names as xn--…, other characters as %XX")
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _PORTS:
        raise ValueError("must begin with http:// or https://")
    if "@" in re.split(r"[/?#]", rest, maxsplit=1)[0]:
        raise ValueError("must not hold a user name or a password: it is shown to all who may read the job")
    found = _URL.fullmatch(url)
    port = int(found["port"] or _PORTS[scheme.lower()]) if found else 0
    if found is None or not 1 <= port <= 65535 or len(found["name"] or "") > 254:
        raise ValueError("must name a host, and if need be a port from 1 to 65535")
    try:
        host = str(IPv6Address(found["six"])) if found["six"] else found["name"].lower()
    except ValueError:
        raise ValueError("must have a valid IPv6 address between the brackets") from None
    target = (found["target"] or "").partition("#")[0]
    return Receiver(
        scheme=scheme.lower(),
        host=host.removesuffix("."),
        lookup=f"{host}%{found['zone']}" if found["zone"] else host,
        port=port,
        target=target if target.startswith("/") else f"/{target}",
    )


@dataclass(frozen=True, slots=True)
class Attempt:
    """A try to send a callback.

    Attributes:
        at: when it began.
        status: of the answer; None: there was none.
        error: why that is no success; None: it is one.
    """

    at: datetime
    status: int | None
    error: str | None

    def to_json(self) -> list[Any]:
        """Return what the database keeps."""
        return [self.at.isoformat(), self.status, self.error]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Self:
        """Turn stored JSON back."""
        return cls(at=datetime.fromisoformat(data[0]), status=data[1], error=data[2])


@dataclass(frozen=True, slots=True)
class Callback:
    """What has become of a job's callback, as it was when it was read.

    Attributes:
        id: of all its attempts, for the receiver; it is the job's.
        next_at: when the next attempt is due; None: there is none, or one is under way.
    """

    id: str
    url: str
    state: CallbackState
    next_at: datetime | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: UTF-8 in pieces, to be read once, and the headers that the API wants besides."""

    body: Iterable[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)


Teller = Callable[[Job], Message]
"""Makes what is sent about an ended job, in the words of the API that it came through."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a callback is sent, and again.

    Attributes:
        delays: seconds before each attempt, from the end of the job or of the attempt before.
    """

    delays: tuple[float, ...]

    @property
    def first(self) -> float:
        """Seconds between the end of a job and the first attempt."""
        return self.delays[0]

    def pause(self, tried: int, *, retry_after: float | None, luck: float) -> float | None:
        """Return the seconds until the next attempt; None: there is none.

        Args:
            tried: how often it was sent.
            retry_after: seconds that the receiver wants to be left alone.
            luck: from 0 to 1, at random: callbacks that failed together don't come again together.
        """
        if tried >= len(self.delays):
            return None
        return max(self.delays[tried] * (1 + luck / 10), retry_after or 0.0)
