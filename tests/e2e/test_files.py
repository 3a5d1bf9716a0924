"""What a job has in its directory: listed, sent, and never anything else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from jobrunner.scratch import ENTRIES_MOST
from jobrunner.web.api.documents import FileListDocument
from tests.conftest import StartService
from tests.e2e.checks import check_problem, send_raw
from tests.service import ROOT, Service, eventually

CONTENT = bytes(range(256)) * 40

NAMES = [b"a b", b"100%41;?#&=+", b"\xff\xfe", b"new\nline", b"\x01", "ü".encode(), b'quo"te\\', b"~-_.", b":@"]

MAKE = f"""
import os, socket
open("data.bin", "wb").write(bytes(range(256)) * 40)
open("page.html", "w").write("<script>alert(document.domain)</script>")
open("empty", "w").close()
os.makedirs("sub/sub")
for name in {NAMES!r}:
    open(b"sub/" + name, "wb").write(name)
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
for name, target in [("link", "data.bin"), ("passwd", "/etc/passwd"), ("etc", "/etc"), ("loop", "."), ("up", "../..")]:
    os.symlink(target, name)
os.utime("data.bin", (0, 1_700_000_000.5))
"""


@pytest.fixture(scope="module")
def made(service: Service) -> dict[str, Any]:
    """A job that has made many kinds of things in its directory."""
    job = service.run(argv=["python3", "-c", MAKE], files={"given.txt": "given"})
    assert job["state"] == "succeeded", job["stderr"]["text"]
    return job


def listed(service: Service, job: dict[str, Any]) -> dict[str, Any]:
    """Return the list of a job's files, held against its model."""
    response = service.get(f"/v1/jobs/{job['id']}/files")
    assert response.status_code == 200, response.text
    FileListDocument.model_validate_json(response.text)
    document: dict[str, Any] = response.json()
    assert document.keys() == {"files", "truncated"}
    return document


def fetch(service: Service, job: dict[str, Any], name: str = "data.bin", **headers: str) -> requests.Response:
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return service.get(f"/v1/jobs/{job['id']}/files/{name}", headers=headers)


def fetch_raw(service: Service, job: dict[str, Any], path: str) -> tuple[int, dict[str, str], bytes]:
    """Fetch a path as it is written here: clients tidy up."""
    head = f"GET /v1/jobs/{job['id']}/files/{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}"
    return send_raw(service, f"{head}\r\n\r\n".encode())


# ── the list ──


def test_a_job_s_files_are_listed_by_path(service: Service, made: dict[str, Any]) -> None:
    document = listed(service, made)

    entries = {entry["path"]: entry for entry in document["files"]}
    assert not document["truncated"]
    assert [path for path in entries if "/" not in path] == sorted(
        ["data.bin", "page.html", "empty", "sub", "fifo", "socket", "link", "passwd", "etc", "loop", "up", "given.txt"]
    )
    assert entries["data.bin"] == {
        "path": "data.bin",
        "type": "file",
        "bytes": len(CONTENT),
        "modified_at": "2023-11-14T22:13:20.500000Z",
        "href": f"/v1/jobs/{made['id']}/files/data.bin",
    }
    assert {entry["type"] for entry in entries.values() if entry["path"].startswith("sub/")} == {"file", "directory"}
    kinds = {name: entries[name]["type"] for name in ("fifo", "socket", "link", "etc", "loop", "up", "sub", "sub/sub")}
    assert kinds == dict.fromkeys(("fifo", "socket"), "other") | dict.fromkeys(
        ("link", "etc", "loop", "up"), "symlink"
    ) | dict.fromkeys(("sub", "sub/sub"), "directory")
    for entry in entries.values():
        assert (entry["bytes"] is None) == (entry["href"] is None) == (entry["type"] != "file")


def test_every_file_that_is_listed_can_be_fetched_whatever_its_name(service: Service, made: dict[str, Any]) -> None:
    files = [entry for entry in listed(service, made)["files"] if entry["path"].startswith("sub/") and entry["href"]]

    fetched = {service.get(entry["href"]).content: entry["path"] for entry in files}

    assert fetched == {name: f"sub/{name.decode(errors='replace')}" for name in NAMES}


def test_a_job_that_has_not_started_has_no_files(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    service.submit(argv=["sleep", "60"])
    queued = service.submit(argv=["true"], files={"given.txt": "given"})

    assert listed(service, queued) == {"files": [], "truncated": False}
    check_problem(fetch(service, queued, "given.txt"), 404, "not-found")
    for job in service.get("/v1/jobs").json()["jobs"]:
        service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_files_of_a_running_job_are_as_they_are_now(service: Service) -> None:
    job = service.submit(command="printf early > log; while [ ! -e go ]; do sleep 0.05; done; printf ', late' >> log")
    assert eventually(lambda: fetch(service, job, "log").content == b"early")
    assert [entry["path"] for entry in listed(service, job)["files"]] == ["log"]

    scratch = service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch"
    (scratch / "go").touch()
    service.wait(job["id"])

    assert fetch(service, job, "log").content == b"early, late"
    assert [entry["path"] for entry in listed(service, job)["files"]] == ["go", "log"]


def test_too_many_files_are_a_list_that_says_so(service: Service) -> None:
    job = service.run(argv=["python3", "-c", "for n in range(30_000): open(f'{n}', 'w').close()"])

    document = listed(service, job)

    assert (len(document["files"]), document["truncated"]) == (ENTRIES_MOST, True)
    service.request("DELETE", f"/v1/jobs/{job['id']}")


def test_a_tree_deeper_than_a_path_may_be_long_is_listed_and_deleted(service: Service) -> None:
    make = "import os\nfor _ in range(3000): os.mkdir('deeper'); os.chdir('deeper')\nopen('bottom', 'w').close()"
    job = service.run(argv=["python3", "-c", make])
    assert job["state"] == "succeeded", job["stderr"]["text"]

    assert listed(service, job)["truncated"]
    check_problem(fetch(service, job, "deeper/" * 1000 + "bottom"), 404)
    assert service.request("DELETE", f"/v1/jobs/{job['id']}").status_code == 204


def test_files_of_an_ended_job_are_gone_where_they_are_not_kept(start_service: StartService) -> None:
    service = start_service()
    before = service.run(command="echo content > file")
    service.stop()
    service = start_service({"storage": {"keep_scratch": "no"}})

    job = service.run(command="echo content | tee file")

    assert eventually(lambda: not listed(service, job)["files"])
    check_problem(fetch(service, job, "file"), 404)
    assert service.get(f"/v1/jobs/{job['id']}/stdout").content == b"content\n"
    assert fetch(service, before, "file").content == b"content\n"
    gc = [sys.executable, "-m", "jobrunner", "gc", "--json"]
    report = subprocess.run(gc, cwd=ROOT, env=service.environment, stdout=subprocess.PIPE, check=True, timeout=60)
    assert json.loads(report.stdout)["cleared"] == 1
    assert listed(service, before) == {"files": [], "truncated": False}


# ── a file ──


def test_a_file_is_sent_as_it_is(service: Service, made: dict[str, Any]) -> None:
    response = fetch(service, made)

    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["Content-Length"] == str(len(CONTENT))
    assert response.headers["Accept-Ranges"] == "bytes"
    assert "Content-Disposition" not in response.headers
    assert fetch(service, made, "empty").content == b""
    assert fetch(service, made, "given.txt").content == b"given"
    assert service.get(f"/v1/jobs/{made['number']}/files/data.bin").content == CONTENT


def test_a_part_of_a_file_is_sent_alone(service: Service, made: dict[str, Any]) -> None:
    response = fetch(service, made, Range="bytes=100-199")

    assert (response.status_code, response.content) == (206, CONTENT[100:200])
    assert response.headers["Content-Range"] == f"bytes 100-199/{len(CONTENT)}"
    assert fetch(service, made, Range="bytes=-7").content == CONTENT[-7:]
    assert fetch(service, made, Range="bytes=0-1,4-5").content == CONTENT
    missed = fetch(service, made, Range="bytes=10240-")
    check_problem(missed, 416, "range-not-satisfiable")
    assert missed.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


def test_a_head_tells_the_length_without_the_bytes(service: Service, made: dict[str, Any]) -> None:
    response = service.request("HEAD", f"/v1/jobs/{made['id']}/files/data.bin")

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Content-Length"] == str(len(CONTENT))
    assert service.request("HEAD", f"/v1/jobs/{made['id']}/files/none").status_code == 404
    assert service.request("HEAD", f"/v1/jobs/{made['id']}/files").status_code == 200


def test_a_version_of_a_file_is_known_once_it_has_settled(service: Service) -> None:
    job = service.run(command="echo one > file")
    path = service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch" / "file"
    assert eventually(lambda: "ETag" in fetch(service, job, "file").headers)
    etag = fetch(service, job, "file").headers["ETag"]

    assert fetch(service, job, "file", If_None_Match=etag).status_code == 304
    assert fetch(service, job, "file", Range="bytes=0-0", If_Range=etag).status_code == 206

    before = path.stat()
    path.write_text("two\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # a job can do that

    assert fetch(service, job, "file", If_None_Match=etag).content == b"two\n"
    assert fetch(service, job, "file", Range="bytes=0-0", If_Range=etag).content == b"two\n"
    assert eventually(lambda: "ETag" in fetch(service, job, "file").headers)
    assert fetch(service, job, "file").headers["ETag"] != etag
    check_problem(fetch(service, job, "file", If_Match=etag), 412, "precondition-failed")


@pytest.mark.parametrize("query", ["?download", "?download=true", "?download=1"])
def test_a_browser_is_told_to_save_a_download_under_its_name(
    service: Service, made: dict[str, Any], query: str
) -> None:
    response = fetch(service, made, f"data.bin{query}")
    named = fetch(service, made, f"sub/%C3%BC{query}")

    assert response.content == CONTENT
    assert response.headers["Content-Disposition"] == 'attachment; filename="data.bin"'
    assert named.headers["Content-Disposition"] == "attachment; filename=\"_\"; filename*=UTF-8''%C3%BC"
    for name in NAMES:
        found = fetch(service, made, "sub/" + "".join(f"%{byte:02x}" for byte in name) + query)
        assert found.content == name
        assert found.headers["Content-Disposition"].startswith("attachment; filename=")


def test_no_file_of_a_job_is_a_page_of_the_service(service: Service, made: dict[str, Any]) -> None:
    for name in ("page.html", "data.bin"):
        response = fetch(service, made, name)

        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"


# ── what is none ──

NONE = [
    "none", "sub", "sub/", "sub/sub", "data.bin/", "data.bin/x", "fifo", "socket", "link", "passwd", "etc/passwd",
    "loop/data.bin", "up", "up/admin.token", ".", "..", "../stdout", "../../../../../../../../../../etc/passwd",
    "sub/../data.bin", "./data.bin", "%2e%2e/stdout", "%2e%2e%2fstdout", "..%2fstdout", "%2E%2E%5Cstdout",
    "/data.bin", "//etc/passwd", "/etc/passwd", "%2fetc%2fpasswd", "sub//a%20b", "%00", "data.bin%00", "%00/etc/passwd",
    "data.bin%00.txt", "%", "%zz", "%c0%ae%c0%ae/stdout", "a" * 256, "a/" * 3500, "data.bin;x", "~root",
]  # fmt: skip


@pytest.mark.parametrize("path", NONE, ids=lambda path: path[:30])
def test_what_is_no_file_of_the_job_is_not_found(service: Service, made: dict[str, Any], path: str) -> None:
    status, headers, body = fetch_raw(service, made, path)

    document = json.loads(body)
    assert (status, document["status"], document["type"]) == (404, 404, "/problems/not-found")
    assert headers["content-type"] == "application/problem+json"


def test_files_of_a_job_that_nobody_has_are_not_found(service: Service) -> None:
    gone = service.run(argv=["true"], files={"file": ""})
    service.request("DELETE", f"/v1/jobs/{gone['id']}")

    for job in (gone["id"], "999999999", "nonsense", "..", "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11"):
        found = [service.get(f"/v1/jobs/{job}/files{path}") for path in ("", "/file")]
        assert [check_problem(each, 404)["status"] for each in found] == [404, 404]


def test_files_are_shown_to_nobody_without_a_token(service: Service, made: dict[str, Any]) -> None:
    for path in ("files", "files/data.bin", "files/none"):
        response = requests.get(f"{service.url}/v1/jobs/{made['id']}/{path}", timeout=10)
        check_problem(response, 401, "unauthorized")


def test_files_can_only_be_read(service: Service, made: dict[str, Any]) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("files", "files/data.bin"):
            check_problem(service.request(method, f"/v1/jobs/{made['id']}/{path}"), 405)
    check_problem(service.get(f"/v1/jobs/{made['id']}/files?limit=1"), 422)
    check_problem(service.get(f"/v1/jobs/{made['id']}/files/data.bin?tail=1"), 422)


# ── what it costs ──


def reads_of(service: Service) -> int:
    """Return how often the service's processes have read anything."""
    texts = [Path(f"/proc/{pid}/io").read_text() for pid in service.processes()]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("syscr"))


def peak_of(service: Service) -> int:
    """Return the most memory that any of the service's processes had, in bytes."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in service.processes()]
    return max(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("VmHWM")) << 10


def test_a_large_file_is_sent_by_the_kernel(start_service: StartService) -> None:
    """By reading it in blocks it would take 4,096 reads at least; as a whole, its length in memory."""
    service = start_service({"server": {"workers": 1}})
    job = service.run(command="truncate -s 256M file")
    reads, peak = reads_of(service), peak_of(service)

    length = 0
    with service.get(f"/v1/jobs/{job['id']}/files/file", stream=True) as response:
        for piece in response.iter_content(1 << 20):
            length += len(piece)

    assert length == 256 << 20
    assert reads_of(service) - reads < 2000
    assert peak_of(service) - peak < 32 << 20


def test_a_file_that_is_cut_while_it_is_sent_breaks_the_connection(service: Service) -> None:
    """Its length was promised: the client must not take what comes next for the rest."""
    job = service.run(command="truncate -s 256M file")
    path = service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch" / "file"

    with service.get(f"/v1/jobs/{job['id']}/files/file", stream=True) as response:
        response.raw.read(1 << 16)
        os.truncate(path, 1 << 20)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for _ in response.iter_content(1 << 20):
                pass

    assert service.get("/healthz").status_code == 200
    service.request("DELETE", f"/v1/jobs/{job['id']}")


def test_no_answer_leaves_a_file_open(service: Service, made: dict[str, Any]) -> None:
    for _ in range(20):
        listed(service, made)
        fetch(service, made)
        fetch(service, made, Range="bytes=0-5")
        fetch(service, made, Range="bytes=99999-")
        fetch(service, made, "fifo")
        fetch(service, made, "sub")
        fetch(service, made, "sub/none")
        service.request("HEAD", f"/v1/jobs/{made['id']}/files/data.bin")
        etag = fetch(service, made).headers.get("ETag", '"none"')
        fetch(service, made, If_None_Match=etag)
        fetch(service, made, If_Match='"other"')

    def left() -> list[str]:
        targets = [os.readlink(entry) for pid in service.processes() for entry in Path(f"/proc/{pid}/fd").iterdir()]
        return [target for target in targets if "/scratch" in target]

    assert eventually(lambda: not left()), left()
