"""The methods of a client: one for everything that the service offers."""

import uuid
from collections.abc import Generator, Mapping, Sequence
from math import inf
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

from jobrunner.client.events import MEDIA_TYPE, Ended, Event, parse_events
from jobrunner.client.patience import Patience, passes
from jobrunner.client.transport import Document, NeverSent, Transport
from jobrunner.domain.errors import JobrunnerError, TooBusy, Unreachable
from jobrunner.domain.streams import Stream

DEFAULT_LIMIT = 50
"""Most jobs of a list whose caller does not say."""

_PAGE = 1000
"""Most jobs of a page."""

_QUIET = 45.0
"""Seconds after which a stream of events is given up for dead; the service sends something every 15."""


class Client:
    """Talks to one service. Not for several threads at once."""

    def __init__(self, url: str, token: str, *, timeout: float = 30.0) -> None:
        """Remember where the service is.

        Args:
            url: like ``http://127.0.0.1:8080``; there may be a path, of what is in front of it.
            token: the caller's.
            timeout: seconds to wait for a connection, and for each piece of an answer.

        Raises:
            ValueError: this can't be a URL of a service, or no token.
        """
        self._transport = Transport(url, token, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    # ── jobs ──

    def submit(
        self,
        body: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        wait: float = 0,
        patience: Patience | None = None,
    ) -> Document:
        """Submit a job; return its document. It is durable.

        Args:
            body: what ``POST /v1/jobs`` takes.
            idempotency_key: a repeat with the same key starts nothing, and returns the job of the first.
            wait: seconds to wait for the job's end; then the document has its output.
            patience: tries again when an answer is lost or the service is busy, with a key of its own if none is given.

        Raises:
            NeverSent: nothing can have come of it.
            Unreachable: nobody knows what has come of it.
            TooBusy: nothing was stored.
            JobrunnerError: it was refused.
        """
        headers = _key_header(idempotency_key or (str(uuid.uuid4()) if patience else None))
        was_lost = False
        while True:
            try:
                return self._json("POST", "/v1/jobs", json=body, headers=headers, **self._waiting(wait))
            except JobrunnerError as error:
                if patience is None:
                    raise
                was_lost = was_lost or not isinstance(error, NeverSent | TooBusy)
                try:
                    patience.endure(error)
                except JobrunnerError:
                    if was_lost and passes(error):
                        raise Unreachable(str(error)) from error
                    raise

    def plan(self, body: Mapping[str, Any]) -> Document:
        """Return what a submission would run, or raise what would refuse it; nothing is stored."""
        return self._json("POST", "/v1/jobs", json=body, params={"dry_run": "true"})

    def get(self, job: str, *, wait: float = 0, output: bool = False) -> Document:
        """Return the document of a job.

        Args:
            job: its id or number.
            wait: seconds to wait for its end; the service may cut them.
            output: with the text of both streams, or the last MiB of it.
        """
        arguments = self._waiting(wait)
        if output:
            arguments.setdefault("params", {})["include"] = "output"
        return self._json("GET", _path(job), **arguments)

    def list(self, filters: Mapping[str, Any] | None = None) -> list[Document]:
        """Return jobs, newest first, from as many pages as it takes.

        Args:
            filters: parameters of ``GET /v1/jobs``; ``limit`` counts over all pages.
        """
        filters = filters or {}
        most = int(filters.get("limit") or DEFAULT_LIMIT)
        jobs: list[Document] = []
        cursor: str | None = None
        while True:
            limit = min(most - len(jobs), _PAGE)
            page = self._json("GET", "/v1/jobs", params={**filters, "limit": limit, "cursor": cursor})
            jobs += page["jobs"]
            if page["next"] is None or len(jobs) >= most:
                return jobs
            # Of the address only this: where the service is, the caller knows better than it does.
            (cursor,) = parse_qs(urlsplit(page["next"]).query)["cursor"]

    def cancel(self, job: str, *, signal: str | None = None, grace: float | None = None) -> Document:
        """Ask a job to end; return its document. Harmless to repeat.

        Args:
            job: its id or number.
            signal: is sent first, like ``SIGINT``; None is SIGTERM.
            grace: seconds until SIGKILL, 0 is now; None is the job's own.
        """
        body = {name: value for name, value in (("signal", signal), ("grace", grace)) if value is not None}
        return self._json("POST", _path(job, "/cancel"), json=body)

    def signal(self, job: str, signal: str) -> Document:
        """Send a running job a signal, like ``SIGUSR1``; return its document."""
        return self._json("POST", _path(job, "/signal"), json={"signal": signal})

    def rerun(self, job: str, *, idempotency_key: str | None = None, wait: float = 0) -> Document:
        """Submit a new job of the same specification; return its document. Arguments as `submit`."""
        return self._json("POST", _path(job, "/rerun"), headers=_key_header(idempotency_key), **self._waiting(wait))

    def delete(self, job: str, *, force: bool = False) -> None:
        """Forget an ended job and what it has written; with ``force``, kill it first."""
        # The service waits for the end of what it kills.
        timeout = self._transport.timeout + 30 if force else None
        params = {"force": "true"} if force else None
        self._transport.request("DELETE", _path(job), params=params, timeout=timeout).close()

    # ── what they write ──

    def output(
        self,
        job: str,
        stream: str = Stream.STDOUT,
        *,
        follow: bool = False,
        offset: int | None = None,
        tail: int | None = None,
    ) -> Generator[bytes, None, None]:
        """Return what a job has written, piece by piece.

        Args:
            job: its id or number.
            stream: ``stdout`` or ``stderr``.
            follow: go on with what comes, until the job has ended.
            offset: with ``follow``, the byte to begin at.
            tail: only so many bytes from the end.

        Raises:
            Unreachable: it has broken off.
        """
        given = {"follow": "true" if follow else None, "offset": offset, "tail": tail}
        params = {name: value for name, value in given.items() if value is not None}
        timeout = inf if follow else None
        with self._transport.stream(_path(job, f"/{stream}"), params=params, timeout=timeout) as response:
            yield from self._transport.pieces(response)

    def events(self, job: str, last_event_id: str | None = None) -> Generator[Event, None, None]:
        """Return what happens to a job, as it happens, on one connection.

        Args:
            job: its id or number.
            last_event_id: go on behind this event; None begins with the first byte. Behind the end is nothing.

        Raises:
            Unreachable: it has broken off before the end.
        """
        headers = {"Accept": MEDIA_TYPE, **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        timeout = max(self._transport.timeout, _QUIET)
        with self._transport.stream(_path(job, "/events"), headers=headers, timeout=timeout) as response:
            for event in parse_events(self._transport.pieces(response)):
                yield event
                if isinstance(event, Ended):
                    return
            if response.status_code != 204:
                raise Unreachable(f"{self._transport.url}: the events have broken off")

    def follow(
        self, job: str, last_event_id: str | None = None, *, patience: Patience | None = None
    ) -> Generator[Event, None, None]:
        """Return what happens to a job up to its end, over broken connections and restarts of the service.

        No byte is missing and none comes twice. The connection is closed when the iterator is.

        Args:
            job: its id or number.
            last_event_id: as `events`.
            patience: how long the service may be away; default: two minutes.

        Raises:
            Unreachable, TooBusy: for longer than that.
        """
        patience = patience or Patience()
        while True:
            try:
                for event in self.events(job, last_event_id):
                    patience.renew()
                    yield event
                    last_event_id = event.id
                return
            except JobrunnerError as error:
                patience.endure(error)

    def stream_url(self, job: str) -> Document:
        """Return ``url`` and ``expires_at``: a URL of the events that needs no token, for a browser's EventSource."""
        document = self._json("POST", _path(job, "/stream-url"))
        return {**document, "url": self._transport.url + document["url"]}

    # ── what they have in their directories ──

    def files(self, job: str) -> Document:
        """Return ``files``, what is in the job's scratch directory, and whether the list is ``truncated``."""
        return self._json("GET", _path(job, "/files"))

    def download(self, href: str) -> Generator[bytes, None, None]:
        """Return the bytes of a file, piece by piece.

        Args:
            href: where it is, as `files` tells.

        Raises:
            NotFound: there is no such file any more.
            Unreachable: it has broken off.
        """
        with self._transport.stream(href) as response:
            yield from self._transport.pieces(response)

    # ── whom their ends are told ──

    def callbacks(self, job: str) -> Sequence[Document]:
        """Return what became of each callback: ``url``, ``state``, ``attempts``, ``next_attempt_at``."""
        return self._callbacks("GET", _path(job, "/callbacks"))

    def retry_callbacks(self, job: str) -> Sequence[Document]:
        """Have them sent once more, whatever became of them; return them as `callbacks`."""
        return self._callbacks("POST", _path(job, "/callbacks/retry"))

    def _callbacks(self, method: str, path: str) -> Sequence[Document]:
        callbacks: Sequence[Document] = self._json(method, path)["callbacks"]
        return callbacks

    # ── the service ──

    def scripts(self) -> Sequence[Document]:
        """Return the scripts of the catalogue: ``name``, ``description``, ``bytes``, ``modified_at``."""
        scripts: Sequence[Document] = self._json("GET", "/v1/scripts")["scripts"]
        return scripts

    def stats(self) -> Document:
        """Return how much there is to do."""
        return self._json("GET", "/v1/stats")

    def _json(self, method: str, path: str, **arguments: Any) -> Document:
        return self._transport.json(method, path, **arguments)

    def _waiting(self, seconds: float) -> dict[str, Any]:
        return {"params": {"wait": seconds}, "timeout": self._transport.timeout + seconds} if seconds else {}


def _path(job: str, rest: str = "") -> str:
    return f"/v1/jobs/{quote(job, safe='')}{rest}"


def _key_header(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}
