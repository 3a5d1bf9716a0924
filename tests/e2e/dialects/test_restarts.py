"""What clients of each dialect were told before the service was stopped, or killed, holds when it is back."""

import http.client
import json
import os
import re
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.dialects.conversation import Asking, all_dialects, doors_of
from tests.factories import children_of, is_dead
from tests.process.serving import children_with, command_line
from tests.service import Service, eventually

PATIENCE = 60.0

GATED = """\
#!/bin/bash
# gated.sh NAME: tells that it has begun, waits until it is let go, and ends with 3
echo "$1" >> {directory}/marks
echo "before $1"
until [ -e {directory}/$1 ]; do sleep 0.02; done
echo "after $1"
exit 3
"""
DONE = "before {0}\nafter {0}\n"

KNOWN, UNKNOWN = "exit status 3", "wait: no child processes"
KERNEL_TELLS = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 15)
"""Whether it is told for certain how a job ended that has outlived its parents."""


class Named(ABC):
    """A job as a dialect's client knows it.

    Attributes:
        ends: how it may be said to have ended.
    """

    id: Any
    ends: frozenset[str] = frozenset({KNOWN})

    def __init__(self, ask: Asking, script: str, name: str) -> None:
        self.ask = ask
        self.script = script
        self.name = name
        self.submit()

    @abstractmethod
    def submit(self) -> None: ...

    @abstractmethod
    def shown(self) -> bytes:
        """What is told of it, when it has ended."""

    @abstractmethod
    def has_begun(self) -> bool: ...

    @abstractmethod
    def has_ended(self) -> bool: ...


class OfGoJobrunner(Named):
    def submit(self) -> None:
        asked = {"CommandLine": f"exec {self.script} {self.name}", "Environment": {}}
        self.id = json.loads(self.ask("POST", "/", json.dumps(asked)).body)["ID"]

    def shown(self) -> bytes:
        assert self.ask("GET", f"/{self.id}/attach").text == "Job ID not found.\n"
        return b"its end is not shown"

    def is_listed(self) -> bool:
        return self.id in json.loads(self.ask("GET", "/").body)["IDs"]

    def has_begun(self) -> bool:
        with self.ask.stream("GET", f"/{self.id}/attach?offset=0") as response:
            return response.readline() == f"before {self.name}\n".encode()

    def has_ended(self) -> bool:
        return not self.is_listed()


class OfHttpRunner(Named):
    def submit(self) -> None:
        asked = {"command": self.script, "args": self.name}
        self.id = json.loads(self.ask("POST", "/", json.dumps(asked)).body)["id"]

    def shown(self) -> bytes:
        body = self.ask("GET", f"/{self.id}").body
        job = json.loads(body)
        assert (job["id"], job["err"], job["stdout"]) == (self.id, None, DONE.format(self.name))
        assert (UNKNOWN if job["code"] is None else f"exit status {job['code']}") in self.ends
        return body

    def has_begun(self) -> bool:
        job = json.loads(self.ask("GET", f"/{self.id}").body)
        return job["stdout"] == f"before {self.name}\n" and job["code"] is None and "err" not in job

    def has_ended(self) -> bool:
        return "err" in json.loads(self.ask("GET", f"/{self.id}").body)


class OfQmd(Named):
    def submit(self) -> None:
        # Only who wants to be told is not kept waiting.
        asked = {"args": [self.name], "callback_url": "http://127.0.0.1:1/nobody"}
        self.id = json.loads(self.ask("POST", "/scripts/gated.sh", json.dumps(asked)).body)["id"]

    def shown(self) -> bytes:
        body = self.ask("GET", f"/jobs/{self.id}").body
        job = json.loads(body)
        assert (job["id"], job["status"]) == (self.id, "ERR")
        assert (job["args"], job["exec_log"]) == ([self.name], DONE.format(self.name))
        assert job["error"] in self.ends
        return body

    def has_begun(self) -> bool:
        return "Running: 1\n" in self.ask("GET", "/jobs").text

    def has_ended(self) -> bool:
        return "Running: 0\n" in self.ask("GET", "/jobs").text


class OfRtot(Named):
    def submit(self) -> None:
        (job,) = json.loads(self.ask("POST", "/jobs", f"exec {self.script} {self.name}").body)["jobs"]
        self.id = job["id"]

    def shown(self) -> bytes:
        answer = self.ask("GET", f"/jobs/{self.id}")
        (job,) = json.loads(answer.body)["jobs"]
        assert (job["id"], job["out"]) == (self.id, DONE.format(self.name))
        assert job["exit"] in self.ends
        return answer.body

    def has_begun(self) -> bool:
        answer = self.ask("GET", f"/jobs/{self.id}")
        (job,) = json.loads(answer.body)["jobs"]
        return answer.status == 202 and job.get("out") == f"before {self.name}\n"

    def has_ended(self) -> bool:
        return self.ask("GET", f"/jobs/{self.id}").status == 200


KINDS: dict[str, type[Named]] = {
    "go-jobrunner": OfGoJobrunner,
    "http-runner": OfHttpRunner,
    "qmd": OfQmd,
    "rtot": OfRtot,
}


def stop(service: Service) -> None:
    assert service.stop() == 0


def kill_all(service: Service) -> None:
    """Kill all processes of the service at once: none can do anything about it."""
    own = [pid for pid in service.processes() if command_line(pid).split()[-1:] in (["serve"], ["executor"], ["web"])]
    assert len(own) >= 4
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in own:
            os.kill(pid, number)
    assert eventually(lambda: all(map(is_dead, own)), within=PATIENCE)
    service.stop()


@pytest.mark.parametrize("way", [stop, kill_all])
def test_jobs_of_all_dialects_are_what_they_were(
    start_service: StartService, tmp_path: Path, way: Callable[[Service], None]
) -> None:
    script = tmp_path / "gated.sh"
    script.write_text(GATED.format(directory=tmp_path))
    script.chmod(0o755)
    settings = all_dialects(dialect_qmd={"scripts_dir": tmp_path}, executor={"max_running": 2 * len(KINDS)})
    service = start_service(settings)

    def submit(name: str) -> list[Named]:
        """Submit one of each kind and see it begin."""
        # Not named by their dialects: what has "jobrunner" in its command line is taken for one of the service's own.
        jobs = [
            kind(doors_of(service, api)[0], str(script), f"{name}-{number}")
            for number, (api, kind) in enumerate(KINDS.items())
        ]
        for job in jobs:
            assert eventually(job.has_begun, within=PATIENCE), job.name
        return jobs

    def let_go(jobs: list[Named]) -> dict[str, bytes]:
        for job in jobs:
            (tmp_path / job.name).touch()
        for job in jobs:
            assert eventually(job.has_ended, within=PATIENCE), job.name
        return {job.name: job.shown() for job in jobs}

    ended = submit("ended")
    told = let_go(ended)
    running = submit("running")
    way(service)
    service.start()

    assert {job.name: job.shown() for job in ended} == told
    for job in running:
        assert job.has_begun(), "and has not ended"
        job.ends |= {KNOWN} if KERNEL_TELLS else {KNOWN, UNKNOWN}
    told |= let_go(running)
    later = submit("later")
    told |= let_go(later)
    for old, middle, new in zip(ended, running, later, strict=True):
        assert len({old.id, middle.id, new.id}) == 3
        if isinstance(old, OfRtot):
            assert [old.id, middle.id, new.id] == [0, 1, 2]
        if isinstance(old, OfQmd):
            assert sorted([old.id, middle.id, new.id]) == [old.id, middle.id, new.id]
    assert {job.name: job.shown() for job in [*ended, *running, *later]} == told
    assert Counter((tmp_path / "marks").read_text().split()) == dict.fromkeys(told, 1)


def kill_workers(service: Service) -> None:
    """Kill the processes that answer requests; others take their place."""
    (web,) = children_with(service, "web")
    for pid in children_of(web):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("way", [stop, kill_all, kill_workers])
def test_a_program_that_nobody_can_listen_to_any_more_is_killed(
    start_service: StartService, way: Callable[[Service], None]
) -> None:
    service = start_service(all_dialects())
    ask, _ = doors_of(service, "rexec")
    script = "trap '' TERM; setsid sleep 600 & echo $$ $!; wait"
    asked = {"alias": "a", "cmd": "bash", "args": ["-c", script]}
    with ask.stream("POST", "/process", json.dumps(asked)) as response:
        pids = [int(word) for word in response.readline().split()]
        way(service)
        with suppress(http.client.IncompleteRead):
            assert response.read() == b""
    if way is not kill_workers:
        service.start()

    assert eventually(lambda: all(map(is_dead, pids)), within=PATIENCE)
    again = {"alias": "a", "cmd": "echo", "args": ["here"]}
    assert eventually(lambda: ask("POST", "/process", json.dumps(again)).body == b"here\n", within=PATIENCE)
