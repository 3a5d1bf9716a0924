"""Documents with more output than is kept in memory: sent bit by bit, to as many as may follow."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobrunner.web.dialects import go
from tests.e2e.dialects.conversation import Answer, Asking
from tests.service import Service, eventually, free_port

SCRIPT = "#!/usr/bin/env python3\nimport sys; sys.stdout.buffer.write(bytes(range(256)) * 8000)\n"
WRITTEN = bytes(range(256)) * 8000

NAMES = ("http-runner", "qmd", "rtot")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one place for somebody who follows."""
    directory = tmp_path_factory.mktemp("long")
    script = directory / "scripts" / "long.sh"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    script.chmod(0o755)
    settings: dict[str, dict[str, Any]] = {
        f"dialect_{name.replace('-', '_')}": {
            "enabled": "yes", "port": free_port(), "auth": "none", "run_as": "admin",
        } for name in NAMES
    }  # fmt: skip
    settings["dialect_qmd"]["scripts_dir"] = script.parent
    settings["server"] = {"workers": 1, "max_followers": 1}
    running = Service(directory / "data", settings).start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def run_http_runner(ask: Asking, script: Path) -> tuple[str, Callable[[Answer], str]]:
    number = json.loads(ask("POST", "/", json.dumps({"command": str(script), "args": ""})).body)["id"]
    assert eventually(lambda: b'"code":null' not in (answer := ask("GET", f"/{number}")).body and answer.status == 200)
    return f"/{number}", lambda answer: json.loads(answer.body)["stdout"]


def run_qmd(ask: Asking, script: Path) -> tuple[str, Callable[[Answer], str]]:
    number = json.loads(ask("POST", f"/scripts/{script.name}", "{}").body)["id"]
    return f"/jobs/{number}", lambda answer: json.loads(answer.body)["exec_log"]


def run_rtot(ask: Asking, script: Path) -> tuple[str, Callable[[Answer], str]]:
    number = json.loads(ask("POST", "/jobs", script.read_text()).body)["jobs"][0]["id"]
    assert eventually(lambda: ask("GET", f"/jobs/{number}?fields=").status == 200, within=60)
    return f"/jobs/{number}", lambda answer: json.loads(answer.body)["jobs"][0]["out"]


@pytest.mark.parametrize("run", [run_http_runner, run_qmd, run_rtot])
def test_much_output_is_sent_bit_by_bit_to_who_has_a_seat(
    service: Service, run: Callable[[Asking, Path], tuple[str, Callable[[Answer], str]]]
) -> None:
    name = run.__name__.removeprefix("run_")
    ask = Asking(int(service.environment[f"JOBRUNNER_DIALECT_{name.upper()}_PORT"]))
    path, text_of = run(ask, service.data_dir.parent / "scripts" / "long.sh")
    answer = ask("GET", path)
    assert text_of(answer) == (WRITTEN.decode(errors="replace") if name == "http_runner" else go.to_text(WRITTEN))
    assert "content-length" not in answer.headers

    other = service.submit(argv=["sleep", "60"])
    with service.stream(f"/v1/jobs/{other['id']}/stdout?follow"):
        busy = ask("GET", path)
        # Who asks QMD waits, and has a seat among those who do.
        assert (busy.status, busy.headers.get("retry-after")) == ((200, None) if name == "qmd" else (503, "1"))
        if name == "rtot":
            assert ask("GET", f"{path}?fields=start").headers["content-length"]
            assert ask("GET", "/jobs").status == 503
    service.post(f"/v1/jobs/{other['id']}/cancel")
    assert eventually(lambda: ask("GET", path).status == 200), "the seat is given back"
    for _ in range(3):
        with closing(socket.create_connection(("127.0.0.1", ask.port), 60)) as gone:
            gone.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            gone.recv(100)
        assert eventually(lambda: ask("GET", path).status == 200), "by who has gone in the middle, too"
    if name == "rtot":
        assert [ask("HEAD", path).status for _ in range(3)] == [200] * 3
