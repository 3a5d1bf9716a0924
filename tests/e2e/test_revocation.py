"""A token that is worthless is so for what is under way, too: streams end, and requests that wait."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPException, HTTPResponse

import pytest
import requests

from tests.e2e.checks import check_problem
from tests.e2e.commands import jobrunner
from tests.e2e.test_authorization import make_token
from tests.service import Service, eventually

EACH = 4
"""Requests of each kind: so many that both workers have some."""


@pytest.fixture(scope="module")
def job(service: Service) -> Iterator[str]:
    """A job that runs on, and is silent."""
    running: str = service.submit(command="echo begun; exec sleep 300")["id"]
    assert eventually(lambda: service.get(f"/v1/jobs/{running}/stdout").text == "begun\n")
    yield running
    service.post(f"/v1/jobs/{running}/cancel", {"grace": 0})


def revoke(service: Service, name: str) -> None:
    jobrunner(service, "token", "revoke", name)


def make_anew(service: Service, name: str) -> None:
    """The name is another token's then, which is for the same."""
    revoke(service, name)
    make_token(service, name, "read", "exec", "cancel", all_jobs=True)


def expire(service: Service, name: str) -> None:
    with closing(sqlite3.connect(service.data_dir / "jobrunner.db", timeout=30)) as database, database:
        database.execute("UPDATE token SET expires_at = created_at WHERE name = ?", [name])


ENDS: dict[str, Callable[[Service, str], None]] = {"revoked": revoke, "made anew": make_anew, "expired": expire}
"""How a token becomes worthless."""


def is_broken_off(stream: HTTPResponse) -> bool:
    """Read to the end; tell whether it came without the last chunk, so that no client takes this for the whole."""
    try:
        while stream.read1(1 << 16):
            pass
    except (HTTPException, ConnectionError):
        return True
    return False


@pytest.mark.parametrize("how", ENDS)
def test_what_is_under_way_ends_with_its_token(service: Service, job: str, how: str) -> None:
    token = make_token(service, how, "read", "exec", "cancel", all_jobs=True)
    mine = {"Authorization": f"Bearer {token}"}

    def ask(method: str, path: str, **arguments: object) -> requests.Response:
        return requests.request(method, service.url + path, headers=mine, timeout=60, **arguments)  # type: ignore[arg-type]

    signed = ask("POST", f"/v1/jobs/{job}/stream-url").json()["url"]
    sleeping = {"argv": ["sleep", "300"], "name": f"waits {how}"}
    with ThreadPoolExecutor(16) as pool, ExitStack() as opened:
        streams = [
            opened.enter_context(service.stream(path, headers))
            for path, headers in [
                (f"/v1/jobs/{job}/stdout?follow=true", mine),
                (f"/v1/jobs/{job}/events", mine),
                (signed, {}),
            ]
            * EACH
        ]
        waiting = [
            waiter
            for _ in range(EACH)
            for waiter in (
                pool.submit(ask, "GET", f"/v1/jobs/{job}?wait=50"),
                pool.submit(ask, "POST", "/v1/jobs?wait=50", json=sleeping),
            )
        ]
        assert [stream.status for stream in streams] == [200] * len(streams)

        ENDS[how](service, how)

        assert all(pool.map(is_broken_off, streams))
        for waiter in waiting:
            check_problem(waiter.result(), 401, "unauthorized")
        for path, headers in ((f"/v1/jobs/{job}/events", mine), (signed, {})):
            check_problem(requests.get(service.url + path, headers=headers, timeout=30), 401, "unauthorized")
    for started in service.get("/v1/jobs", params={"name": sleeping["name"]}).json()["jobs"]:
        service.post(f"/v1/jobs/{started['id']}/cancel", {"grace": 0})
    assert service.get(f"/v1/jobs/{job}").json()["state"] == "running"


def test_streams_and_waiters_of_other_tokens_go_on(service: Service, job: str) -> None:
    make_token(service, "bystander", "read")
    with service.stream(f"/v1/jobs/{job}/stdout?follow=true") as stream, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.get, f"/v1/jobs/{job}?wait=3")
        revoke(service, "bystander")

        assert waiting.result().json()["state"] == "running"
        assert stream.read1(100) == b"begun\n"
        assert not stream.isclosed()
