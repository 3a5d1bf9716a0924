"""Ids, paths, queries and cancels that make no sense: each is answered by a problem that says so."""

import socket
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.conftest import StartService
from tests.e2e.checks import check_problem, pointers, send_raw
from tests.service import Service, eventually

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
    "/v1/jobs/{id}/stdout?fellow=true",
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


def head_of(service: Service, method: str, path: str, *headers: str) -> bytes:
    """Make the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {service.token}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_submission_without_a_body_is_told_what_is_missing(service: Service) -> None:
    document = check_problem(service.request("POST", "/v1/jobs"), 422, "invalid-request")
    assert "command, argv, script, source and steps" in document["errors"][0]["detail"]


def test_an_empty_body_is_no_body_whatever_its_type(service: Service) -> None:
    job = service.run(command="true")
    answer = service.request("POST", f"/v1/jobs/{job['id']}/cancel", headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


def test_chunks_that_are_none_are_a_bad_request(service: Service) -> None:
    head = head_of(service, "POST", "/v1/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked")
    status, _, body = send_raw(service, head + b"ZZ\r\nfoo\r\n0\r\n\r\n")
    assert status == 400, body


def test_a_body_that_ends_too_early_starts_nothing(service: Service) -> None:
    before = service.get("/v1/stats").json()["states"]
    head = head_of(service, "POST", "/v1/jobs", "Content-Type: application/json", "Content-Length: 100")
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(head + b'{"command":"true"}')
        client.shutdown(socket.SHUT_WR)
        answer = client.recv(65536)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert sum(service.get("/v1/stats").json()["states"].values()) == sum(before.values())


def test_requests_that_never_end_do_not_keep_the_threads(start_service: StartService) -> None:
    service = start_service({"server": {"workers": 1, "threads": 2, "max_waiters": 2}})
    clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(8)]
    try:
        for client in clients:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: lo")
        assert requests.get(f"{service.url}/healthz", timeout=60).ok
    finally:
        for client in clients:
            client.close()


def test_a_stream_that_gets_shorter_while_it_is_sent_ends_its_connection(start_service: StartService) -> None:
    """What comes next on it would be taken for the rest."""
    service = start_service()
    gate = service.data_dir / "gate"
    size = 50_000_000
    command = f"head -c {size} /dev/zero; while [ ! -e {gate} ]; do sleep 0.01; done; : > /dev/stdout"
    job = service.submit(command=command)
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["stdout"]["bytes"] == size)
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.settimeout(20)
        client.sendall(head_of(service, "GET", f"/v1/jobs/{job['id']}/stdout"))
        received = len(client.recv(1000))
        gate.touch()
        assert service.wait(job["id"])["state"] == "succeeded"
        client.sendall(head_of(service, "GET", "/healthz"))
        rest = b""
        while data := client.recv(1 << 20):
            received += len(data)
            rest = (rest + data)[-1000:]
    assert received < size
    assert b'"status":"ok"' not in rest
