"""Whoever sends many wrong tokens gets short answers; whoever has a right one is served all the same."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.conftest import StartService, miss
from tests.e2e.checks import check_problem
from tests.e2e.test_guard import token_command
from tests.nginx import NGINX, behind_nginx
from tests.service import Service, eventually

LIMITED = {"server": {"workers": 1}, "auth": {"max_failures": 3, "failure_window": 3600}}


@pytest.fixture
def limited(start_service: StartService) -> Service:
    """A service that takes three wrong tokens an hour."""
    return start_service(LIMITED)


def attempt(service: Service, token: str | None = "wrong", path: str = "/v1/jobs", **headers: str) -> requests.Response:
    given = {} if token is None else {"Authorization": f"Bearer {token}"}
    return requests.get(service.url + path, headers={**given, **headers}, timeout=10)


def test_after_some_wrong_tokens_each_further_one_has_to_wait(limited: Service) -> None:
    for _ in range(3):
        check_problem(attempt(limited), 401, "unauthorized")
    for token in ("wrong", limited.token[:-1], "x"):
        refused = attempt(limited, token)
        document = check_problem(refused, 429, "too-many-failures")
        assert int(refused.headers["Retry-After"]) == document["retry_after"]
        assert 3000 < document["retry_after"] <= 3600

    assert attempt(limited, None).status_code == 401, "none is no wrong one"
    assert attempt(limited, None, path="/healthz").status_code == 200
    assert limited.log.read_text().count("127.0.0.1 has sent 3 wrong tokens") == 1


def test_a_right_token_is_always_taken_also_a_new_one(limited: Service) -> None:
    """Others may share the address."""
    for _ in range(5):
        attempt(limited)
    assert attempt(limited).status_code == 429

    assert attempt(limited, limited.token).status_code == 200
    assert requests.get(f"{limited.url}/v1/jobs", auth=("", limited.token), timeout=10).status_code == 200
    made = token_command(limited, "create", "late", "--scope", "read").split()
    new = next(word for word in made if word.startswith("jr_"))
    assert eventually(lambda: attempt(limited, new).status_code == 200)
    assert attempt(limited).status_code == 429, "and pays for nobody's else"


def test_wrong_signatures_count_as_well(limited: Service) -> None:
    job = limited.run(argv=["true"])
    path = f"/v1/jobs/{job['id']}/events?signature="

    for _ in range(3):
        check_problem(attempt(limited, None, f"{path}x"), 401)
    check_problem(attempt(limited, None, f"{path}x"), 429)
    signed = limited.post(f"/v1/jobs/{job['id']}/stream-url").json()["url"]
    assert attempt(limited, None, signed).status_code == 200


def test_what_a_client_says_of_its_address_does_not_help_it(limited: Service) -> None:
    statuses = [attempt(limited, **{"X-Forwarded-For": f"192.0.2.{number}"}).status_code for number in range(5)]

    assert statuses == [401] * 3 + [429] * 2


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Service]:
    """The same behind nginx, which is told the clients' addresses by another proxy."""
    if NGINX is None or shutil.which("openssl") is None:
        miss("needs nginx and openssl")
    two = {"proxy_set_header X-Forwarded-For $remote_addr;": "proxy_set_header X-Forwarded-For $http_x_test;"}
    with behind_nginx(tmp_path, two, auth=LIMITED["auth"]) as (service, _):
        yield service


def test_behind_a_trusted_proxy_each_client_is_counted_for_itself(proxied: Service) -> None:
    def statuses(*addresses: str) -> list[int]:
        forged = {"X-Forwarded-For": "192.0.2.66"}
        return [attempt(proxied, **forged, **{"X-Test": address}).status_code for address in addresses]

    assert statuses(*["192.0.2.1"] * 4, "192.0.2.2") == [401, 401, 401, 429, 401]
    assert statuses("192.0.2.66, 192.0.2.1", "192.0.2.1, 192.0.2.3") == [429, 401], "the last one counts"
    assert statuses(*[f"2001:db8::{number}" for number in range(1, 5)]) == [401, 401, 401, 429], "one /64 is one client"
    assert statuses("2001:db8:0:1::1") == [401]
