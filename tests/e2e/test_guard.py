"""Who may ask, under which name, from where; and how refusals look."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import requests

from tests.e2e.checks import check_problem, send_raw
from tests.service import ROOT, Service, eventually

EVERY_PATH = ["/v1/jobs", "/v1/jobs/1", "/v1/jobs/1/stdout", "/v1/scripts", "/v1/stats", "/", "/absent", "/v1/jobs/1/x"]


def ask(service: Service, method: str, path: str, **arguments: object) -> requests.Response:
    """Ask without the credentials that the session has."""
    return requests.request(method, service.url + path, timeout=10, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS"])
def test_nothing_is_told_without_a_token(service: Service, method: str, path: str) -> None:
    response = ask(service, method, path)

    check_problem(response, 401, "unauthorized")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "credentials",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        "Bearer jr_ä",
        "Bearer \xff\xfe",
        "Basic",
        "Basic !!!",
        "Basic Og==",  # ":"
        "Basic eDo=",  # "x:"
        "Basic eDp3cm9uZw==",  # "x:wrong"
        "Basic /////w==",
        "Basic \xff\xfe",
        "Digest username=x",
        "Negotiate",
        ",",
        "Bearer " + "x" * 5000,
    ],
)
def test_a_wrong_token_is_refused(service: Service, credentials: str) -> None:
    response = ask(service, "GET", "/v1/jobs", headers={"Authorization": credentials.encode("latin-1")})

    check_problem(response, 401, "unauthorized")
    assert "WWW-Authenticate" in response.headers


def test_a_known_token_opens_the_door(service: Service) -> None:
    token = service.token
    for credentials in (f"Bearer {token}", f"bearer {token}", f"BEARER {token}"):
        assert ask(service, "GET", "/v1/jobs", headers={"Authorization": credentials}).status_code == 200
    for user in ("", "x", "admin", "üser"):
        assert ask(service, "GET", "/v1/jobs", auth=(user.encode(), token.encode())).status_code == 200
    assert requests.get(f"http://:{token}@127.0.0.1:{service.port}/v1/jobs", timeout=10).status_code == 200


@pytest.mark.parametrize("wrong", [lambda token: token[:-1], lambda token: token + "x", lambda token: token.upper()])
def test_a_token_that_is_nearly_right_is_refused(service: Service, wrong: Callable[[str], str]) -> None:
    response = ask(service, "GET", "/v1/jobs", headers={"Authorization": f"Bearer {wrong(service.token)}"})

    check_problem(response, 401, "unauthorized")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
def test_probes_and_the_description_need_no_token(service: Service, path: str) -> None:
    assert ask(service, "GET", path).status_code == 200
    assert ask(service, "HEAD", path).status_code == 200


def host_status(service: Service, host: str | None, path: str = "/v1/jobs") -> int:
    lines = [f"GET {path} HTTP/1.1", f"Authorization: Bearer {service.token}", "Connection: close"]
    if host is not None:
        lines.insert(1, f"Host: {host}")
    return send_raw(service, "\r\n".join([*lines, "", ""]).encode("latin-1"))[0]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost:1", "127.0.0.1", "127.0.0.1:{port}", "[::1]:{port}", "localhost."]
)
def test_a_name_of_the_service_is_taken(service: Service, host: str) -> None:
    assert host_status(service, host.format(port=service.port)) == 200


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "127.1",
        "2130706433",
        "0.0.0.0",
        "localhost@evil.example",
        "evil.example#localhost",
        "localhost/evil",
        "localhost, evil.example",
        "localhost evil",
        "[::1",
        "::1",
        "[::2]",
        ":{port}",
        "localhost:x",
        "\xff",
        "x" * 5000,
    ],
)
def test_a_foreign_name_is_refused(service: Service, host: str | None) -> None:
    assert host_status(service, host if host is None else host.format(port=service.port)) in {400, 421}


def test_the_refusal_of_a_foreign_name_is_a_problem(service: Service) -> None:
    response = service.get("/v1/jobs", headers={"Host": "evil.example"})

    check_problem(response, 421, "misdirected-request")


def test_what_a_client_says_of_proxies_is_not_believed(service: Service) -> None:
    forged = {"X-Forwarded-Host": "localhost", "X-Forwarded-Proto": "https", "Script-Name": "/v1", "SCRIPT_NAME": "/x"}

    check_problem(service.get("/v1/jobs", headers={"Host": "evil.example", **forged}), 421, "misdirected-request")
    redirect = service.get("/v1//jobs", headers={**forged, "X-Forwarded-Host": "evil.example"}, allow_redirects=False)
    assert (redirect.status_code, redirect.headers["Location"]) == (308, f"{service.url}/v1/jobs")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_are_answered_under_any_name(service: Service, path: str) -> None:
    for host in ("evil.example", "10.1.2.3:80", ""):
        assert host_status(service, host, path) == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://localhost", "", "x", "http://["]
)
def test_a_foreign_page_changes_nothing(service: Service, origin: str) -> None:
    before = service.get("/v1/jobs?limit=1").json()["jobs"]

    response = service.post("/v1/jobs", {"argv": ["true"]}, headers={"Origin": origin})

    check_problem(response, 403, "foreign-origin")
    assert service.get("/v1/jobs?limit=1").json()["jobs"] == before
    for method, path in (("DELETE", "/v1/jobs/1"), ("POST", "/v1/jobs/1/cancel"), ("POST", "/v1/jobs/1/rerun")):
        check_problem(service.request(method, path, headers={"Origin": origin}), 403, "foreign-origin")


def test_a_page_of_the_service_itself_may_change_things(service: Service) -> None:
    response = service.post("/v1/jobs", {"argv": ["true"]}, headers={"Origin": service.url})

    assert response.status_code == 202
    assert service.get("/v1/jobs", headers={"Origin": "http://evil.example"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("DELETE", "/v1/jobs", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("PATCH", "/v1/jobs/1", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("GET", "/v1/jobs/1/cancel", {"POST", "OPTIONS"}),
        ("POST", "/v1/jobs/1/stdout", {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
        ("BREW", "/v1/jobs", {"GET", "HEAD", "POST", "OPTIONS"}),
    ],
)
def test_a_method_that_does_not_exist_is_refused_with_those_that_do(
    service: Service, method: str, path: str, allowed: set[str]
) -> None:
    response = service.request(method, path)

    check_problem(response, 405, "method-not-allowed")
    assert set(response.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v2/jobs", "/v1/jobs/1/absent", "/favicon.ico", "/V1/jobs"])
def test_a_path_that_does_not_exist_is_a_problem(service: Service, path: str) -> None:
    check_problem(service.get(path), 404, "not-found")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["nonsense", "version", "line", "header", "length", "smuggling"],
)
def test_what_is_no_http_is_refused_and_harms_nobody(service: Service, data: bytes) -> None:
    try:
        status, _, body = send_raw(service, data)
    except OSError:
        status, body = 400, b""  # closed at once: as good an answer as any

    assert status in {400, 401, 413, 414, 431, 501, 505}, body
    assert b"Traceback" not in body
    assert service.get("/healthz").status_code == 200


def test_caches_keep_only_what_they_ask_about_again(service: Service) -> None:
    job = service.run(argv=["echo", "x"])
    path = f"/v1/jobs/{job['id']}"

    for tagged in (path, f"{path}/stdout"):
        first = service.get(tagged)
        again = service.get(tagged, headers={"If-None-Match": first.headers["ETag"]})
        assert [answer.status_code for answer in (first, again)] == [200, 304]
        assert {answer.headers["Cache-Control"] for answer in (first, again)} == {"private, no-cache"}
    untagged = [service.get(other) for other in ("/v1/jobs", f"{path}/events", "/v1/absent", "/readyz")]
    untagged.append(service.post(f"{path}/stream-url"))
    untagged.append(ask(service, "GET", path))
    assert {answer.headers["Cache-Control"] for answer in untagged} == {"no-store"}


def test_what_jobs_write_is_in_a_sandbox_and_nothing_else_runs_anything(service: Service) -> None:
    job = service.run(command="echo '<script>alert(1)</script>' | tee x.html")
    path = f"/v1/jobs/{job['id']}"

    for written in ("/stdout", "/stdout?follow", "/files/x.html", "/files/x.html?download", "/stdout?tail=3"):
        assert service.get(path + written).headers["Content-Security-Policy"].startswith("sandbox; default-src 'none';")
    for ours in (path, "/healthz", "/openapi.json", f"{path}/events", "/absent"):
        policy = service.get(ours).headers["Content-Security-Policy"]
        assert policy == "default-src 'none'; frame-ancestors 'none'"


def token_command(service: Service, *arguments: str, code: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "jobrunner", "token", *arguments],
        cwd=ROOT,
        env=service.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


def test_a_token_is_made_used_listed_and_revoked_while_the_service_runs(service: Service) -> None:
    made = json.loads(token_command(service, "create", "ci", "--scope", "admin", "--json"))
    token = {"Authorization": f"Bearer {made['token']}"}

    assert made["name"] == "ci"
    job = ask(service, "POST", "/v1/jobs", json={"argv": ["true"]}, headers=token)
    assert (job.status_code, job.json()["owner"]) == (202, "ci")
    assert {"ci", "admin"} <= {entry["name"] for entry in json.loads(token_command(service, "list", "--json"))}
    assert made["token"] not in token_command(service, "list", "--json")
    token_command(service, "create", "ci", "--scope", "read", code=4)

    token_command(service, "revoke", "ci")
    assert eventually(lambda: ask(service, "GET", "/v1/jobs", headers=token).status_code == 401)
    # Each worker keeps tokens in mind for two seconds: none may remember it for longer.
    assert eventually(lambda: all(ask(service, "GET", "/v1/jobs", headers=token).status_code == 401 for _ in range(10)))
    token_command(service, "revoke", "ci", code=3)
    assert service.get(f"/v1/jobs/{job.json()['id']}").json()["owner"] == "ci"


def test_tokens_are_kept_as_hashes_and_readable_by_their_owner_alone(service: Service) -> None:
    for path in service.data_dir.glob("jobrunner.db*"):
        assert service.token.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0, path
    assert (service.data_dir / "admin.token").stat().st_mode & 0o777 == 0o600
    assert service.token not in service.log.read_text()
