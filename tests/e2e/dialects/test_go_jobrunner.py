"""go-jobrunner, held against what the original answers, byte for byte."""

import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.dialects.conversation import ANYONE, Answer, Asking, doors, speaking
from tests.factories import is_dead
from tests.service import Service, eventually, free_port

PLAIN = "text/plain; charset=utf-8"
NOT_FOUND = (404, b"404 page not found\n")
NO_JOB_TO_ATTACH = (404, b"Job ID not found.\n")
NO_JOB_TO_CLEAN = (404, b"Job ID not found\n")
EMPTY = (200, b"")
NOBODY = str(uuid.UUID(int=7))
SLOTS = 4


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    executor = {"max_running": SLOTS}
    with speaking(tmp_path_factory.mktemp("go-jobrunner"), "go-jobrunner", ANYONE, executor=executor) as running:
        yield running


@pytest.fixture(params=["port", "prefix"])
def either(service: Service, request: pytest.FixtureRequest) -> Asking:
    """A client, at either door."""
    port, prefix = doors(service, "go-jobrunner")
    return port if request.param == "port" else prefix


@pytest.fixture
def ask(service: Service) -> Asking:
    """A client at the dialect's own port."""
    return doors(service, "go-jobrunner")[0]


def told(answer: Answer) -> tuple[int, bytes]:
    assert answer.headers["content-type"] == PLAIN
    return answer.status, answer.body


def submit(ask: Asking, line: str, **environment: str) -> str:
    """Submit the one command; return the id."""
    answer = ask("POST", "/", json.dumps({"CommandLine": line, "Environment": environment}))
    assert re.fullmatch(r'\{"ID":"[0-9a-f-]{36}"\}', answer.text), answer
    assert told(answer)[0] == 200
    found: str = json.loads(answer.body)["ID"]
    return found


def command(line: str, **members: Any) -> dict[str, Any]:
    return {"Kind": "bash", "CommandLine": line, "Environment": {}, **members}


def submit_all(ask: Asking, *commands: dict[str, Any], **members: Any) -> tuple[str, list[str]]:
    """Submit several commands; return the ids of the job and of them."""
    answer = ask("POST", "/", json.dumps({"Commands": commands, **members}))
    assert told(answer)[0] == 200, answer
    document = json.loads(answer.body)
    assert list(document) == ["JobID", "CommandIDs"]
    assert json.dumps(document, separators=(",", ":")) == answer.text
    return document["JobID"], document["CommandIDs"]


def output(service: Service, job: str) -> str:
    """Return what a job has written when it has ended."""
    text = service.wait(job)["stdout"]["text"]
    assert isinstance(text, str)
    return text


def scratch(service: Service, job: str) -> Path:
    return service.data_dir / "jobs" / job[-2:] / job / "scratch"


def until(name: str) -> str:
    return f"while [ ! -e {name} ]; do sleep 0.02; done"


def step(service: Service, job: str, name: str) -> None:
    """Let a job go on that waits for this file in its directory."""
    assert eventually(scratch(service, job).is_dir, within=60)
    (scratch(service, job) / name).touch()


@contextmanager
def attached(ask: Asking, job: str, query: str = "") -> Iterator[HTTPResponse]:
    """Attach to a job; return once the answer has begun."""
    with ask.stream("GET", f"/{job}/attach{query}") as response:
        assert (response.status, response.headers["Content-Type"]) == (200, PLAIN)
        assert response.headers["Transfer-Encoding"] == "chunked"
        yield response


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", (200, b'{"IDs":[]}')),
        ("GET", f"/{NOBODY}", (200, f"GetInfo: {NOBODY}\n".encode())),
        ("GET", "/any%20thing", (200, b"GetInfo: any thing\n")),
        ("GET", "/healthz", (200, b"GetInfo: healthz\n")),
        ("GET", f"/{NOBODY}/attach", NO_JOB_TO_ATTACH),
        ("GET", f"/{NOBODY}/attach?offset=0", NO_JOB_TO_ATTACH),
        ("GET", "/1/attach", NO_JOB_TO_ATTACH),
        ("GET", "/nonsense/attach", NO_JOB_TO_ATTACH),
        ("DELETE", f"/{NOBODY}", EMPTY),
        ("DELETE", "/1", EMPTY),
        ("DELETE", "/nonsense", EMPTY),
        ("POST", f"/{NOBODY}/clean", NO_JOB_TO_CLEAN),
        ("POST", "/nonsense/clean", NO_JOB_TO_CLEAN),
        ("PUT", "/", NOT_FOUND),
        ("DELETE", "/", NOT_FOUND),
        ("OPTIONS", "/", NOT_FOUND),
        ("HEAD", "/", (404, b"")),
        ("HEAD", f"/{NOBODY}/attach", (404, b"")),
        ("POST", f"/{NOBODY}", NOT_FOUND),
        ("PATCH", f"/{NOBODY}", NOT_FOUND),
        ("POST", f"/{NOBODY}/attach", NOT_FOUND),
        ("GET", f"/{NOBODY}/clean", NOT_FOUND),
        ("DELETE", f"/{NOBODY}/clean", NOT_FOUND),
        ("GET", f"/{NOBODY}/attach/", NOT_FOUND),
        ("GET", f"/{NOBODY}/", NOT_FOUND),
        ("GET", f"//{NOBODY}", NOT_FOUND),
        ("GET", "/v1/jobs", NOT_FOUND),
        ("POST", "/v1/jobs", NOT_FOUND),
    ],
)
def test_each_request_has_its_answer(either: Asking, method: str, path: str, expected: tuple[int, bytes]) -> None:
    assert told(either(method, path)) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "Missing CommandLine key."),
        ({"CommandLine": "", "Environment": {}}, "Missing CommandLine key."),
        ({"CommandLine": "true"}, "Missing Environment key."),
        ({"CommandLine": "true", "Environment": None}, "Missing Environment key."),
        ({"Commands": [{"CommandLine": "true", "Environment": {}}]}, "Missing Kind from command."),
        ({"Commands": [command("true", Kind="zsh")]}, "Missing invalid kind of command: zsh"),
        ({"Commands": [command("")]}, "Missing CommandLine from command."),
        ({"Commands": [command("true", Environment=None)]}, "Missing Environment from command."),
        ({"Commands": [command("true", Kind="docker")]}, "Missing docker repository from command."),
        ({"Commands": [command("true", Kind="docker", Repository="r")]}, "No container engine is configured."),
        (
            {"Commands": [], "WorkingDir": "../x"},
            "The WorkingDir must be relative, and must not leave the job's directory: ../x",
        ),
    ],
)
def test_what_can_not_be_run_is_told_in_the_words_of_the_original(
    either: Asking, asked: dict[str, Any], expected: str
) -> None:
    assert told(either("POST", "/", json.dumps(asked))) == (500, f"{expected}\n".encode())


@pytest.mark.parametrize(
    "body",
    [
        "",
        "nonsense",
        "[]",
        '{"CommandLine":1}',
        '{"CommandLine":"true","Environment":{"":"x"}}',
        '{"CommandLine":"true","Environment":{"JOBRUNNER_JOB_ID":"x"}}',
        '{"CommandLine":"a\\u0000b","Environment":{}}',
        json.dumps({"Commands": [command("true")] * 101}),
        json.dumps({"Commands": [], "WorkingDir": "a" * 5000}),
    ],
)
def test_whatever_else_is_wrong_is_500_in_words(ask: Asking, body: str) -> None:
    status, text = told(ask("POST", "/", body))

    assert status == 500
    assert re.fullmatch(rb"[^\n{]+\n", text)


def test_a_job_has_exactly_its_environment(ask: Asking, service: Service) -> None:
    line = "cat /proc/self/environ | tr '\\0' '\\n'; echo $0"
    job = submit(ask, line, PATH="/usr/bin:/bin", ODD="<&>\n=é")

    written = output(service, job)

    kept = re.sub(r"^(PWD|OLDPWD|SHLVL|_)=.*\n", "", written, flags=re.MULTILINE)  # those are bash's own
    number = service.get(f"/v1/jobs/{job}").json()["number"]
    *variables, name = kept.replace("<&>\n=é", "odd").splitlines()
    assert sorted(variables) == [
        f"JOBRUNNER_JOB_ID={job}", f"JOBRUNNER_JOB_NUMBER={number}", "JOBRUNNER_JOB_STEP=0", "ODD=odd",
        "PATH=/usr/bin:/bin",
    ]  # fmt: skip
    assert name == "bash"


@pytest.mark.parametrize("environment", [{}, {"PATH": "/nowhere"}])
def test_the_shell_is_found_whatever_path_the_job_has(
    ask: Asking, service: Service, environment: dict[str, str]
) -> None:
    job = submit(ask, "[[ -n $BASH_VERSION ]] && echo bash", **environment)

    assert output(service, job) == "bash\n"


def test_commands_run_in_order_until_one_fails(ask: Asking, service: Service) -> None:
    one = command("echo $A; mkdir -p sub", Environment={"A": "1"})
    two = command('echo "[$A]"; pwd; exit 3', WorkingDir="sub")
    job, ids = submit_all(ask, one, two, command("echo never"))

    ended = service.wait(job)

    assert ended["stdout"]["text"] == f"1\n[]\n{scratch(service, job)}/sub\n"
    assert (ended["state"], ended["exit_code"], ended["api"]) == ("failed", 3, "go-jobrunner")
    assert [found["state"] for found in ended["steps"]] == ["succeeded", "failed", "skipped"]
    assert len({*ids, job}) == 4
    assert all(str(uuid.UUID(found)) == found for found in ids)


def test_the_working_directory_of_all_commands_is_made(ask: Asking, service: Service) -> None:
    job, _ = submit_all(ask, command("pwd"), command("pwd", WorkingDir="c"), WorkingDir="a/./b")

    assert output(service, job) == f"{scratch(service, job)}/a/b\n{scratch(service, job)}/c\n"


def test_a_link_does_not_lead_out_of_the_job_s_directory(ask: Asking, service: Service, tmp_path: Path) -> None:
    job, _ = submit_all(ask, command(f"ln -s {tmp_path} out"), command("touch here", WorkingDir="out"))

    assert service.wait(job)["error"]["code"] == "bad-cwd"
    assert os.listdir(tmp_path) == []


def test_without_commands_a_job_ends_at_once(ask: Asking, service: Service) -> None:
    job, ids = submit_all(ask)

    assert ids == []
    assert service.wait(job)["state"] == "succeeded"
    assert told(ask("GET", f"/{job}/attach")) == NO_JOB_TO_ATTACH
    assert told(ask("POST", f"/{job}/clean")) == EMPTY


def test_jobs_are_listed_until_they_have_ended(ask: Asking, service: Service) -> None:
    elsewhere = service.submit(command="exec sleep 60")
    jobs = [submit(ask, "exec sleep 60") for _ in range(SLOTS)]

    assert told(ask("GET", "/")) == (200, json.dumps({"IDs": jobs}, separators=(",", ":")).encode())
    for job in reversed(jobs):
        assert told(ask("DELETE", f"/{job}")) == EMPTY
    assert told(ask("GET", "/")) == (200, b'{"IDs":[]}')
    service.post(f"/v1/jobs/{elsewhere['id']}/cancel", {"grace": 0})


def test_attach_begins_now_and_ends_with_the_job(either: Asking, service: Service) -> None:
    job = submit(either, f"echo before; {until('go')}; for i in 1 2 3; do echo out$i; echo err$i >&2; done; exit 4")
    assert eventually(lambda: service.get(f"/v1/jobs/{job}/stdout").text == "before\n", within=60)

    with attached(either, job) as now, attached(either, job, "?offset=0") as whole, attached(either, job) as gone:
        assert whole.readline() == b"before\n"
        gone.close()
        step(service, job, "go")
        written = "".join(f"out{number}\nerr{number}\n" for number in (1, 2, 3)).encode()
        assert now.read() == written
        assert whole.read() == written
    assert service.wait(job)["exit_code"] == 4
    assert told(either("GET", f"/{job}/attach")) == NO_JOB_TO_ATTACH
    assert told(either("GET", f"/{job}/attach?offset=0")) == NO_JOB_TO_ATTACH


def test_each_piece_is_sent_as_it_comes(ask: Asking, service: Service) -> None:
    """The job writes the next one only when the one before has been seen; none is a line."""
    job = submit(ask, "; ".join(f"{until(name)}; printf {name}" for name in "abc"))

    with attached(ask, job) as response:
        for name in "abc":
            step(service, job, name)
            assert response.read1() == name.encode()
        assert response.read() == b""


def test_attach_to_several_commands_is_one_stream(ask: Asking, service: Service) -> None:
    job, _ = submit_all(ask, command(f"{until('go')}; echo one"), command("echo two >&2"), command("echo three"))

    with attached(ask, job) as response:
        step(service, job, "go")
        assert response.read() == b"one\ntwo\nthree\n"


def test_attach_to_a_queued_job_waits_for_its_output(ask: Asking, service: Service) -> None:
    blocking = [submit(ask, "exec sleep 60") for _ in range(SLOTS)]
    queued = submit(ask, "echo queued")

    with attached(ask, queued) as response:
        ask("DELETE", f"/{blocking[0]}")
        assert response.read() == b"queued\n"
    for job in blocking[1:]:
        ask("DELETE", f"/{job}")


def test_a_client_that_leaves_a_silent_job_is_noticed(ask: Asking, service: Service) -> None:
    job = submit(ask, "exec sleep 60")
    assert eventually(lambda: service.get(f"/v1/jobs/{job}").json()["state"] == "running", within=60)

    def connected() -> int:
        """Count the connections at the dialect's port that neither end has closed."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(line.split()[1].endswith(f":{ask.port:04X}") and line.split()[3] in {"01", "08"} for line in lines)

    assert eventually(lambda: connected() == 0, within=60)
    with socket.create_connection(("127.0.0.1", ask.port)) as client:
        client.sendall(f"GET /{job}/attach HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        assert connected() == 1
    assert eventually(lambda: connected() == 0, within=60)
    assert service.get(f"/v1/jobs/{job}").json()["state"] == "running"
    assert told(ask("DELETE", f"/{job}")) == EMPTY


@pytest.mark.parametrize("offset", ["", "-1", "x", "1" * 30])
def test_an_offset_is_a_whole_number(ask: Asking, offset: str) -> None:
    job = submit(ask, "exec sleep 60")

    assert told(ask("GET", f"/{job}/attach?offset={offset}"))[0] == 500
    ask("DELETE", f"/{job}")


def test_delete_kills_all_that_a_job_has_started(ask: Asking, service: Service) -> None:
    stubborn = "trap '' TERM; setsid bash -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 60; done' & echo $$"
    job, _ = submit_all(ask, command(f"{stubborn}; wait"), command("echo never"))
    child_file = scratch(service, job) / "child"
    assert eventually(lambda: child_file.exists() and child_file.read_text(), within=60)

    assert told(ask("DELETE", f"/{job}")) == EMPTY

    ended = service.get(f"/v1/jobs/{job}?include=output").json()
    leader, child = int(ended["stdout"]["text"]), int(child_file.read_text())
    assert (ended["state"], ended["signal"]) == ("canceled", "SIGKILL")
    assert [sent["signal"] for sent in ended["cancel"]["signals"]] == ["SIGKILL"]
    assert [found["state"] for found in ended["steps"]] == ["canceled", "skipped"]
    assert is_dead(leader)
    assert is_dead(child)
    assert told(ask("DELETE", f"/{job}")) == EMPTY


def test_clean_forgets_what_has_ended(either: Asking, service: Service) -> None:
    job = submit(either, "exec sleep 60")
    status, text = told(either("POST", f"/{job}/clean"))
    assert (status, text.count(b"\n")) == (409, 1)

    assert told(either("DELETE", f"/{job}")) == EMPTY
    assert told(either("POST", f"/{job.upper()}/clean")) == NO_JOB_TO_CLEAN
    assert told(either("POST", f"/{job}/clean")) == EMPTY

    assert service.get(f"/v1/jobs/{job}").status_code == 404
    assert not scratch(service, job).parent.exists()
    assert told(either("POST", f"/{job}/clean")) == NO_JOB_TO_CLEAN


def test_jobs_of_other_apis_are_not_seen(ask: Asking, service: Service) -> None:
    other = service.submit(command="exec sleep 60")["id"]

    assert told(ask("GET", f"/{other}/attach")) == NO_JOB_TO_ATTACH
    assert told(ask("DELETE", f"/{other}")) == EMPTY
    assert service.get(f"/v1/jobs/{other}").json()["state"] in {"queued", "running"}
    service.post(f"/v1/jobs/{other}/cancel", {"grace": 0})
    service.wait(other)
    assert told(ask("POST", f"/{other}/clean")) == NO_JOB_TO_CLEAN


def test_a_job_is_run_again_with_all_that_it_had(ask: Asking, service: Service) -> None:
    job, _ = submit_all(ask, command("pwd; echo $A $HOME", Environment={"A": "1"}), WorkingDir="a")
    service.wait(job)

    again = service.post(f"/v1/jobs/{job}/rerun").json()["id"]

    assert output(service, again) == f"{scratch(service, again)}/a\n1\n"


def test_the_original_s_own_settings_and_a_token(start_service: StartService) -> None:
    port = free_port()
    settings = {"dialect_go_jobrunner": {"enabled": "yes"}, "policy": {"allow_shell": "no"}}
    service = start_service(settings, port=port)
    ask = Asking(port, "/go-jobrunner", {"Authorization": f"Bearer {service.token}"})

    nobody = ask("GET", "/", Authorization=None)
    assert told(nobody) == (401, b"Not Authorized\n")
    assert told(ask("POST", "/", '{"CommandLine":"true","Environment":{}}'))[0] == 500
    assert told(ask("GET", "/")) == (200, b'{"IDs":[]}')
    assert told(ask("GET", "/", Host="evil.example"))[0] == 421
    assert told(ask("POST", "/", b"#" * (16777216 + 1)))[0] == 413
