"""One attempt: an HTTP request to an address that was checked, within a time that a receiver can't prolong.

The standard library's client is enough, and little else would do: sessions,
redirects, cookies, proxies of the environment and credentials of a ``.netrc``
are just what a callback must not have.
"""

import http.client
import io
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from ipaddress import ip_address
from typing import IO, Any

import jobrunner
from jobrunner.clock import Now
from jobrunner.domain.addresses import AddressPolicy
from jobrunner.domain.callback import Receiver

ANSWER_MAX = 65536
"""Most bytes that are read of an answer, so that a receiver gets rid of it."""

RETRY_AFTER_MAX = 86400.0
"""Most seconds that a receiver can have us wait by ``Retry-After``."""

Place = tuple[socket.AddressFamily, Any]
"""A family of addresses, and an address of it as `socket.socket.connect` takes it."""

Resolve = Callable[[str, int], list[Place]]
"""Finds the addresses of a host and port."""


_BLOCK = 1 << 16
"""Most bytes of a body that are read at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver has said.

    Attributes:
        retry_after: seconds that it wants to be left alone; None: it does not say.
    """

    status: int
    retry_after: float | None = None


class NoAnswer(Exception):
    """There was no answer; the message says why.

    Attributes:
        is_slow: the time was used up: other callbacks to this receiver would take as long.
    """

    def __init__(self, words: str, *, is_slow: bool = False) -> None:
        super().__init__(words)
        self.is_slow = is_slow


def resolve(host: str, port: int) -> list[Place]:
    """Ask the system for the addresses of a host; an address is its own. How long that takes is up to the system."""
    return [(family, place) for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Sender:
    """Sends requests. One object serves all threads of a process.

    Args:
        policy: where they may go.
        now: the clock, for a ``Retry-After`` that is a date.
        resolve: finds addresses.
        trust: certificates that servers must have; None: those that the system trusts.
    """

    def __init__(
        self, policy: AddressPolicy, now: Now, *, resolve: Resolve = resolve, trust: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._now = now
        self._resolve = resolve
        if trust is not None:
            self._trust = trust

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context()  # reads all certificates of the system

    def post(self, receiver: Receiver, headers: Mapping[str, str], body: IO[bytes], seconds: float) -> Answer:
        """Send a POST request, follow nothing, and return the answer's status.

        Args:
            receiver: where to.
            headers: besides those that HTTP itself needs.
            body: what to send, from its begin.
            seconds: for all of it; only the look-up of a name may take longer.

        Raises:
            NoAnswer: there is none, or none that is HTTP.
        """
        deadline = time.monotonic() + seconds
        try:
            with self._connect(receiver, deadline) as connected:
                return self._ask(_BoundedSocket(connected, deadline), receiver, headers, body)
        except TimeoutError:
            raise NoAnswer(f"no answer within {seconds:g} s", is_slow=True) from None
        except http.client.RemoteDisconnected:
            raise NoAnswer("the connection was closed before the answer") from None
        except OSError as error:
            raise NoAnswer(_explain(error)) from error
        except (http.client.HTTPException, ValueError) as error:
            raise NoAnswer(f"the answer is not HTTP: {error!r}"[:300]) from error

    def _ask(
        self, connected: "_BoundedSocket", receiver: Receiver, headers: Mapping[str, str], body: IO[bytes]
    ) -> Answer:
        connection = http.client.HTTPConnection(receiver.host, blocksize=_BLOCK)
        connection.sock = connected
        fields = {
            "Host": receiver.authority, "User-Agent": f"jobrunner/{jobrunner.__version__}", "Connection": "close",
            "Content-Length": str(body.seek(0, os.SEEK_END)),
        }  # fmt: skip
        body.seek(0)
        connection.request("POST", receiver.target, body, {**fields, **headers})
        with connection.getresponse() as response:
            answer = Answer(response.status, _parse_retry_after(response.getheader("Retry-After"), self._now()))
            _read_away(response)
            return answer

    def _connect(self, receiver: Receiver, deadline: float) -> socket.socket:
        places = self._find_places(receiver)
        refusal: OSError = OSError("the host has no address")
        for index, (family, place) in enumerate(places):
            connected = socket.socket(family, socket.SOCK_STREAM)
            try:
                # One that does not answer leaves time for the others.
                connected.settimeout(_left(deadline) / (len(places) - index))
                connected.connect(place)
                connected.settimeout(_left(deadline))
                if receiver.scheme == "https":
                    connected = self._trust.wrap_socket(connected, server_hostname=receiver.host)
            except OSError as error:
                connected.close()
                refusal = error
            else:
                return connected
        raise refusal

    def _find_places(self, receiver: Receiver) -> list[Place]:
        """Look the host up once, and return those of its addresses that policy allows.

        Raises:
            NoAnswer: it has none, or none is allowed.
        """
        if problem := self._policy.host_problem(receiver.host):
            raise NoAnswer(f"not allowed: {problem}")
        try:
            found = self._resolve(receiver.lookup, receiver.port)
        except (OSError, UnicodeError) as error:
            raise NoAnswer(f"{receiver.host} has no address: {_explain(error)}") from error
        problems = []
        places = []
        for family, place in found:
            problem = self._policy.address_problem(receiver.host, ip_address(place[0].partition("%")[0]))
            if problem is None:
                places.append((family, place))
            else:
                problems.append(problem)
        if not places and problems:
            raise NoAnswer(f"not allowed: {problems[0]}")
        return places


class _BoundedSocket:
    """As much of a socket as an HTTP client needs, until a deadline.

    A socket's own timeout is for each call: a receiver that sends one byte now
    and then would hold its thread for ever.
    """

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected = connected
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        self._connected.settimeout(_left(self._deadline))
        self._connected.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_BoundedReader(self._connected, self._deadline))

    def close(self) -> None:
        """Do nothing: the client closes it before the answer is read, and whoever has opened it does so afterwards."""


class _BoundedReader(io.RawIOBase):
    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._connected = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connected.settimeout(_left(self._deadline))
        return self._connected.recv_into(buffer)


def _left(deadline: float) -> float:
    """Return the seconds until then.

    Raises:
        TimeoutError: there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _read_away(response: http.client.HTTPResponse) -> None:
    """Read what the receiver has to say besides; it does not matter whether it gets to its end."""
    try:
        response.read(ANSWER_MAX)
    except (OSError, http.client.HTTPException, ValueError):
        return


def _parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Return the seconds that a receiver wants to be left alone (RFC 9110, 10.2.3); None: it says nothing of use."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal():
        seconds = float(text)
    else:
        try:
            at = parsedate_to_datetime(text)
            seconds = (at - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX)


def _explain(error: Exception) -> str:
    """Say what the system, or the TLS library, has said."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
