"""Requests that nobody would write, to every route: all are answered, and nothing is touched but the data."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.e2e.test_fuzz import MEMBERS, junk
from tests.service import Service, eventually

SECONDS = 0.05
"""What requests wait for, and jobs that do not end."""

text = st.text(max_size=20)
comment = st.text(st.characters(exclude_characters="\n\r"), max_size=20).map(lambda words: f"true #{words}")
"""What a shell takes for nothing, whatever is in it: that a job does what it is told is no finding."""

seconds = st.floats(0.01, 0.2)
no_text = junk.filter(lambda value: not isinstance(value, str | list))
PROGRAMS = ["true", "", "/", "absent", "./absent", "\0", "true\0", "x" * 5000]
MEANT: dict[str, st.SearchStrategy[Any]] = {
    **{name: kind | junk for name, kind in MEMBERS.items()},
    "command": comment | no_text,
    "source": comment | st.sampled_from(["#!", "#!/nowhere\n", "#!/bin/true\0"]) | no_text,
    "argv": st.lists(st.sampled_from(PROGRAMS), max_size=3) | no_text,
    "timeout": st.just(SECONDS) | junk,
}
SUBMISSIONS = st.fixed_dictionaries({}, optional=MEANT)
SIGNALS = st.sampled_from(["SIGTERM", "HUP", "SIGRTMIN+1", "SIGRTMIN+99", "KILL", "0", "", "sig", "9"]) | junk
CONTROLS = st.fixed_dictionaries({}, optional={"signal": SIGNALS, "grace": st.just(SECONDS) | st.floats() | junk})
PIECES = [
    *("..", "../..", "../../../../etc/passwd", "%2e%2e", "..%2f..%2fdata.log", "%2e%2e%2f%2e%2e", "//etc/passwd"),
    *("file", "a/b", "a/b/etc/passwd", ".", "", "%00", "%ff", "%0a", "stdout", "stderr", "-1", "0", "1", "9" * 20),
]
BODIES = [None, b"", b"{", b"\xff", b"null", b"[]", b'"\\ud800"', b"{}" * 1000]
TIMES = ["2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1"]
QUERY = {
    "wait": st.sampled_from(["0", "0.05", "-1", "nan", "inf", "1e999", "x"]),
    "dry_run": st.sampled_from(["true", "false", "2", ""]),
    "force": st.sampled_from(["true", "false", "2", ""]),
    "follow": st.sampled_from(["", "false", "x"]),
    "offset": st.sampled_from(["0", "1", "-1", "9223372036854775807", "9223372036854775808", "x"]),
    "tail": st.sampled_from(["0", "1", "-1", str(1 << 70), "x"]),
    "download": st.sampled_from(["", "x"]),
    "include": st.sampled_from(["output", "x"]),
    "state": st.sampled_from(["active", "ended", "failed", "x"]),
    "label": st.sampled_from(["a:b", ":", "a", ""]) | text,
    "limit": st.sampled_from(["1", "1000", "0", "1001", "१", "x"]),
    "cursor": st.sampled_from(["MQ", "MA", "x", "", "=", "/w"]) | text,
    "signature": st.sampled_from(["", "x.y", "WyJ4IiwieCIsMV0.x"]) | text,
    **dict.fromkeys(("since", "until"), st.sampled_from(TIMES) | text),
    **dict.fromkeys(("q", "name", "owner"), text),
}
HEADERS = {
    "Prefer": st.sampled_from(["wait=0", "wait=-1", "wait", "wait=x, wait=1", 'wait="0"']),
    "Idempotency-Key": st.sampled_from(["k", '"k"', '"', "", "x" * 300, "\x7f"]),
    "Range": st.sampled_from(["bytes=0-", "bytes=-1", "bytes=5-1", "bytes=0-0,2-3", "lines=1-2", f"bytes={1 << 70}-"]),
    "If-Range": st.sampled_from(['"x"', "Thu, 01 Jan 1970 00:00:00 GMT", "x"]),
    "If-None-Match": st.sampled_from(["*", '"x"', 'W/"x', "x"]),
    "If-Match": st.sampled_from(["*", '"x"']),
    "Last-Event-ID": st.sampled_from(["0-0", "5-0-end", "9" * 18 + "-0", "x", "1-1-1"]),
    "Content-Type": st.sampled_from(["application/json", "text/plain", "application/json; charset=utf-16", ";", "x"]),
    "Accept": st.sampled_from(["text/html", "x"]),
}


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that a service could reach by mistake: beside its data, above, in its home."""
    around = tmp_path_factory.mktemp("surroundings")
    for name in ("above/beside", "home", "tmp", "work/deep", "scripts"):
        (around / name).mkdir(parents=True)
        (around / name / "precious").write_text(name)
    (around / "work" / "link").symlink_to("../home")
    script = around / "scripts" / "hello"
    script.write_text("#!/bin/sh\n# hello\ntrue\n")
    script.chmod(0o755)
    return around


@pytest.fixture(scope="module")
def fuzzed(surroundings: Path) -> Iterator[Service]:
    """A service in the midst of them."""
    service = Service(
        surroundings / "above" / "data",
        {
            "executor": {"grace": SECONDS, "default_timeout": "5"},
            "server": {"max_wait": SECONDS},
            "storage": {"scripts_dir": surroundings / "scripts"},
            "callbacks": {"schedule": "0"},
        },
        command=("env", "-C", str(surroundings / "work"), sys.executable, "-m", "jobrunner", "serve"),
    )
    service.environment |= {"HOME": str(surroundings / "home"), "TMPDIR": str(surroundings / "tmp")}
    service.start()
    yield service
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def listing(around: Path, service: Service) -> dict[str, tuple[int, int, int]]:
    """Return mode, size and time of change of everything but the data directory and the log."""
    own = {service.data_dir, service.log}
    found = {}
    for directory, folders, files in os.walk(around):
        folders[:] = [name for name in folders if Path(directory, name) not in own]
        for name in [*folders, *files]:
            path = Path(directory, name)
            if path not in own:
                status = path.lstat()
                found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def requests_to(method: str, route: str, jobs: list[str], cwd: str) -> st.SearchStrategy[Asked]:
    """Make requests to one route: most of each is right, so that what is wrong is reached."""
    piece = st.sampled_from(PIECES) | text.map(lambda name: quote(name, safe=""))
    values = {
        "job_id": st.sampled_from(jobs) | piece,
        "stream": st.sampled_from(["stdout", "stderr"]) | piece,
        "file": piece,
    }
    parts = {name: values[name] for name in values if f"{{{name}}}" in route}
    parameter = st.sampled_from(sorted(QUERY)).flatmap(lambda name: st.tuples(st.just(name), QUERY[name]))
    query: st.SearchStrategy[list[tuple[str, str]]] = st.just([]) | st.lists(parameter, min_size=1, max_size=2)
    some = st.fixed_dictionaries({}, optional=HEADERS).map(lambda given: dict([*given.items()][:2]))
    headers: st.SearchStrategy[dict[str, str]] = st.just({}) | some
    body: st.SearchStrategy[bytes | None] = st.none()
    if method == "POST":
        likely = {"argv": st.just(["true"])}
        placed = {"cwd": st.just(cwd) | MEMBERS["cwd"], "files": MEMBERS["files"], "name": text, "timeout": seconds}
        document = st.fixed_dictionaries(likely, optional=placed) | SUBMISSIONS if route == "/v1/jobs" else CONTROLS
        body = (document | junk).map(lambda value: json.dumps(value).encode()) | st.sampled_from(BODIES)

    def make(parts: dict[str, str], query: list[tuple[str, str]], headers: dict[str, str], body: bytes | None) -> Asked:
        path = route.format(**parts) + (f"?{urlencode(query)}" if query else "")
        return Asked(method, path, {"Content-Type": "application/json", **headers}, body)

    return st.builds(make, st.fixed_dictionaries(parts), query, headers, body)


@dataclass
class Fuzzer:
    """Sends requests, and keeps account of the answers."""

    service: Service
    statuses: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    submitted: set[str] = field(default_factory=set)

    def try_route(self, method: str, route: str, asked: st.SearchStrategy[Asked]) -> None:
        """Send some requests to a route."""
        statuses = self.statuses[method, route] = set()
        examples = 150 if route == "/v1/jobs" else 40

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # to make an answer smaller that does not come takes for ever
            suppress_health_check=list(HealthCheck),
        )
        @given(asked)
        def ask(asked: Asked) -> None:
            status, body = self.send(asked)
            assert status < 500, (asked, status, body)
            statuses.add(status)
            if status in {200, 202} and b'"id":' in body and route == "/v1/jobs" and method == "POST":
                self.submitted.add(json.loads(body)["id"])

        ask()

    def send(self, asked: Asked) -> tuple[int, bytes]:
        """Send one request, as it is; return the answer's status, and its body."""
        given_headers = {**asked.headers, "Authorization": f"Bearer {self.service.token}"}
        headers = {name: value.encode("latin-1", "replace") for name, value in given_headers.items()}
        with closing(HTTPConnection("127.0.0.1", self.service.port, timeout=30)) as connection:
            connection.request(asked.method, asked.path, asked.body, headers)
            response = connection.getresponse()
            # What is followed has no end.
            return response.status, response.read() if asked.method != "GET" or response.status >= 400 else b""


def test_no_request_fails_the_service_or_reaches_beyond_its_data(fuzzed: Service, surroundings: Path) -> None:
    routes = {
        (method.upper(), route)
        for route, operations in fuzzed.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    ended = fuzzed.run(argv=["sh", "-c", "echo hello; echo file > file; mkdir a; ln -s / a/b"])
    running = fuzzed.submit(argv=["sleep", "300"], timeout=300)
    jobs = [ended["id"], str(ended["number"]), running["id"], "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c11"]
    before = listing(surroundings, fuzzed)
    fuzzer = Fuzzer(fuzzed)

    for method, route in sorted(routes | {("GET", "/openapi.json"), ("GET", "/{file}"), ("PUT", "/v1/jobs/{job_id}")}):
        fuzzer.try_route(method, route, requests_to(method, route, jobs, str(surroundings / "work")))

    assert len(fuzzer.submitted) > 10
    for job in fuzzed.get("/v1/jobs?state=active&limit=1000").json()["jobs"]:
        fuzzed.post(f"/v1/jobs/{job['id']}/cancel", {"grace": 0})
    assert eventually(lambda: fuzzed.get("/v1/jobs?state=active").json()["jobs"] == [], within=30)
    assert listing(surroundings, fuzzed) == before
