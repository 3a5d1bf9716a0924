"""Requests to one service, and what can go wrong on the way, in the words of the domain."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isinf
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from jobrunner.domain import errors

Document = dict[str, Any]
"""A JSON object."""

_PIECE = 1 << 16

_LOST = (ProtocolError, ReadTimeoutError, requests.ReadTimeout)
"""What breaks an answer: the request may have been heard."""


class ServiceError(errors.JobrunnerError):
    """The service has answered with an error of its own, or with what no service of ours answers.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class NeverSent(errors.Unreachable):
    """The request has not reached anybody: nothing can have come of it."""


_ERRORS: Mapping[int, type[errors.JobrunnerError]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    409: errors.Conflict,
    421: errors.Forbidden,
    429: errors.Unauthenticated,
}


class Transport:
    """Sends requests with a token. Not for several threads at once."""

    def __init__(self, url: str, token: str, *, timeout: float) -> None:
        """Remember where the service is; arguments as `Client`.

        Raises:
            ValueError: this can't be a URL of a service, or no token.
        """
        if not _is_service_url(url):
            raise ValueError("the URL must be like http://127.0.0.1:8080 or https://jobs.example.org/path, and no more")
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError("the token must be one word of printable ASCII")
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._session = requests.Session()
        # The token goes to the service and to nobody else: no HTTP_PROXY in
        # between, and no other credentials from a .netrc instead.
        self._session.trust_env = False
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def json(self, method: str, path: str, **arguments: Any) -> Document:
        """Send a request; return the JSON object it is answered with.

        Raises:
            Unreachable: nobody answers.
            JobrunnerError: what the service refuses, by its kind.
        """
        with self.request(method, path, **arguments) as response:
            try:
                document = response.json()
            except requests.JSONDecodeError:
                document = None
            if not isinstance(document, dict):
                raise ServiceError(f"{self.url} answers {path} with something else than a jobrunner does", 200)
            return document

    @contextmanager
    def stream(self, path: str, **arguments: Any) -> Iterator[requests.Response]:
        """Send a request whose answer is read with `pieces`, byte for byte; it is closed at the end."""
        headers = {"Accept-Encoding": "identity", **arguments.pop("headers", {})}
        with self.request("GET", path, stream=True, headers=headers, **arguments) as response:
            yield response

    def pieces(self, response: requests.Response) -> Iterator[bytes]:
        """Return the body of an answer as it comes.

        Raises:
            Unreachable: it breaks off.
        """
        try:
            yield from response.iter_content(_PIECE)
        except requests.RequestException as error:
            raise self._broken(error) from error

    def request(self, method: str, path: str, *, timeout: float | None = None, **arguments: Any) -> requests.Response:
        """Send a request; return the answer, which is a good one. The caller closes it.

        Args:
            method: like ``GET``.
            path: behind the URL of the service.
            timeout: seconds to wait for each piece of the answer; infinity is no limit.
            arguments: as requests takes them.
        """
        patience = timeout or self.timeout
        try:
            # A redirect would make a GET of a POST, and tell somebody else what is meant for the service.
            response = self._session.request(
                method,
                self.url + path,
                timeout=(self.timeout, None if isinf(patience) else patience),
                allow_redirects=False,
                **arguments,
            )
        except OSError as error:  # those of requests, and that there is no such file of certificates
            if any(isinstance(cause, _LOST) for cause in _causes(error)):
                raise self._broken(error) from error
            raise NeverSent(f"{self.url}: {_words(error)}") from error
        if not response.ok or response.is_redirect:
            with response:
                raise self._to_error(response)
        if not _has_end(response):
            response.close()
            raise errors.Unreachable(f"{self.url}: the answer broke off in its head")
        return response

    def _broken(self, error: OSError) -> errors.Unreachable:
        return errors.Unreachable(f"{self.url}: the connection broke: {_words(error)}")

    def _to_error(self, response: requests.Response) -> errors.JobrunnerError:
        status = response.status_code
        if response.is_redirect:
            return ServiceError(f"{self.url} redirects to {response.headers['Location']}: use the URL it means", status)
        try:
            document = response.json()
            detail = str(document["detail"])
        except (requests.RequestException, ValueError, KeyError, TypeError):
            document, detail = {}, f"{self.url}: {status} {response.reason}"
        if "job_id" in document:
            detail = f"{detail} (job {document['job_id']})"
        match status:
            case 404:
                no_job = errors.JobNotFound()
                return no_job if detail == str(no_job) else errors.NotFound(detail)
            case 413:
                return errors.Forbidden("the request is larger than the service takes ([server] max_body_bytes)")
            case 422:
                found = [errors.Problem(entry["pointer"], entry["detail"]) for entry in document.get("errors", [])]
                return errors.InvalidRequest(found) if found else ServiceError(detail, status)
            case 503:
                return errors.TooBusy(detail, retry_after=_seconds(response.headers.get("Retry-After")))
        kind = _ERRORS.get(status)
        return kind(detail) if kind else ServiceError(detail, status)


def _is_service_url(url: str) -> bool:
    """Tell whether a service can be there. A user name would have requests send another token than ours."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_more = "@" in parts.netloc or "?" in url or "#" in url
    return parts.scheme in {"http", "https"} and has_host and not is_more


def _has_end(response: requests.Response) -> bool:
    """Tell whether an answer says where it ends: of one that broke off in its head the library says nothing."""
    headers = response.headers
    is_chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
    return is_chunked or headers.get("Content-Length", "").isdecimal() or response.status_code == 204


def _seconds(retry_after: str | None) -> int:
    """Return what ``Retry-After`` says, if it says seconds; a date needs two clocks that agree."""
    return int(retry_after) if retry_after and re.fullmatch(r"\d{1,6}", retry_after, re.ASCII) else 1


def _words(error: BaseException) -> str:
    """Return what the system said, without the layers of the HTTP library around it."""
    *_, inner = _causes(error)
    return (inner.strerror if isinstance(inner, OSError) else None) or str(inner)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and what is in it, from the outside in."""
    yield error
    inside = (getattr(error, "reason", None), *error.args, error.__cause__)
    inner = next((part for part in inside if isinstance(part, BaseException)), None)
    if inner is not None:
        yield from _causes(inner)
