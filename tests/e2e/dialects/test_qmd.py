"""QMD, held against what the original answers, byte for byte."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from jobrunner.house import House
from jobrunner.web.dialects.dialect import make_dialect_app
from jobrunner.web.dialects.registry import DIALECTS
from tests.conftest import StartService
from tests.e2e.dialects.conversation import ANYONE, Answer, Asking, doors, speaking
from tests.e2e.dialects.test_authorization import here_of
from tests.receivers import Receiver, status
from tests.service import Service, eventually, free_port

PLAIN = "text/plain; charset=utf-8"
ZERO = "0001-01-01T00:00:00Z"
NOT_FOUND = (404, "Not Found")
ORDER = [
    "id", "script", "args", "files", "callback_url", "status", "start_time", "end_time", "duration", "output",
    "exec_log", "error",
]  # fmt: skip
HEADERS = {
    "cache-control": "no-cache, private, max-age=0",
    "expires": "Thu, 01 Jan 1970 00:00:00 UTC",
    "pragma": "no-cache",
    "x-accel-expires": "0",
    "content-type": PLAIN,
}
SCRIPTS = {
    "env.sh": "pwd; printenv QMD_TMP QMD_OUT QMD_STORE; cat a.txt; stat -c %a a.txt; printf out > $QMD_OUT",
    "args.sh": 'printf "<%s>" "$@"',
    "both.sh": "for i in 1 2 3; do echo o$i; echo e$i >&2; done",
    "exit.sh": "exit $1",
    "die.sh": "kill -$1 $$",
    "sleep.sh": "sleep $1",
    "store.sh": "cat $QMD_STORE/x 2>/dev/null; echo x >> $QMD_STORE/x",
    "link.sh": "ln -sf /etc/passwd $QMD_OUT",
    "out.sh": 'cat "$QMD_OUT" && echo more >> "$QMD_OUT"',
    "unnamed": "echo not a script",
    "bytes.sh": r"printf '<\377&\n'",
}


def make_scripts(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in SCRIPTS.items():
        (directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / name).chmod(0o755)
    (directory / "plain.sh").write_text("#!/bin/sh\n")
    (directory / ".hidden.sh").write_text("#!/bin/sh\n")
    return directory


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {**ANYONE, "scripts_dir": make_scripts(tmp_path_factory.mktemp("scripts") / "of qmd")}
    callbacks = {"schedule": "0, 0.5, 5"}
    with speaking(tmp_path_factory.mktemp("qmd"), "qmd", settings, callbacks=callbacks) as running:
        yield running


@pytest.fixture
def both(service: Service) -> list[Asking]:
    """Clients at both doors."""
    return doors(service, "qmd")


@pytest.fixture
def ask(both: list[Asking]) -> Asking:
    """A client at the dialect's own port."""
    return both[0]


def run(ask: Asking, name: str, **members: Any) -> dict[str, Any]:
    """Run a script; return its document."""
    answer = ask("POST", f"/scripts/{name}", json.dumps(members))
    assert answer.status == 200, answer
    return parsed(answer)


def parsed(answer: Answer) -> dict[str, Any]:
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    document = json.loads(answer.body)
    assert isinstance(document, dict)
    assert list(document) == [name for name in ORDER if name in document]
    return document


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/ping", (200, ".")),
        ("GET", "/", (200, "¯\\_(ツ)_/¯")),
        ("POST", "/ping", NOT_FOUND),
        ("PUT", "/", NOT_FOUND),
        ("GET", "/absent", NOT_FOUND),
        ("GET", "/scripts/exit.sh", NOT_FOUND),
        ("POST", "/scripts/", NOT_FOUND),
        ("POST", "/scripts/a/exit.sh", NOT_FOUND),
        ("POST", "/scripts/.", NOT_FOUND),
        ("POST", "/scripts/exit.sh/", NOT_FOUND),
        ("GET", "/jobs/99999", NOT_FOUND),
        ("GET", "/jobs/abc", NOT_FOUND),
        ("GET", "/jobs/-1", NOT_FOUND),
        ("DELETE", "/jobs/1", NOT_FOUND),
        ("HEAD", "/ping", (404, "")),
        ("GET", "/v1/jobs", NOT_FOUND),
    ],
)
def test_each_request_has_its_answer(both: list[Asking], method: str, path: str, expected: tuple[int, str]) -> None:
    for ask in both:
        answer = ask(method, path)

        assert (answer.status, answer.text) == expected
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize(
    "body",
    [
        "", " ", "nonsense", "{", "null", "[]", '"x"', "1", '{"args": "x"}', '{"args": [1]}', '{"files": []}',
        '{"files": {"a": 1}}', '{"callback_url": 1}', '{"callback_url": "http://"}', '{"callback_url": "http://a:b/"}',
        '{"callback_url": "http://169.254.169.254/"}', '{"callback_url": "ftp://a/"}', '{"args": ["a\\u0000"]}',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(ask: Asking, body: str) -> None:
    answer = ask("POST", "/scripts/exit.sh", body)

    assert (answer.status, answer.text[:20]) == (422, "parse request body: ")
    assert answer.text.endswith("\n")


def test_an_unknown_priority_is_refused_before_the_body_is_read(ask: Asking) -> None:
    for given in ("foo", "LOW", 'a"\\'):
        answer = ask("POST", f"/scripts/exit.sh?priority={given}", "nonsense")

        assert (answer.status, answer.text) == (422, f'unknown priority "{given}"\n')


def test_a_priority_that_is_empty_is_none(ask: Asking) -> None:
    assert run(ask, "exit.sh?priority=", args=["0"])["status"] == "OK"


def test_a_script_is_run_and_its_end_is_the_answer(both: list[Asking], service: Service) -> None:
    for ask in both:
        job = run(ask, "env.sh", FILES={"a.txt": "content\n"}, script="ignored")

        tmp, out = job["exec_log"].split()[1:3]
        assert job["exec_log"] == f"{tmp}\n{tmp}\n{tmp}/qmd.out\n{service.data_dir}/store\ncontent\n644\n"
        assert out == f"{tmp}/qmd.out"
        assert job["output"] == "out"
        assert (job["script"], job["files"], job["status"]) == ("env.sh", {"a.txt": "content\n"}, "OK")
        assert "args" not in job
        assert "error" not in job
        assert re.fullmatch(r"\d+\.\d{6}", job["duration"])
        for name in ("start_time", "end_time"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z", job[name])
        assert eventually(lambda: not Path(tmp).exists(), within=60)  # noqa: B023
        shown = service.get(f"/v1/jobs/{job['id']}").json()
        assert (shown["api"], shown["number"]) == ("qmd", job["id"])
        for reference in (job["id"], shown["id"]):
            assert parsed(ask("GET", f"/jobs/{reference}")) == job


@pytest.mark.parametrize(
    ("script", "args", "expected"),
    [
        ("args.sh", ["a b", "", "*"], {"status": "OK", "exec_log": "<a b><><*>"}),
        ("both.sh", [], {"status": "OK", "exec_log": "o1\ne1\no2\ne2\no3\ne3\n"}),
        ("bytes.sh", [], {"status": "OK", "exec_log": "<\ufffd&\n"}),
        ("exit.sh", ["3"], {"status": "ERR", "error": "exit status 3"}),
        ("die.sh", ["KILL"], {"status": "ERR", "error": "signal: killed"}),
        ("die.sh", ["TERM"], {"status": "ERR", "error": "signal: terminated"}),
        ("link.sh", [], {"status": "OK"}),
        ("plain.sh", [], {"status": "ERR", "error": "fork/exec {scripts}/plain.sh: permission denied"}),
        ("out.sh", [], {"status": "OK", "output": "more\n"}),
        ("absent.sh", [], {"status": "ERR", "error": 'script "absent.sh" doesn\'t exist'}),
        ("unnamed", [], {"status": "ERR", "error": 'script "unnamed" doesn\'t exist'}),
        ('a"\\.sh', [], {"status": "ERR", "error": 'script "a"\\.sh" doesn\'t exist'}),
        (".hidden.sh", [], {"status": "ERR", "error": 'script ".hidden.sh" doesn\'t exist'}),
    ],
)
def test_how_it_ends_is_told(
    ask: Asking, service: Service, script: str, args: list[str], expected: dict[str, str]
) -> None:
    job = run(ask, script, args=args)

    told = {name: job[name] for name in ("status", "output", "exec_log", "error") if name in job}
    scripts = service.environment["JOBRUNNER_DIALECT_QMD_SCRIPTS_DIR"]
    assert told == {name: text.replace("{scripts}", scripts) for name, text in expected.items()}
    if "doesn't exist" in job.get("error", "") or script == "plain.sh":
        assert (job["start_time"], job["end_time"], job["duration"]) == (ZERO, ZERO, "0.000000")
    assert job.get("args", []) == args
    assert parsed(ask("GET", f"/jobs/{job['id']}")) == job


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("a/b", "extra files must not contain any slashes in the path"),
        ("", r"open /.*/scratch: is a directory"),
        (".", r"open /.*/scratch: is a directory"),
        ("..", r"open /.*/[0-9a-f-]{36}: is a directory"),
    ],
)
def test_a_file_that_can_not_be_written_is_an_end(ask: Asking, name: str, error: str) -> None:
    job = run(ask, "env.sh", files={name: "x", "good": "y"})

    assert (job["status"], job["start_time"], job["end_time"]) == ("ERR", ZERO, ZERO)
    assert re.fullmatch(error, job["error"])
    assert job["files"] == {name: "x", "good": "y"}


def test_the_store_outlives_scripts(ask: Asking) -> None:
    assert "exec_log" not in run(ask, "store.sh")
    assert run(ask, "store.sh")["exec_log"] == "x\n"


@pytest.mark.parametrize("script", ["args.sh", "absent.sh"])
def test_who_wants_to_be_told_is_sent_the_final_document(ask: Asking, script: str) -> None:
    with Receiver(status(500), status(200)) as receiver:
        url = receiver.url.replace("http://", "HTTP://") + "?b=1&a=2"
        queued = run(ask, script, args=["x"], callback_url=url)
        assert eventually(lambda: len(receiver.received) == 2, within=60)  # the first is refused
        told = receiver.received[1]

    assert list(queued) == ["id", "script", "args", "callback_url", "status", "start_time", "end_time"]
    assert (queued["status"], queued["start_time"], queued["end_time"]) == ("QUEUED", ZERO, ZERO)
    assert queued["callback_url"] == f"{receiver.url}?a=2&b=1"
    assert told.path == "/done?a=2&b=1"
    assert told.headers["content-type"] == "application/json"
    final = ask("GET", f"/jobs/{queued['id']}")
    assert told.body == final.body
    assert parsed(final)["callback_url"] == queued["callback_url"]


def test_only_jobs_of_the_dialect_are_found(ask: Asking, service: Service) -> None:
    other = service.run(argv=["true"])

    assert ask("GET", f"/jobs/{other['number']}").status == 404


def test_who_waits_has_a_seat_and_scripts_have_their_time_and_order(
    start_service: StartService, tmp_path: Path
) -> None:
    port = free_port()
    dialect = {"enabled": "yes", "port": port, "max_exec_time": 2, "keep_temp": "yes"}
    service = start_service({
        "dialect_qmd": dialect,
        "executor": {"max_running": 1, "grace": 1},
        "server": {"max_waiters": 2, "workers": 1},
        "storage": {"scripts_dir": make_scripts(tmp_path / "scripts")},
    })  # fmt: skip
    ask = Asking(port, "", {"Authorization": f"Bearer {service.token}"})
    nobody = Asking(port)("GET", "/ping")
    assert (nobody.status, nobody.text) == (401, "Not Authorized\n")
    answers: list[Answer] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(ask("POST", "/scripts/sleep.sh", '{"args": ["60"]}')))
        for _ in range(2)
    ]
    waiting[0].start()
    assert eventually(lambda: service.get("/v1/stats").json()["running"] == 1)
    waiting[1].start()
    assert eventually(lambda: service.get("/v1/stats").json()["queued"] == 1)
    full = ask("POST", "/scripts/exit.sh", "{}")
    assert (full.status, full.text) == (503, "Service Unavailable\n")
    with Receiver() as receiver:
        jobs = {
            priority: run(ask, f"args.sh?priority={priority}", callback_url=receiver.url)["id"]
            for priority in ("low", "high", "urgent")
        }
        text = ask("GET", "/jobs/").text
        assert text == (
            "Queued: 4\n- 1 (urgent)\n- 2 (high)\n- 1 (low)\n\n"
            "Running: 1\n- 0 (urgent)\n- 1 (high)\n- 0 (low)\n\n"
            "Finished (in-cache): 0\n\nFinished (total): 0"
        )
        for thread in waiting:
            thread.join(60)
        assert eventually(lambda: len(receiver.received) == 3, within=60)
    for answer in answers:
        job = parsed(answer)
        assert (job["status"], job["error"]) == ("ERR", "signal: terminated")
    began = {priority: parsed(ask("GET", f"/jobs/{job}"))["start_time"] for priority, job in jobs.items()}
    assert sorted(began, key=began.__getitem__) == ["urgent", "high", "low"]
    assert ask("GET", "/jobs").text.endswith("Finished (in-cache): 5\n\nFinished (total): 5")
    kept = run(ask, "env.sh", files={"a.txt": "x"})["exec_log"].split()[1]
    assert Path(kept, "a.txt").read_text() == "x"


@pytest.mark.parametrize(("method", "path"), [("GET", "/ping"), ("GET", "/absent"), ("POST", "/scripts/a.sh")])
def test_while_the_service_is_drained_nothing_is_answered(house: House, method: str, path: str) -> None:
    house.prepare()
    house.drain.begin()
    app = make_dialect_app(DIALECTS["qmd"], here_of(house, "qmd", auth="none", run_as="admin"))

    answer = Client(app).open(path, method=method, environ_base={"REMOTE_ADDR": "127.0.0.1"})

    assert (answer.status_code, answer.text) == (503, "Service Unavailable\n")
