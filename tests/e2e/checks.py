"""What many tests hold answers against."""

import http.client
import json
import re
from typing import Any

import requests

from jobrunner.web.api.documents import JobDocument
from tests.service import Service

ENDED = {"succeeded", "failed", "timed_out", "canceled", "output_limit", "lost"}

_STREAM = {"bytes", "dropped_bytes", "href"}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def check_problem(response: requests.Response, status: int, name: str | None = None) -> dict[str, Any]:
    """Hold an answer against RFC 9457; return the document."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:1000]}"
    assert response.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["type"].startswith("/problems/")
    assert "Traceback" not in response.text
    if name is not None:
        assert document["type"] == f"/problems/{name}"
    if status == 422:
        assert document["errors"]
        assert all(error["pointer"] and error["detail"] for error in document["errors"])
    return document


def pointers(document: dict[str, Any]) -> set[str]:
    """Return what the errors of a 422 point at."""
    return {error["pointer"] for error in document["errors"]}


def check_job(document: dict[str, Any]) -> dict[str, Any]:
    """Hold the document of a job against its model, and against what must be true of every job; return it."""
    JobDocument.model_validate_json(json.dumps(document))
    assert document.keys() == JobDocument.model_fields.keys()
    decisive = _check_steps(document)
    for stream in ("stdout", "stderr"):
        assert document[stream].keys() in (_STREAM, _STREAM | {"text", "text_offset"})
        assert document[stream]["href"] == f"/v1/jobs/{document['id']}/{stream}"
    for name in ("created_at", "started_at", "finished_at", "deadline_at"):
        assert document[name] is None or _TIME.fullmatch(document[name]), name
    ended, started = document["state"] in ENDED, document["started_at"] is not None
    assert (document["finished_at"] is not None) == ended
    assert (document["deadline_at"] is not None) == started
    assert (document["duration"] is not None) == (ended and started)
    assert document["exit_code"] is None or document["signal"] is None
    assert (decisive["exit_code"], decisive["signal"]) == (document["exit_code"], document["signal"])
    assert decisive["error"] == document["error"]
    assert decisive["state"] == ("skipped" if ended and not started else document["state"])
    if document["state"] == "succeeded":
        assert (document["exit_code"], document["error"]) == (0, None)
    if document["state"] == "queued":
        assert not started
    return document


def _check_steps(document: dict[str, Any]) -> dict[str, Any]:
    """Hold the steps against what must be true of every job; return the one that decides about it."""
    steps: list[dict[str, Any]] = document["steps"]
    assert [step["index"] for step in steps] == list(range(len(steps)))
    good = [step for step in steps if step["state"] == "succeeded" and step is not steps[-1]]
    assert steps[: len(good)] == good
    decisive, *rest = steps[len(good) :]
    assert all((step["exit_code"], step["signal"], step["error"]) == (0, None, None) for step in good)
    assert all(step["finished_at"] for step in good)
    assert {step["state"] for step in rest} <= {"skipped" if document["finished_at"] else "queued"}
    for step in rest:
        assert {step[name] for name in ("exit_code", "signal", "error", "started_at", "finished_at")} == {None}
    return decisive


def post_raw(service: Service, body: Any, **headers: str) -> requests.Response:
    """Submit a body as it is, which says to be JSON."""
    return service.request("POST", "/v1/jobs", data=body, headers={"Content-Type": "application/json", **headers})


def send_raw(service: Service, data: bytes, *, timeout: float = 20.0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a connection of its own; return status, headers (lower case) and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=timeout)
    try:
        connection.connect()
        connection.sock.sendall(data)
        response = http.client.HTTPResponse(connection.sock, method=data.split(b" ", 1)[0].decode())
        response.begin()
        with response:
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    finally:
        connection.close()
