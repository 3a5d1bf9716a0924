"""A client of the service: requests, typed, with the exceptions of the domain."""

from collections.abc import Iterator, Mapping
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

import requests

from jobrunner.domain import errors

DEFAULT_LIMIT = 50
"""Most jobs of a list whose caller does not say."""


class ServiceError(errors.JobrunnerError):
    """The service has answered with an error of its own."""


_ERRORS: Mapping[int, type[errors.JobrunnerError]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    409: errors.Conflict,
    421: errors.Forbidden,
    503: errors.TooBusy,
}


class Client:
    """Talks to one service. Not for several threads at once."""

    def __init__(self, url: str, token: str, *, timeout: float = 30.0) -> None:
        """Remember where the service is.

        Args:
            url: like ``http://127.0.0.1:8080``.
            token: the caller's.
            timeout: seconds to wait for a connection, and for each piece of an answer.
        """
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        # The token goes to the service and to nobody else: no HTTP_PROXY in
        # between, and no other credentials from a .netrc instead.
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def submit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Submit a job; return its document."""
        return self._json("POST", "/v1/jobs", json=body)

    def get(self, job: str) -> dict[str, Any]:
        """Return the document of a job."""
        return self._json("GET", f"/v1/jobs/{_segment(job)}")

    def list(self, filters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return jobs, newest first, from as many pages as it takes.

        Args:
            filters: parameters of ``GET /v1/jobs``; ``limit`` counts over all pages.
        """
        most = int(filters.get("limit") or DEFAULT_LIMIT)
        jobs: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self._json("GET", "/v1/jobs", params={**filters, "limit": most - len(jobs), "cursor": cursor})
            jobs += page["jobs"]
            if page["next"] is None or len(jobs) >= most:
                return jobs
            # Of the address only this: where the service is, the caller knows better than it does.
            (cursor,) = parse_qs(urlsplit(page["next"]).query)["cursor"]

    def cancel(self, job: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a job to end; return its document."""
        return self._json("POST", f"/v1/jobs/{_segment(job)}/cancel", json=body)

    def output(self, job: str, stream: str) -> Iterator[bytes]:
        """Return what a job has written so far, piece by piece."""
        with self._request("GET", f"/v1/jobs/{_segment(job)}/{stream}", stream=True) as response:
            yield from response.iter_content(1 << 16)

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        with self._request(method, path, **arguments) as response:
            document: dict[str, Any] = response.json()
            return document

    def _request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            response = self._session.request(method, self._url + path, timeout=self._timeout, **arguments)
        except requests.RequestException as error:
            raise errors.Unreachable(f"{self._url}: {_innermost(error)}") from error
        if response.ok:
            return response
        with response:
            raise _to_error(response)


def _segment(job: str) -> str:
    return quote(job, safe="")


def _innermost(error: BaseException) -> BaseException:
    """Return what the system said, without the layers of the HTTP library around it."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    return _innermost(inner) if isinstance(inner, BaseException) else error


def _to_error(response: requests.Response) -> errors.JobrunnerError:
    try:
        document = response.json()
        detail = str(document["detail"])
    except (ValueError, KeyError, TypeError):
        document, detail = {}, f"{response.status_code} {response.reason}"
    if response.status_code == 404:
        return errors.JobNotFound()
    if response.status_code == 422:
        found = [errors.Problem(entry["pointer"], entry["detail"]) for entry in document.get("errors", [])]
        return errors.InvalidRequest(found) if found else ServiceError(detail)
    return _ERRORS.get(response.status_code, ServiceError)(detail)
