"""Who may do what: every route, with every kind of token."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from jobrunner.app import make_services
from jobrunner.clock import utc_now
from jobrunner.domain.access import Grant, Scope
from jobrunner.house import House
from jobrunner.service.tokens import TokenService
from jobrunner.store.engine import Database
from jobrunner.web.application import make_flask_app
from jobrunner.web.guard import PUBLIC
from tests.conftest import StartService
from tests.e2e.checks import check_problem
from tests.e2e.commands import jobrunner
from tests.service import Service, eventually

SCOPES = ("read", "run", "exec", "cancel", "admin")

Ask = Callable[["Asking"], requests.Response]


@dataclass
class Asking:
    """A client with a token of its own, asking about a job."""

    service: Service
    token: str
    job: str

    def __call__(self, method: str, path: str, body: Any = None) -> requests.Response:
        arguments = {} if body is None else {"json": body}
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.request(
            method, self.service.url + path.format(job=self.job), headers=headers, timeout=30, **arguments
        )


ARGV = {"argv": ["true"]}
SCRIPT = {"script": "hello"}

ROUTES: dict[tuple[str, str], tuple[Ask, set[str]]] = {
    # endpoint and method: a request, and the scopes of which one is needed
    ("jobs.submit", "POST"): (lambda ask: ask("POST", "/v1/jobs", ARGV), {"exec"}),
    ("jobs.list_jobs", "GET"): (lambda ask: ask("GET", "/v1/jobs"), {"read"}),
    ("jobs.get", "GET"): (lambda ask: ask("GET", "/v1/jobs/{job}"), {"read"}),
    ("jobs.delete", "DELETE"): (lambda ask: ask("DELETE", "/v1/jobs/{job}"), {"cancel"}),
    ("control.cancel", "POST"): (lambda ask: ask("POST", "/v1/jobs/{job}/cancel"), {"cancel"}),
    ("control.signal", "POST"): (lambda ask: ask("POST", "/v1/jobs/{job}/signal", {"signal": "HUP"}), {"cancel"}),
    ("output.download", "GET"): (lambda ask: ask("GET", "/v1/jobs/{job}/stdout"), {"read"}),
    ("files.list_files", "GET"): (lambda ask: ask("GET", "/v1/jobs/{job}/files"), {"read"}),
    ("files.download", "GET"): (lambda ask: ask("GET", "/v1/jobs/{job}/files/file"), {"read"}),
    ("events.events", "GET"): (lambda ask: ask("GET", "/v1/jobs/{job}/events"), {"read"}),
    ("events.stream_url", "POST"): (lambda ask: ask("POST", "/v1/jobs/{job}/stream-url"), {"read"}),
    ("callbacks.list_callbacks", "GET"): (lambda ask: ask("GET", "/v1/jobs/{job}/callbacks"), {"read"}),
    ("scripts.list_scripts", "GET"): (lambda ask: ask("GET", "/v1/scripts"), {"read"}),
    ("service.stats", "GET"): (lambda ask: ask("GET", "/v1/stats"), {"read"}),
    # Who may run a job again, or tell of it, has to see it and to submit such a one: tried below, and with callbacks.
    ("jobs.rerun", "POST"): (lambda ask: ask("POST", "/v1/jobs/{job}/rerun"), set()),
    ("callbacks.retry", "POST"): (lambda ask: ask("POST", "/v1/jobs/{job}/callbacks/retry"), set()),
}
ABOUT_A_JOB = sorted(endpoint for endpoint in ROUTES if endpoint[0].split(".")[0] not in {"scripts", "service"})
"""Also those that list or count jobs; these never say that there is none."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a token for each scope, and a script."""
    settings = {"auth": {"max_failures": 1_000_000}}  # many wrong tokens are tried
    started = Service(tmp_path_factory.mktemp("authorization") / "data", settings).start()
    script = started.data_dir / "scripts" / "hello"
    script.write_text("#!/bin/sh\necho hello $*\n")
    script.chmod(0o755)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def tokens(service: Service) -> dict[str, str]:
    """A token for each scope."""
    return {scope: make_token(service, f"for {scope}", scope) for scope in SCOPES}


def make_token(service: Service, name: str, *scopes: str, valid_for: float | None = None, **grant: Any) -> str:
    """Make a token beside the running service."""
    database = Database(service.data_dir / "jobrunner.db")
    try:
        made = Grant(frozenset(map(Scope, scopes)), **grant)
        return TokenService(database, utc_now).create(name, made, valid_for=valid_for)
    finally:
        database.close()


def job_of(service: Service, token: str) -> str:
    """Return a job that was submitted with this token, ended."""
    asking = Asking(service, token, "")
    job: str = asking("POST", "/v1/jobs", ARGV).json()["id"]
    service.wait(job)
    return job


def test_every_route_is_tried_here(house: House) -> None:
    app = make_flask_app(make_services(house))
    routes = {
        (rule.endpoint, method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert {route for route in routes if route[0] not in PUBLIC} == set(ROUTES)


@pytest.mark.parametrize("route", sorted(ROUTES), ids=lambda route: route[0])
def test_each_route_needs_its_scope(service: Service, tokens: dict[str, str], route: tuple[str, str]) -> None:
    ask, needed = ROUTES[route]
    for scope in SCOPES:
        wide = make_token(service, f"{scope} for {route[0]}", scope, all_jobs=True)
        response = ask(Asking(service, wide, job_of(service, tokens["admin"])))
        allowed = scope == "admin" or scope in needed
        assert (response.status_code != 403) == allowed, (scope, response.status_code, response.text)


@pytest.mark.parametrize("route", sorted(ROUTES), ids=lambda route: route[0])
def test_nothing_is_told_without_a_token(service: Service, tokens: dict[str, str], route: tuple[str, str]) -> None:
    ask, _ = ROUTES[route]

    check_problem(ask(Asking(service, "jr_nobody", job_of(service, tokens["admin"]))), 401, "unauthorized")


@pytest.mark.parametrize("route", ABOUT_A_JOB, ids=lambda route: route[0])
def test_a_job_of_another_is_like_none(service: Service, route: tuple[str, str]) -> None:
    """Two tokens that may do everything with their own jobs: each route answers for the other's job as for none."""
    mine, theirs = (make_token(service, f"{who} for {route[0]}", "read", "exec", "cancel") for who in ("ann", "bob"))
    job = job_of(service, theirs)
    ask, _ = ROUTES[route]

    response = ask(Asking(service, mine, job))
    none = ask(Asking(service, mine, "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11"))

    assert job not in response.text
    if route[0] in {"jobs.submit", "jobs.list_jobs"}:
        return
    check_problem(response, 404, "not-found")
    assert response.content == none.content
    number = service.get(f"/v1/jobs/{job}").json()["number"]
    check_problem(ask(Asking(service, mine, str(number))), 404, "not-found")
    assert service.get(f"/v1/jobs/{job}").json()["state"] == "succeeded"


def test_lists_and_sums_are_of_one_s_own_jobs(start_service: StartService) -> None:
    service = start_service()
    ann, bob, all_ = (
        make_token(service, name, "read", "exec", all_jobs=all_jobs)
        for name, all_jobs in (("ann", False), ("bob", False), ("all", True))
    )
    for token in (ann, ann, bob):
        job_of(service, token)
    owners = {
        name: [job["owner"] for job in Asking(service, token, "")("GET", "/v1/jobs").json()["jobs"]]
        for name, token in (("ann", ann), ("bob", bob), ("all", all_))
    }

    assert owners == {"ann": ["ann"] * 2, "bob": ["bob"], "all": ["bob", "ann", "ann"]}
    counts = {
        name: Asking(service, token, "")("GET", "/v1/stats").json()["states"]["succeeded"]
        for name, token in (("ann", ann), ("bob", bob), ("all", all_))
    }
    assert counts == {"ann": 2, "bob": 1, "all": 3}
    check_problem(Asking(service, ann, "")("GET", "/v1/jobs?owner=bob"), 403, "forbidden")
    assert len(Asking(service, all_, "")("GET", "/v1/jobs?owner=bob").json()["jobs"]) == 1
    assert len(Asking(service, ann, "")("GET", "/v1/jobs?owner=ann").json()["jobs"]) == 2


def test_a_token_for_scripts_can_not_be_made_one_for_everything(service: Service) -> None:
    token = make_token(service, "hook", "run", scripts=("hel*", "other"))
    ask = Asking(service, token, "")

    assert ask("POST", "/v1/jobs", {**SCRIPT, "args": ["you"]}).status_code == 202
    assert ask("POST", "/v1/jobs", {"steps": [SCRIPT, {**SCRIPT, "args": ["you"]}]}).status_code == 202
    bodies: list[dict[str, Any]] = [
        ARGV,
        {"command": "true"},
        {"source": "true"},
        {"script": "deploy"},
        {**SCRIPT, "env": {"LD_PRELOAD": "/tmp/x.so"}},
        {**SCRIPT, "cwd": "/tmp"},
        {"steps": [SCRIPT, ARGV]},
        {"steps": [SCRIPT, {"script": "deploy"}]},
        {"steps": [SCRIPT, {**SCRIPT, "env": {"LD_PRELOAD": "/tmp/x.so"}}]},
        {"steps": [SCRIPT, {**SCRIPT, "cwd": "/tmp"}]},
        {"steps": []},
    ]
    for body in bodies:
        check_problem(ask("POST", "/v1/jobs", body), 403, "forbidden")
        check_problem(ask("POST", "/v1/jobs?dry_run=true", body), 403, "forbidden")


def test_who_may_only_submit_is_not_shown_output(service: Service) -> None:
    ask = Asking(service, make_token(service, "submitter", "run"), "")

    check_problem(ask("POST", "/v1/jobs?wait=10", SCRIPT), 403, "forbidden")
    assert "text" not in ask("POST", "/v1/jobs", SCRIPT).json()["stdout"]


def test_to_run_a_job_again_takes_what_its_submission_took(service: Service) -> None:
    reader, runner, both = (
        make_token(service, f"rerun {' '.join(scopes)}", *scopes, all_jobs=True)
        for scopes in (("read",), ("run",), ("read", "run"))
    )
    program = service.run(argv=["true"])["id"]
    script = service.run(**SCRIPT)["id"]
    with_env = service.run(steps=[SCRIPT, {**SCRIPT, "env": {"A": "b"}}])["id"]
    allowed = [
        (name, job)
        for name, token in (("read", reader), ("run", runner), ("both", both))
        for job in (program, script, with_env)
        if Asking(service, token, job)("POST", "/v1/jobs/{job}/rerun").status_code == 202
    ]

    assert allowed == [("both", script)]


def test_the_catalogue_shows_what_a_token_is_for(service: Service) -> None:
    names = {
        pattern: [
            script["name"]
            for script in Asking(service, make_token(service, f"shows {pattern}", "read", scripts=(pattern,)), "")(
                "GET", "/v1/scripts"
            ).json()["scripts"]
        ]
        for pattern in ("*", "hello", "other")
    }

    assert names == {"*": ["hello"], "hello": ["hello"], "other": []}


def test_an_exclusive_name_does_not_tell_of_another_s_job(service: Service) -> None:
    ann, bob = (make_token(service, f"{who} of names", "exec") for who in ("ann", "bob"))
    body = {"argv": ["sleep", "60"], "name": "nightly", "exclusive": True}
    job = Asking(service, ann, "")("POST", "/v1/jobs", body).json()["id"]

    assert "job_id" not in check_problem(Asking(service, bob, "")("POST", "/v1/jobs", body), 409, "name-in-use")
    assert check_problem(Asking(service, ann, "")("POST", "/v1/jobs", body), 409, "name-in-use")["job_id"] == job
    service.post(f"/v1/jobs/{job}/cancel", {"grace": 0})


def test_a_token_expires(service: Service) -> None:
    token = make_token(service, "brief", "read", valid_for=2.0)
    ask = Asking(service, token, "")
    assert ask("GET", "/v1/jobs").status_code == 200

    assert eventually(lambda: ask("GET", "/v1/jobs").status_code == 401)
    assert "expired" in ask("GET", "/v1/jobs").json()["detail"]


def test_a_token_s_last_use_is_written_down(service: Service) -> None:
    options = (
        "--scope",
        "read",
        "--scope",
        "cancel",
        "--scripts",
        "a*",
        "--commands",
        "/usr/*",
        "--images",
        "debian*",
        "--expires",
        "30d",
        "--json",
    )
    made = json.loads(jobrunner(service, "token", "create", "used", *options).stdout)
    token = made.pop("token")
    assert made == {
        "name": "used",
        "scopes": ["cancel", "read"],
        "all_jobs": False,
        "scripts": ["a*"],
        "commands": ["/usr/*"],
        "images": ["debian*"],
    }
    Asking(service, token, "")("GET", "/v1/jobs")

    listed = {entry["name"]: entry for entry in json.loads(jobrunner(service, "token", "list", "--json").stdout)}
    assert listed["used"]["last_used_at"] > listed["used"]["created_at"]
    assert listed["used"]["scopes"] == ["cancel", "read"]
    assert (listed["used"]["commands"], listed["admin"]["commands"]) == (["/usr/*"], ["*"])
    assert (listed["used"]["images"], listed["admin"]["images"]) == (["debian*"], ["*"])
    assert listed["used"]["expires_at"] > listed["used"]["last_used_at"]
    assert listed["admin"]["expires_at"] is None
