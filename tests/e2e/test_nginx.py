"""nginx in front of the service, with the configuration that is recommended: ``deploy/nginx.conf``."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import miss
from tests.e2e.checks import check_problem
from tests.e2e.test_events import listening, output, read_events, signed
from tests.e2e.test_follow import followed, kill_workers, read_until_broken, step, until
from tests.nginx import NGINX, Example, behind_nginx
from tests.service import Service, eventually

MIB = 1 << 20
SIZE = 64 * MIB
LARGE = f"import os; [os.write(1, os.urandom({MIB})) for _ in range({SIZE // MIB})]"

Behind = tuple[Service, Example]


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    """A service behind nginx that the tests share."""
    if NGINX is None or shutil.which("openssl") is None:
        miss("needs nginx and openssl")
    with behind_nginx(tmp_path_factory.mktemp("behind")) as both:
        yield both


@pytest.fixture
def service(behind: Behind) -> Service:
    """The service; all that its client does goes through nginx."""
    return behind[0]


@pytest.fixture
def nginx(behind: Behind) -> Example:
    """The nginx."""
    return behind[1]


def stdout_path(service: Service, job: dict[str, Any]) -> Path:
    return Path(service.data_dir, "jobs", job["id"][-2:], job["id"], "stdout")


# ── streams ──


def test_each_line_comes_while_the_job_runs(service: Service) -> None:
    """The job writes the next line only when the one before has been seen."""
    script = "; ".join(f"echo line {number}; {until(f'go{number}')}" for number in range(5))
    job = service.submit(command=f"{script}; echo end")

    with followed(service, job) as response:
        assert response.headers["Server"].startswith("nginx")
        assert response.headers["Transfer-Encoding"] == "chunked"
        for number in range(5):
            assert response.readline() == f"line {number}\n".encode()
            step(service, job, f"go{number}")
        assert response.read() == b"end\n"


def test_each_event_comes_while_the_job_runs(service: Service) -> None:
    job = service.submit(command="; ".join(f"echo line {number}; {until(f'go{number}')}" for number in range(5)))

    with listening(service, job) as response:
        events = read_events(response)
        for number in range(5):
            assert next(event for event in events if event.name == "stdout").content == f"line {number}\n".encode()
            step(service, job, f"go{number}")
        assert list(events)[-1].name == "end"


def test_events_go_on_where_the_client_has_been(service: Service) -> None:
    job = service.run(command="echo one; echo two")
    with listening(service, job) as response:
        *_, end = read_events(response)

    with listening(service, job, last="4-0") as response:
        assert output(list(read_events(response)), "stdout") == b"two\n"
    with listening(service, job, last=end.id) as response:
        assert (response.status, response.read()) == (204, b"")


def test_a_signed_url_works_and_is_not_in_the_log(service: Service, nginx: Example) -> None:
    job = service.run(command="echo x")

    with listening(service, job, url=signed(service, job)) as response:
        assert output(list(read_events(response)), "stdout") == b"x\n"
    assert eventually(lambda: f'"GET /v1/jobs/{job["id"]}/events" 200' in nginx.access_log)
    assert "signature" not in nginx.access_log


@pytest.mark.parametrize("what", ["stdout?follow=true", "events"])
def test_the_seat_of_a_client_that_has_gone_is_given_back_though_the_job_is_silent(service: Service, what: str) -> None:
    job = service.submit(command=until("go"))

    with ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(service.stream(f"/v1/jobs/{job['id']}/{what}"))
        assert service.get("/v1/stats").json()["followers"] == 3
    assert eventually(lambda: service.get("/v1/stats").json()["followers"] == 0)

    step(service, job, "go")
    assert service.wait(job["id"])["state"] == "succeeded"


@pytest.mark.parametrize("what", ["stdout?follow=true", "events", "stdout"])
def test_an_answer_that_the_death_of_a_worker_breaks_off_does_not_look_complete(service: Service, what: str) -> None:
    job = service.submit(command=f"head -c {SIZE} /dev/zero | tr '\\0' x; {until('go')}")
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["stdout"]["bytes"] == SIZE)

    with service.stream(f"/v1/jobs/{job['id']}/{what}") as response:
        assert response.read(1000)
        kill_workers(service)
        with pytest.raises((IncompleteRead, ConnectionError)):
            response.read()

    step(service, job, "go")
    service.wait(job["id"])


def test_events_of_a_silent_job_outlive_the_patience_of_a_proxy(behind: Behind, tmp_path: Path) -> None:
    """The heartbeat keeps them. A stream that is followed has none: its end tells that the patience is over."""
    service, nginx = behind
    impatient = Example(tmp_path, nginx.unix_socket, {"proxy_read_timeout 1d;": "proxy_read_timeout 18s;"}).start()
    try:
        job = service.submit(command=f"{until('go')}; echo x")
        front = Service(service.data_dir, port=impatient.port)
        with listening(front, job) as response, followed(front, job) as quiet:
            assert read_until_broken(quiet, 1) == b""
            step(service, job, "go")
            assert output(list(read_events(response)), "stdout") == b"x\n"
    finally:
        impatient.stop()


# ── downloads and uploads ──


@pytest.fixture(scope="module")
def large(behind: Behind) -> dict[str, Any]:
    """An ended job that has written 64 MiB."""
    return behind[0].run(argv=["python3", "-c", LARGE])


@pytest.mark.parametrize("query", ["", "?follow=true", f"?tail={SIZE}"])
def test_a_large_output_comes_byte_for_byte(service: Service, large: dict[str, Any], query: str) -> None:
    found = hashlib.sha256()
    with service.stream(f"/v1/jobs/{large['id']}/stdout{query}") as response:
        while data := response.read(MIB):
            found.update(data)

    assert found.hexdigest() == hashlib.sha256(stdout_path(service, large).read_bytes()).hexdigest()


def test_parts_conditions_and_heads_are_those_of_the_service(service: Service, large: dict[str, Any]) -> None:
    path, data = f"/v1/jobs/{large['id']}/stdout", stdout_path(service, large).read_bytes()

    head = service.request("HEAD", path)
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(SIZE))
    tag = head.headers["ETag"]
    for asked, start, stop in (("0-0", 0, 1), ("5000000-9999999", 5_000_000, 10_000_000), ("-7", SIZE - 7, SIZE)):
        part = service.get(path, headers={"Range": f"bytes={asked}", "If-Range": tag})
        assert (part.status_code, part.content) == (206, data[start:stop])
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    check_problem(service.get(path, headers={"Range": f"bytes={SIZE}-"}), 416, "range-not-satisfiable")
    assert service.get(path, headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_reaches_the_job(service: Service, chunked: bool) -> None:
    stdin = "0123456789abcde\n" * (15 * MIB // 16)
    body = json.dumps({"argv": ["sha256sum"], "stdin": stdin}).encode()
    assert len(body) > 15 * MIB

    response = service.request(
        "POST",
        "/v1/jobs",
        data=iter([body[:MIB], body[MIB:]]) if chunked else body,
        headers={"Content-Type": "application/json", "Prefer": "wait=30"},
    )

    assert response.status_code == 200, response.text
    assert response.json()["stdout"]["text"].split()[0] == hashlib.sha256(stdin.encode()).hexdigest()


def test_a_body_that_is_too_large_is_refused(service: Service) -> None:
    response = service.request(
        "POST", "/v1/jobs", data=bytes(16 * MIB + 1), headers={"Content-Type": "application/json"}
    )

    assert response.status_code == 413


# ── who is asked for ──


def test_only_the_names_of_the_service_are_answered(service: Service) -> None:
    for name in ("jobs.example.org", "JOBS.example.org:443", f"127.0.0.1:{service.port}"):
        assert service.get("/v1/jobs", headers={"Host": name}).status_code == 200
    for name in ("evil.example.org", "jobrunner"):
        check_problem(service.get("/v1/jobs", headers={"Host": name}), 421, "misdirected-request")


def test_a_page_of_the_same_origin_may_change_something_and_no_other_may(service: Service) -> None:
    def status(host: str, origin: str) -> int:
        headers = {"Host": host, "Origin": origin}
        return service.post("/v1/jobs?dry_run=true", {"argv": ["true"]}, headers=headers).status_code

    assert status("jobs.example.org", "https://jobs.example.org") == 200
    assert status("jobs.example.org:8443", "https://jobs.example.org:8443") == 200
    assert status("jobs.example.org:8443", "https://jobs.example.org") == 403
    assert status("jobs.example.org", "https://evil.example.org") == 403


def test_a_page_can_not_hide_the_name_under_which_it_has_reached_the_proxy(tmp_path: Path, behind: Behind) -> None:
    """nginx says what it was asked for; one that does not passes on what the client says."""
    service, nginx = behind
    forged = {"Host": "evil.example.org", "X-Forwarded-Host": "jobs.example.org"}
    check_problem(service.get("/v1/jobs", headers=forged), 421, "misdirected-request")

    silent = Example(tmp_path, nginx.unix_socket, {"proxy_set_header X-Forwarded-Host $http_host;": ""}).start()
    try:
        answer = requests.get(f"http://127.0.0.1:{silent.port}/v1/jobs", headers={**service.http.headers, **forged})
        check_problem(answer, 421, "misdirected-request")
    finally:
        silent.stop()


def test_a_redirect_leads_to_where_the_client_has_asked(service: Service, nginx: Example) -> None:
    def location(url: str, **headers: str) -> str:
        given = {**service.http.headers, "Host": "jobs.example.org", **headers}
        answer = requests.get(
            f"{url}/v1//jobs", headers=given, verify=str(nginx.directory / "certificate.pem"), allow_redirects=False
        )
        assert answer.status_code == 308
        return answer.headers["Location"]

    assert location(nginx.url) == "https://jobs.example.org/v1/jobs"
    assert location(service.url, **{"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil"}) == (
        "http://jobs.example.org/v1/jobs"
    )


# ── HTTP/2 ──


def test_a_broken_stream_does_not_look_complete_with_http_2_either(service: Service, nginx: Example) -> None:
    if shutil.which("curl") is None:
        miss("needs curl")
    job = service.submit(command=f"echo one; {until('go')}; echo two")
    words = ["curl", "--silent", "--show-error", "--no-buffer", "--http2", "--cacert", "certificate.pem"]
    words += ["--write-out", "%{http_version}", "--user", f":{service.token}"]
    words += [f"{nginx.url}/v1/jobs/{job['id']}/stdout?follow=true"]

    with subprocess.Popen(words, cwd=nginx.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as broken:
        assert broken.stdout is not None
        assert broken.stdout.readline() == b"one\n"
        kill_workers(service)
        out, error = broken.communicate(timeout=20)
    assert (out, broken.returncode) == (b"2", 92), error  # "HTTP/2 stream was not closed cleanly"
    step(service, job, "go")
    done = subprocess.run(words, cwd=nginx.directory, capture_output=True, timeout=20, check=True)
    assert done.stdout == b"one\ntwo\n2"
