"""Ids, paths, queries and cancels that make no sense: each is answered by a problem that says so."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.checks import check_problem, pointers, send_raw
from tests.service import Service

REFERENCES = {
    "unknown uuid": "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11",
    "unknown number": "999999999",
    "zero": "0",
    "negative": "-1",
    "huge number": "9" * 100,
    "10,000 characters": "x" * 10_000,
    "6,000 characters": "x" * 6_000,
    "6,000 digits": "1" * 6_000,
    "other digits": quote("١٢"),
    "superscript": quote("²"),
    "NUL": "%00",
    "newline": "1%0a",
    "blank": "%20",
    "not UTF-8": "%ff%fe",
    "half an escape": "%f",
    "parent": "%2e%2e",
    "slashes": "..%2f..%2fetc%2fpasswd",
    "quote": "'%20OR%201=1--",
    "braces": "%7B0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11%7D",
    "float": "1.0",
    "exponent": "1e0",
    "underscores": "1_0",
    "plus": "+1",
}


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES.keys())
def test_an_unknown_id_is_not_found(service: Service, reference: str) -> None:
    path = f"/v1/jobs/{reference}"
    sent = [
        service.get(path),
        service.get(f"{path}/stdout"),
        service.post(f"{path}/cancel"),
        service.post(f"{path}/signal", {"signal": "TERM"}),
        service.post(f"{path}/rerun"),
        service.request("DELETE", path),
        service.request("DELETE", f"{path}?force=true"),
    ]

    for response in sent:
        if len(reference) > 8000 and response.status_code == 414:  # beyond gunicorn's own bound
            continue
        check_problem(response, 404, "not-found")


@pytest.mark.parametrize(
    "path", ["/v1/jobs/1/stdin", "/v1/jobs/1/stdout/", "/%00", "/v1/%ff", "/v1/../etc", "/v1//jobs"]
)
def test_an_unknown_path_is_not_found(service: Service, path: str) -> None:
    head = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\nConnection: close\r\n\r\n"
    )

    status, headers, body = send_raw(service, head.encode())

    assert status in {404, 308} or (status == 200 and path.endswith("stdout/")), body
    if status == 404:
        assert headers["content-type"] == "application/problem+json"


QUERIES = [
    "/v1/jobs?limit=0",
    "/v1/jobs?limit=1001",
    "/v1/jobs?limit=x",
    "/v1/jobs?limit=",
    "/v1/jobs?limit=1&limit=2",
    "/v1/jobs?limit=1e1",
    "/v1/jobs?state=done",
    "/v1/jobs?state=",
    "/v1/jobs?label=novalue",
    "/v1/jobs?label=:x",
    "/v1/jobs?label=a:1&label=a:2",
    "/v1/jobs?since=yesterday",
    "/v1/jobs?since=2026-01-01",
    "/v1/jobs?since=2026-01-01T00:00:00",
    "/v1/jobs?until=99999-01-01T00:00:00Z",
    "/v1/jobs?cursor=",
    "/v1/jobs?cursor=x",
    "/v1/jobs?cursor=%ff",
    "/v1/jobs?cursor=LTE",
    "/v1/jobs?cursor=" + "A" * 5000,
    "/v1/jobs?q=" + "x" * 201,
    "/v1/jobs?unknown=1",
    "/v1/jobs/{id}?wait=-1",
    "/v1/jobs/{id}?wait=x",
    "/v1/jobs/{id}?wait=nan",
    "/v1/jobs/{id}?wait=inf",
    "/v1/jobs/{id}?include=input",
    "/v1/jobs/{id}?include=output&include=output",
    "/v1/jobs/{id}?follow=true",
    "/v1/jobs/{id}/stdout?tail=-1",
    "/v1/jobs/{id}/stdout?tail=1.5",
    "/v1/jobs/{id}/stdout?tail=x",
    "/v1/jobs/{id}/stdout?download=maybe",
    "/v1/jobs/{id}/stdout?follow=true",
]


@pytest.mark.parametrize("path", QUERIES)
def test_a_wrong_query_is_pointed_at(service: Service, path: str) -> None:
    job = service.submit(argv=["true"])
    name = path.partition("?")[2].partition("=")[0]

    found = pointers(check_problem(service.get(path.format(id=job["id"])), 422))

    assert {pointer.split("/")[0] for pointer in found} == {f"?{name}"}


@pytest.mark.parametrize("path", ["/v1/stats?x=1", "/v1/scripts?x=1"])
def test_a_query_is_refused_where_there_are_no_parameters(service: Service, path: str) -> None:
    check_problem(service.get(path), 422)


@pytest.mark.parametrize(
    "body",
    [
        {"signal": "SIGNOTHING"},
        {"signal": "9"},
        {"signal": 9},
        {"signal": ""},
        {"signal": "SIGTERM\0"},
        {"signal": None, "grace": -1},
        {"grace": "1"},
        {"grace": 1e9},
        {"force": True},
    ],
    ids=str,
)
def test_a_cancel_that_makes_no_sense_is_refused(service: Service, body: dict[str, Any]) -> None:
    job = service.submit(argv=["sleep", "60"])

    check_problem(service.post(f"/v1/jobs/{job['id']}/cancel", body), 422)

    assert service.get(f"/v1/jobs/{job['id']}").json()["cancel"] is None
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")
