"""Many clients of all dialects at once: each gets what is its own, whole, and it is run once."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.dialects.conversation import Asking, all_dialects, doors_of
from tests.receivers import Receiver
from tests.service import Service, eventually

CLIENTS = 4
"""Of each dialect: two at its port, two below its prefix."""

EACH = 3
"""How often a client submits; the last of these ends with 2, and so on."""

PATIENCE = 60.0

TALK = """\
#!/bin/bash
# talk.sh MARK CODE: tells whose it is, wherever it can be told
echo "$1" >> "{marks}"
echo "out of $1"
echo "err of $1" >&2
if [ -n "$QMD_OUT" ]; then cat file; echo "result of $1" > "$QMD_OUT"; fi
exit "$2"
"""

GATED = """\
echo "$MARK" >> "{marks}"; echo "1 of $MARK"; until [ -e "{gates}/$MARK" ]; do sleep 0.02; done
echo "2 of $MARK"; exit "$CODE"
"""
"""For a shell: what stands behind the gate is written only when somebody has seen what comes before it."""


@dataclass(frozen=True)
class Place:
    """Where all clients meet: the service, and the files by which they and their jobs tell one another something."""

    service: Service
    directory: Path
    receiver: Receiver

    @property
    def talk(self) -> str:
        return str(self.directory / "talk.sh")

    @property
    def gated(self) -> str:
        return GATED.format(marks=self.directory / "marks", gates=self.directory)

    def let_go(self, mark: str) -> None:
        (self.directory / mark).touch()

    def marks(self) -> Counter[str]:
        return Counter((self.directory / "marks").read_text().splitlines())


@dataclass(frozen=True)
class Client:
    """A client of a dialect.

    Attributes:
        ask: at the door that it came to.
        elsewhere: at the dialect's other one.
        ids: what it was told its submissions are called, by their marks.
    """

    place: Place
    name: str
    ask: Asking
    elsewhere: Asking
    ids: dict[str, Any] = field(default_factory=dict)

    @property
    def marks(self) -> dict[str, int]:
        """The marks of its submissions, and the code that each ends with."""
        return {f"{self.name}-{number}": number for number in range(EACH)}

    def parsed(self, method: str, path: str, body: str = "", status: int = 200) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status == status, answer
        return json.loads(answer.body)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service with four workers that speaks all dialects, each at both doors."""
    directory = tmp_path_factory.mktemp("place")
    (directory / "talk.sh").write_text(TALK.format(marks=directory / "marks"))
    (directory / "talk.sh").chmod(0o755)
    settings = all_dialects(
        server={"workers": 4, "max_followers": 400, "max_waiters": 400},
        executor={"max_running": CLIENTS * EACH * 2 + 8},  # all that wait at a gate, and some
        dialect_qmd={"scripts_dir": directory},
    )
    with Receiver() as receiver:
        service = Service(tmp_path_factory.mktemp("many") / "data", settings).start()
        yield Place(service, directory, receiver)
        assert service.stop() == 0, service.log.read_text()
    assert "Traceback" not in service.log.read_text()


def speak_go_jobrunner(me: Client) -> None:
    for mark, code in me.marks.items():
        environment = {"MARK": mark, "CODE": str(code)}
        command = {"Kind": "bash", "CommandLine": me.place.gated, "Environment": environment}
        asked = {"Commands": [command]} if code else command
        document = me.parsed("POST", "/", json.dumps(asked))
        me.ids[mark] = document["JobID" if code else "ID"]
    assert set(me.ids.values()) <= set(me.parsed("GET", "/")["IDs"])
    for mark, job in reversed(me.ids.items()):
        with (
            me.ask.stream("GET", f"/{job}/attach?offset=0") as response,
            me.elsewhere.stream("GET", f"/{job}/attach?offset=0") as other,
        ):
            assert response.readline() == other.readline() == f"1 of {mark}\n".encode()
            me.place.let_go(mark)
            assert response.read() == other.read() == f"2 of {mark}\n".encode()
    assert not set(me.ids.values()) & set(me.parsed("GET", "/")["IDs"])


def speak_http_runner(me: Client) -> None:
    for mark, code in me.marks.items():
        asked = {"command": me.place.talk, "args": f"{mark} {code}", "callback": callback_url(me.place, mark)}
        document = me.parsed("POST", "/", json.dumps(asked), status=202)
        assert (document["arguments"], document["stdout"]) == ([mark, str(code)], "")
        me.ids[mark] = document["id"]
    for mark, code in reversed(me.marks.items()):
        path = f"/{me.ids[mark]}"
        assert eventually(lambda: "err" in me.parsed("GET", path), within=PATIENCE)  # noqa: B023
        job = me.parsed("GET", path)
        assert (job["id"], job["code"], job["arguments"]) == (me.ids[mark], code, [mark, str(code)])
        assert (job["stdout"], job["stderr"]) == (f"out of {mark}\n", f"err of {mark}\n")
        assert me.elsewhere("GET", path).body == me.ask("GET", path).body == told(me.place, mark)


def speak_qmd(me: Client) -> None:
    for mark, code in me.marks.items():
        asked: dict[str, Any] = {"args": [mark, str(code)], "files": {"file": f"file of {mark}\n"}}
        path = "/scripts/talk.sh?priority=" + ("urgent", "high", "low")[code % 3]
        if code:  # the first one is waited for, the others are told of
            asked["callback_url"] = callback_url(me.place, mark)
        document = me.parsed("POST", path, json.dumps(asked))
        assert (document["args"], document["files"]) == (asked["args"], asked["files"])
        assert document["status"] == ("QUEUED" if code else "OK")
        me.ids[mark] = document["id"]
    for mark, code in reversed(me.marks.items()):
        path = f"/jobs/{me.ids[mark]}"
        job = me.parsed("GET", path)
        assert (job["id"], job["args"]) == (me.ids[mark], [mark, str(code)])
        assert (job["status"], job.get("error")) == (("ERR", f"exit status {code}") if code else ("OK", None))
        assert job["exec_log"] == f"out of {mark}\nerr of {mark}\nfile of {mark}\n"
        assert job["output"] == f"result of {mark}\n"
        assert me.elsewhere("GET", path).body == me.ask("GET", path).body
        if code:
            assert told(me.place, mark) == me.ask("GET", path).body


def speak_rexec(me: Client) -> None:
    with ExitStack() as streams:
        answers = {}
        for mark, code in me.marks.items():
            envs = {"MARK": mark, "CODE": str(code)}
            asked = {"alias": mark, "cmd": "bash", "args": ["-c", me.place.gated], "envs": envs}
            door = me.elsewhere if code == 1 else me.ask
            answers[mark] = streams.enter_context(door.stream("POST", "/process", json.dumps(asked)))
            assert answers[mark].status == 200
            assert me.elsewhere("POST", "/process", json.dumps(asked)).status == 409
        for mark, answer in reversed(answers.items()):
            assert answer.readline() == f"1 of {mark}\n".encode()
            me.place.let_go(mark)
            assert answer.read() == f"2 of {mark}\n".encode()


def speak_rtot(me: Client) -> None:
    for mark, code in me.marks.items():
        (job,) = me.parsed("POST", "/jobs", f'exec "{me.place.talk}" {mark} {code}', status=201)["jobs"]
        assert job["href"] == f"{me.ask.prefix}/jobs/{job['id']}"
        me.ids[mark] = job["id"]
    for mark, code in reversed(me.marks.items()):
        path = f"/jobs/{me.ids[mark]}"
        assert eventually(lambda: me.ask("GET", path).status == 200, within=PATIENCE)  # noqa: B023
        (job,) = me.parsed("GET", path)["jobs"]
        assert (job["id"], job["state"]) == (me.ids[mark], "complete")
        assert (job["out"], job["err"]) == (f"out of {mark}\n", f"err of {mark}\n")
        assert job.get("exit", "") == (f"exit status {code}" if code else "")
        assert Path(job["filename"]).read_text().endswith(f'talk.sh" {mark} {code}')
        assert json.loads(me.elsewhere("GET", path).body)["jobs"][0]["out"] == job["out"]


SPEAK: Mapping[str, Callable[[Client], None]] = {
    "go-jobrunner": speak_go_jobrunner,
    "http-runner": speak_http_runner,
    "qmd": speak_qmd,
    "rexec": speak_rexec,
    "rtot": speak_rtot,
}


def callback_url(place: Place, mark: str) -> str:
    return f"http://127.0.0.1:{place.receiver.port}/{mark}"


def told(place: Place, mark: str) -> bytes:
    """Return what was sent about a submission, which must be one thing."""

    def received() -> list[bytes]:
        return [each.body for each in place.receiver.received if each.path == f"/{mark}"]

    assert eventually(received, within=PATIENCE), f"nobody was told of {mark}"
    (body,) = received()
    return body


def test_each_of_many_clients_of_all_dialects_gets_its_own_and_nothing_is_run_twice(place: Place) -> None:
    clients = []
    for name in SPEAK:
        for number in range(CLIENTS):
            ask, elsewhere = doors_of(place.service, name)[:: 1 if number % 2 else -1]
            clients.append(Client(place, f"{name}-{number}", ask, elsewhere))
    together = threading.Barrier(len(clients))

    def speak(client: Client) -> None:
        together.wait(PATIENCE)
        SPEAK[client.name.rpartition("-")[0]](client)

    with ThreadPoolExecutor(len(clients)) as pool:
        for done in [pool.submit(speak, client) for client in clients]:
            done.result()

    assert place.marks() == dict.fromkeys((mark for client in clients for mark in client.marks), 1)
    for name in SPEAK:
        ids = [job for client in clients if client.name.startswith(name) for job in client.ids.values()]
        assert len(set(ids)) == len(ids)
        if name == "rtot":
            assert sorted(ids) == list(range(CLIENTS * EACH)), "none was lost"
    jobs = place.service.get("/v1/jobs?limit=1000").json()["jobs"]
    assert Counter(job["api"] for job in jobs) == dict.fromkeys(SPEAK, CLIENTS * EACH)
    assert {job["exit_code"] for job in jobs} == set(range(EACH))
    sent = Counter(received.path for received in place.receiver.received)
    assert set(sent.values()) == {1}
    assert len(sent) == CLIENTS * EACH + CLIENTS * (EACH - 1)
