"""What a job wrote, byte for byte."""

import hashlib
import subprocess
from typing import Any

import pytest
import requests

from tests.conftest import StartService
from tests.e2e.checks import check_problem
from tests.service import Service, eventually

CONTENT = bytes(range(256)) * 40
WRITE = "import os; os.write(1, bytes(range(256)) * 40)"


@pytest.fixture(scope="module")
def written(service: Service) -> dict[str, Any]:
    """A job that has written `CONTENT`."""
    return service.run(argv=["python3", "-c", WRITE])


def fetch(service: Service, job: dict[str, Any], query: str = "", **headers: str) -> requests.Response:
    return service.get(f"/v1/jobs/{job['id']}/stdout{query}", headers=headers)


def test_output_is_sent_as_it_was_written(service: Service, written: dict[str, Any]) -> None:
    response = fetch(service, written)

    assert response.status_code == 200
    assert response.content == CONTENT
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.headers["Content-Length"] == str(len(CONTENT))
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Accept-Ranges"] == "bytes"
    assert "Content-Disposition" not in response.headers
    assert service.get(f"/v1/jobs/{written['id']}/stderr").content == b""
    assert service.get(f"/v1/jobs/{written['number']}/stdout").content == CONTENT


def test_a_connection_serves_one_download_after_the_other(service: Service, written: dict[str, Any]) -> None:
    for _ in range(5):
        assert fetch(service, written).content == CONTENT
        assert service.get(f"/v1/jobs/{written['id']}").status_code == 200
        assert fetch(service, written, Range="bytes=5-9").content == CONTENT[5:10]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100-199", 100, 200),
        ("bytes=10239-10239", 10239, 10240),
        ("bytes=10239-", 10239, 10240),
        ("bytes=0-", 0, 10240),
        ("bytes=10000-999999", 10000, 10240),
        ("bytes=-1", 10239, 10240),
        ("bytes=-500", 9740, 10240),
        ("bytes=-999999", 0, 10240),
    ],
)
def test_a_range_is_sent_alone(service: Service, written: dict[str, Any], asked: str, start: int, stop: int) -> None:
    response = fetch(service, written, Range=asked)

    assert response.status_code == 206
    assert response.content == CONTENT[start:stop]
    assert response.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert response.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=10240-10300", "bytes=99999999999999999999-"])
def test_a_range_behind_the_end_is_not_satisfiable(service: Service, written: dict[str, Any], asked: str) -> None:
    response = fetch(service, written, Range=asked)

    check_problem(response, 416, "range-not-satisfiable")
    assert response.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-0,5-9",
        "bytes=",
        "bytes=x-y",
        "bytes=9-1",
        "lines=1-2",
        "bytes",
        "bytes=-",
        "bytes=1",
        "0-5",
        "bytes=--5",
    ],
)
def test_a_range_that_is_malformed_or_manifold_is_answered_with_the_whole(
    service: Service, written: dict[str, Any], asked: str
) -> None:
    response = fetch(service, written, Range=asked)

    assert (response.status_code, response.content) == (200, CONTENT)
    assert "Content-Range" not in response.headers


@pytest.mark.parametrize(("tail", "start"), [("0", 10240), ("1", 10239), ("1000", 9240), ("10240", 0), ("99999999", 0)])
def test_the_tail_is_so_many_bytes_from_the_end(
    service: Service, written: dict[str, Any], tail: str, start: int
) -> None:
    response = fetch(service, written, f"?tail={tail}")

    assert (response.status_code, response.content) == (200, CONTENT[start:])


@pytest.mark.parametrize("query", ["?download", "?download=", "?download=true", "?download=1"])
def test_a_browser_is_told_to_save_a_download(service: Service, written: dict[str, Any], query: str) -> None:
    response = fetch(service, written, query)

    assert response.content == CONTENT
    name = f"job-{written['number']}.stdout.txt"
    assert response.headers["Content-Disposition"] == f'attachment; filename="{name}"'


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-9"}], ids=str)
def test_a_head_tells_the_length_without_the_bytes(
    service: Service, written: dict[str, Any], headers: dict[str, str]
) -> None:
    whole = service.get(f"/v1/jobs/{written['id']}/stdout")
    response = service.request("HEAD", f"/v1/jobs/{written['id']}/stdout", headers=headers)

    assert response.content == b""
    # A range is defined for GET alone (RFC 9110, 14.2), but many answer HEAD as they would GET.
    assert response.headers["Content-Length"] == str(len(CONTENT)) or response.status_code == 206
    for name in ("Content-Type", "X-Content-Type-Options", "Accept-Ranges"):
        assert response.headers[name] == whole.headers[name]
    assert service.get("/healthz").status_code == 200


def test_a_job_without_output_has_an_empty_one(service: Service) -> None:
    job = service.run(argv=["true"])

    assert (fetch(service, job).status_code, fetch(service, job).content) == (200, b"")
    assert fetch(service, job, "?tail=5").content == b""
    check_problem(fetch(service, job, Range="bytes=0-"), 416)
    assert service.request("HEAD", f"/v1/jobs/{job['id']}/stdout").headers["Content-Length"] == "0"


def test_a_running_job_shows_what_it_has_written_so_far(service: Service) -> None:
    job = service.submit(command="printf early; exec sleep 60")

    assert eventually(lambda: fetch(service, job).content == b"early")
    assert fetch(service, job, Range="bytes=1-2").content == b"ar"
    assert fetch(service, job, "?tail=2").content == b"ly"
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_a_queued_job_has_an_empty_output(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    service.submit(argv=["sleep", "60"])
    queued = service.submit(command="echo later")

    assert (fetch(service, queued).status_code, fetch(service, queued).content) == (200, b"")
    assert queued["stdout"]["bytes"] == 0
    for job in service.get("/v1/jobs").json()["jobs"]:
        service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_output_that_grows_while_it_is_read_is_never_torn(service: Service) -> None:
    job = service.submit(command="seq 1 400000")
    expected = "".join(f"{number}\n" for number in range(1, 400_001)).encode()

    seen = [fetch(service, job).content for _ in range(10)]
    service.wait(job["id"])

    assert all(expected.startswith(content) for content in seen)
    assert fetch(service, job).content == expected


def test_a_log_of_64_mib_arrives_whole(service: Service) -> None:
    program = "import os,hashlib\nfor n in range(64): os.write(1, hashlib.shake_256(bytes([n])).digest(1 << 20))"
    expected = hashlib.sha256()
    for number in range(64):
        expected.update(hashlib.shake_256(bytes([number])).digest(1 << 20))

    job = service.run(argv=["python3", "-c", program])

    found = hashlib.sha256()
    with service.get(f"/v1/jobs/{job['id']}/stdout", stream=True) as response:
        assert response.headers["Content-Length"] == str(64 << 20)
        for piece in response.iter_content(1 << 16):
            found.update(piece)
    assert found.digest() == expected.digest()
    assert len(fetch(service, job, Range=f"bytes={60 << 20}-").content) == 4 << 20
    service.request("DELETE", f"/v1/jobs/{job['id']}")


def test_output_that_was_taken_away_is_no_error_of_the_service(service: Service) -> None:
    job = service.run(command="echo out")
    (service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "stdout").unlink()

    assert (fetch(service, job).status_code, fetch(service, job).content) == (200, b"")
    assert service.get(f"/v1/jobs/{job['id']}?include=output").status_code == 200


REPLACEMENTS = ["ln -s /etc/passwd ../stdout", "mkfifo ../stdout", "mkdir ../stdout"]


def check_empty(service: Service, job: dict[str, Any]) -> None:
    """Hold every way to read a job's stdout against that there is none."""
    document = service.get(f"/v1/jobs/{job['id']}?include=output").json()
    assert (document["stdout"]["bytes"], document["stdout"]["text"]) == (0, "")
    for query in ("", "?tail=5", "?download"):
        response = fetch(service, job, query)
        assert (response.status_code, response.content) == (200, b""), query
    check_problem(fetch(service, job, Range="bytes=0-"), 416)
    head = service.request("HEAD", f"/v1/jobs/{job['id']}/stdout")
    assert (head.status_code, head.headers["Content-Length"]) == (200, "0")


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_job_that_has_replaced_its_stream_has_an_empty_one(service: Service, replace: str) -> None:
    """A symbolic link would show another file, a FIFO would keep who reads it for ever."""
    job = service.submit(
        command=f"echo out; rm ../stdout; {replace}; touch done; while [ ! -e go ]; do sleep 0.05; done"
    )
    scratch = service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch"
    assert eventually((scratch / "done").exists)

    check_empty(service, job)
    (scratch / "go").touch()
    assert service.wait(job["id"])["state"] == "succeeded"
    check_empty(service, job)


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_stream_that_was_replaced_after_the_end_is_no_error_of_the_service(service: Service, replace: str) -> None:
    job = service.run(command="echo out")
    scratch = service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch"
    subprocess.run(["sh", "-c", f"rm ../stdout; {replace}"], cwd=scratch, check=True)

    assert (fetch(service, job).status_code, fetch(service, job).content) == (200, b"")
    document = service.get(f"/v1/jobs/{job['id']}?include=output").json()
    assert (document["stdout"]["bytes"], document["stdout"]["text"]) == (4, ""), "what it has written, what is left"
