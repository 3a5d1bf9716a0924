"""Who may do what in each dialect: every route, with every scope, and with jobs that are not one's own."""

import io
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Response
from werkzeug.test import Client, TestResponse

from jobrunner import config_values as read
from jobrunner.app import make_dialect
from jobrunner.callbacks.signing import webhook_headers
from jobrunner.config_values import Secret
from jobrunner.domain.access import Grant, Scope
from jobrunner.domain.job import Job
from jobrunner.house import House
from jobrunner.service.jobs import CancelAsked
from jobrunner.web.dialects.dialect import Dialect, Here, Why, make_dialect_app
from jobrunner.web.dialects.http_runner_document import render_id
from jobrunner.web.dialects.registry import DIALECTS
from tests.factories import CALLER, argv, make_house

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "go-jobrunner": {},
    "http-runner": {},
    "qmd": {},
    "rexec": {},
    "rtot": {"secret": Secret("s"), "allow_shutdown": True},
}
"""What each dialect needs besides being enabled."""

ANYONE = frozenset({"read", "run", "exec", "cancel"})


@dataclass(frozen=True)
class Route:
    """A request to a route.

    Attributes:
        path: with ``{id}`` for what the dialect calls a job.
        scopes: of which one is needed; empty: one alone is not enough, unless it is `admin`.
        tells_none: what it answers about a job that is not there is not a refusal.
        none_status: of that answer.
    """

    method: str
    path: str
    scopes: frozenset[str]
    body: str = ""
    tells_none: bool = False
    none_status: int = 404


ROUTES: Mapping[tuple[str, str], Route] = {
    # endpoint and method
    ("go-jobrunner.submit", "POST"): Route(
        "POST", "/", frozenset({"exec"}), '{"CommandLine": "true", "Environment": {}}'
    ),
    ("go-jobrunner.list_jobs", "GET"): Route("GET", "/", frozenset({"read"})),
    ("go-jobrunner.get_info", "GET"): Route("GET", "/{id}", ANYONE, tells_none=True, none_status=200),
    ("go-jobrunner.attach", "GET"): Route("GET", "/{id}/attach", frozenset({"read"})),
    ("go-jobrunner.delete", "DELETE"): Route(
        "DELETE", "/{id}", frozenset({"cancel"}), tells_none=True, none_status=200
    ),
    ("go-jobrunner.clean", "POST"): Route("POST", "/{id}/clean", frozenset({"cancel"})),
    ("http-runner.submit", "POST"): Route("POST", "/", frozenset({"exec"}), '{"command": "true", "args": ""}'),
    ("http-runner.get", "GET"): Route("GET", "/{id}", frozenset({"read"})),
    ("qmd.ping", "GET"): Route("GET", "/ping", ANYONE),
    ("qmd.root", "GET"): Route("GET", "/", ANYONE),
    ("qmd.submit", "POST"): Route("POST", "/scripts/a.sh", frozenset(), '{"callback_url": "http://127.0.0.1/"}'),
    ("qmd.list_jobs", "GET"): Route("GET", "/jobs", frozenset({"read"})),
    ("qmd.get", "GET"): Route("GET", "/jobs/{id}", frozenset({"read"})),
    ("rexec.run", "POST"): Route("POST", "/process", frozenset(), '{"alias": "a", "cmd": "true"}'),
    ("rtot.root", "GET"): Route("GET", "/", ANYONE),
    ("rtot.create", "POST"): Route("POST", "/jobs", frozenset({"exec"}), "true"),
    ("rtot.list_jobs", "GET"): Route("GET", "/jobs", frozenset({"read"})),
    ("rtot.get", "GET"): Route("GET", "/jobs/{id}", frozenset({"read"}), tells_none=True),
    ("rtot.delete", "DELETE"): Route("DELETE", "/jobs/{id}", frozenset({"cancel"})),
    ("rtot.delete_all", "DELETE"): Route("DELETE", "/jobs", frozenset({"cancel"})),
    ("rtot.die", "DELETE"): Route("DELETE", "/", frozenset({"cancel"})),
}

NEEDING_NOTHING = {("rtot.ping", "GET")}

IDS: Mapping[str, Callable[[Job], object]] = {
    "go-jobrunner": lambda job: job.id,
    "http-runner": lambda job: render_id(job.id),
    "qmd": lambda job: job.number,
    "rexec": lambda job: job.id,
    "rtot": lambda job: job.dialect_number,
}


def here_of(house: House, name: str, **settings: Any) -> Here:
    """Return what a dialect works with in this house, with these settings."""
    found = replace(house.config.dialects[name], **{"enabled": True, **SETTINGS[name], **settings})
    return replace(make_dialect(house, name, found), stop=lambda: None)


def saying_why(name: str) -> Dialect:
    """Return a dialect that refuses in no form of its own, but with the reason."""
    return replace(DIALECTS[name], refuse=lambda refusal: Response(refusal.why.value, 418))


def ask(house: House, name: str, route: Route, run_as: str, job: Job | None = None) -> TestResponse:
    app = make_dialect_app(saying_why(name), here_of(house, name, auth="none", run_as=run_as))
    path = route.path.format(id=IDS[name](job)) if job is not None else route.path
    return Client(app).open(path, method=route.method, data=route.body, environ_base={"REMOTE_ADDR": "127.0.0.1"})


def ended_job(house: House, name: str) -> Job:
    """Return a job of a dialect that has ended, and is the administrator's."""
    services = here_of(house, name).services
    job = services.submissions.submit(argv("true"), CALLER).job
    return services.jobs.cancel(job.id, CALLER, CancelAsked())


def make_token(house: House, name: str, *scopes: str, **grant: Any) -> None:
    house.tokens.create(name, Grant(frozenset(map(Scope, scopes)), **grant))


def test_every_route_of_every_dialect_is_tried_here(house: House) -> None:
    routes = {
        (rule.endpoint, method)
        for name, dialect in DIALECTS.items()
        for rule in make_dialect_app(dialect, here_of(house, name)).url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }

    assert set(house.config.dialects) == set(DIALECTS)
    assert routes - NEEDING_NOTHING == set(ROUTES)


@pytest.mark.parametrize("endpoint", sorted(ROUTES), ids=" ".join)
def test_each_route_needs_its_scope(house: House, endpoint: tuple[str, str]) -> None:
    name, route = endpoint[0].partition(".")[0], ROUTES[endpoint]
    for scope in Scope:
        make_token(house, f"for {scope}", scope, all_jobs=True)
        response = ask(house, name, route, f"for {scope}", ended_job(house, name))
        allowed = scope is Scope.ADMIN or scope in route.scopes
        assert (response.text != Why.FORBIDDEN) == allowed, (scope, response.status_code, response.text)


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_status_is_written_as_the_originals_write_it(house: House, name: str) -> None:
    app = make_dialect_app(DIALECTS[name], here_of(house, name))

    assert Client(app).open("/absent").status == "401 Unauthorized"


@pytest.mark.parametrize("endpoint", sorted(ROUTES), ids=" ".join)
def test_nothing_is_told_without_a_token(house: House, endpoint: tuple[str, str]) -> None:
    name, route = endpoint[0].partition(".")[0], ROUTES[endpoint]
    app = make_dialect_app(saying_why(name), here_of(house, name))
    for credentials in ("", "Bearer x", "Basic eDp4", "rtot", "rtot ", "rtot x", "rtot S", "rtot  s", "\xff"):
        response = Client(app).open(route.path, method=route.method, headers={"Authorization": credentials})
        assert response.text == Why.UNAUTHORIZED, credentials


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_who_needs_no_token_comes_from_a_network_that_is_named(house: House, name: str) -> None:
    route = next(route for endpoint, route in ROUTES.items() if endpoint[0].partition(".")[0] == name)
    make_token(house, "old clients", "admin")
    app = make_dialect_app(saying_why(name), here_of(house, name, auth="none", run_as="old clients"))
    refused = {
        address
        for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "192.0.2.1", "2001:db8::1", "", "x")
        if Client(app).open(route.path, method=route.method, environ_base={"REMOTE_ADDR": address}).text
        == Why.UNAUTHORIZED
    }

    assert refused == {"192.0.2.1", "2001:db8::1", "", "x"}
    house.tokens.revoke("old clients")
    app = make_dialect_app(saying_why(name), here_of(house, name, auth="none", run_as="nobody"))
    answer = Client(app).open(route.path, method=route.method, environ_base={"REMOTE_ADDR": "127.0.0.1"})
    assert answer.text == Why.UNAUTHORIZED


@pytest.mark.parametrize(
    ("connected", "said", "allowed"),
    [
        ("10.0.0.5", "192.168.1.7", True),  # the proxy, for a client that is let in
        ("10.0.0.5", "203.0.113.9", False),
        ("203.0.113.9", "192.168.1.7", False),  # nobody that says to be a proxy
        ("203.0.113.9", "10.0.0.5, 192.168.1.7", False),
        ("192.168.1.7", None, True),
        ("203.0.113.9", None, False),
        ("", "192.168.1.7", True),  # a proxy at the unix socket
        ("", None, False),
    ],
)
def test_nobody_gets_in_by_saying_to_be_a_proxy(
    tmp_path: Path, connected: str, said: str | None, allowed: bool
) -> None:
    """A port of a dialect may be open to more than the proxy that is trusted."""
    house = make_house(tmp_path, server={"trusted_proxies": 1})
    make_token(house, "old clients", "admin")
    networks = read.networks("10.0.0.5, 192.168.0.0/16")
    parts = here_of(house, "qmd", auth="none", run_as="old clients", allow_from=networks)
    answer = Client(make_dialect_app(saying_why("qmd"), parts)).get(
        "/ping",
        headers={} if said is None else {"X-Forwarded-For": said},
        environ_base={"REMOTE_ADDR": connected},
    )
    house.database.close()
    house.hints.close()

    assert (answer.text == ".") == allowed, answer.text


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
def test_who_comes_by_a_proxy_that_is_not_believed_is_nobody(house: House, header: str) -> None:
    """From loopback, like a proxy on this machine: who knows where its client is."""
    make_token(house, "old clients", "admin")
    client = Client(make_dialect_app(saying_why("qmd"), here_of(house, "qmd", auth="none", run_as="old clients")))

    for headers, answer in (({}, "."), ({header: "127.0.0.1"}, Why.UNAUTHORIZED)):
        assert client.get("/ping", headers=headers, environ_base={"REMOTE_ADDR": "127.0.0.1"}).text == answer


@pytest.mark.parametrize("endpoint", sorted(ROUTES), ids=" ".join)
def test_a_callback_is_nobody_who_needs_no_token(house: House, endpoint: tuple[str, str]) -> None:
    """Whoever may name its URL could else have the service itself submit, from loopback, what a job has written."""
    name, route = endpoint[0].partition(".")[0], ROUTES[endpoint]
    make_token(house, "old clients", "admin")
    app = make_dialect_app(saying_why(name), here_of(house, name, auth="none", run_as="old clients"))
    response = Client(app).open(
        route.path,
        method=route.method,
        data=route.body,
        headers=webhook_headers((), "an id", datetime.now(UTC), io.BytesIO()),
        environ_base={"REMOTE_ADDR": "127.0.0.1"},
    )

    assert response.text == Why.UNAUTHORIZED


@pytest.mark.parametrize("endpoint", sorted(key for key, route in ROUTES.items() if "{id}" in route.path), ids=" ".join)
def test_a_job_of_another_is_like_none(house: House, endpoint: tuple[str, str]) -> None:
    """Also one that has come through another API."""
    name, route = endpoint[0].partition(".")[0], ROUTES[endpoint]
    make_token(house, "ann", "read", "exec", "cancel")
    make_token(house, "everyone's", "admin")
    theirs = ended_job(house, name)
    absent = replace(theirs, id=str(uuid.UUID(int=7)), number=99, dialect_number=99)
    elsewhere = house.submissions.submit(argv("true"), CALLER).job
    for run_as, job in (("ann", theirs), ("everyone's", replace(elsewhere, dialect_number=17))):
        response = ask(house, name, route, run_as, job)
        if route.tells_none:
            told = ask(house, name, route, run_as, absent).text
            assert (response.text, response.status_code) == (told.replace(absent.id, job.id), route.none_status)
        else:
            assert response.text == Why.NO_JOB, response.text
        assert house.jobs.get(job.id, CALLER).state == job.state


@pytest.mark.parametrize(
    ("repository", "why"), [("debian", Why.INVALID), ("debian-evil", Why.FORBIDDEN), ("evil/debian", Why.FORBIDDEN)]
)
def test_a_token_may_be_for_some_images_only(house: House, repository: str, why: Why) -> None:
    make_token(house, "builder", "exec", images=("debian:*",))
    command = {"Kind": "docker", "CommandLine": "true", "Environment": {}, "Repository": repository, "Tag": "12"}
    route = replace(ROUTES["go-jobrunner.submit", "POST"], body=json.dumps({"Commands": [command]}))

    assert ask(house, "go-jobrunner", route, "builder").text == why


@pytest.mark.parametrize("name", sorted(DIALECTS))
@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}], ids=str)
def test_a_foreign_page_can_do_nothing(house: House, name: str, headers: dict[str, str]) -> None:
    make_token(house, "old clients", "admin")
    app = make_dialect_app(saying_why(name), here_of(house, name, auth="none", run_as="old clients"))

    for method, path in (("POST", "/"), ("DELETE", "/"), ("POST", "/jobs"), ("POST", "/absent")):
        answer = Client(app).open(path, method=method, headers=headers, environ_base={"REMOTE_ADDR": "127.0.0.1"})
        assert answer.text == Why.FOREIGN
