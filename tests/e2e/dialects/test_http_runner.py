"""http-runner, held against what the original answers, byte for byte."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import StartService
from tests.e2e.dialects.conversation import ANYONE, Answer, Asking, doors, speaking
from tests.receivers import Receiver, status
from tests.service import Service, eventually, free_port

JSON = "application/json"
NOT_FOUND = (404, b'{"message":"Not Found"}')
NOT_IMPLEMENTED = (501, b'{"message":"Not Implemented"}')
NOT_IN_WHITELIST = (400, b'{"message":"Bad Request","error":"Specified command is not in whitelist."}')
NOBODY = "0" * 40


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with speaking(tmp_path_factory.mktemp("http-runner"), "http-runner", ANYONE) as running:
        yield running


@pytest.fixture
def both(service: Service) -> list[Asking]:
    """Clients at both doors."""
    return doors(service, "http-runner")


@pytest.fixture
def ask(both: list[Asking]) -> Asking:
    """A client at the dialect's own port."""
    return both[0]


def submit(ask: Asking, command: str, args: str, **members: Any) -> dict[str, Any]:
    answer = ask("POST", "/", json.dumps({"command": command, "args": args, **members}))
    assert answer.status == 202, answer
    return parsed(answer)


def parsed(answer: Answer) -> dict[str, Any]:
    """Return the document of a job, which must be written as the original writes it."""
    document = json.loads(answer.body)
    assert answer.headers["content-type"] == JSON
    assert json.dumps(document, ensure_ascii=False, separators=(",", ":")) == answer.text
    assert isinstance(document, dict)
    return document


def run(ask: Asking, command: str, args: str) -> dict[str, Any]:
    """Run a program; return its document, ended."""
    number = submit(ask, command, args)["id"]
    assert eventually(lambda: "err" in parsed(ask("GET", f"/{number}")), within=60)
    return parsed(ask("GET", f"/{number}"))


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", f"/{NOBODY}", NOT_FOUND),
        ("GET", f"/{NOBODY}/", NOT_FOUND),
        ("GET", f"/{NOBODY}?a=b", NOT_FOUND),
        ("GET", f"/{NOBODY}//", NOT_IMPLEMENTED),
        ("GET", f"/{NOBODY}%0A", NOT_IMPLEMENTED),
        ("GET", f"/{'A' * 40}", NOT_IMPLEMENTED),
        ("GET", f"/{'a' * 39}", NOT_IMPLEMENTED),
        ("GET", f"/{'a' * 41}", NOT_IMPLEMENTED),
        ("GET", f"//{NOBODY}", NOT_IMPLEMENTED),
        ("GET", f"/{NOBODY}/x", NOT_IMPLEMENTED),
        ("GET", "/", NOT_IMPLEMENTED),
        ("GET", "/v1/jobs", NOT_IMPLEMENTED),
        ("POST", f"/{NOBODY}", NOT_IMPLEMENTED),
        ("POST", "/jobs", NOT_IMPLEMENTED),
        ("POST", "//", NOT_IMPLEMENTED),
        ("PUT", "/", NOT_IMPLEMENTED),
        ("DELETE", f"/{NOBODY}", NOT_IMPLEMENTED),
        ("OPTIONS", "/", NOT_IMPLEMENTED),
        ("PATCH", "/x", NOT_IMPLEMENTED),
        ("BREW", "/", NOT_IMPLEMENTED),
        ("HEAD", f"/{NOBODY}", (501, b"")),
        ("HEAD", "/", (501, b"")),
    ],
)
def test_each_request_has_its_answer(both: list[Asking], method: str, path: str, expected: tuple[int, bytes]) -> None:
    for ask in both:
        answer = ask(method, path)

        assert (answer.status, answer.body) == expected
        assert answer.headers["content-type"] == JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"nonsense",
        b"{",
        b'{"command": "true", "args": ""} x',
        b"null",
        b"[]",
        b'"true"',
        b"17",
        b"NaN",
        b"{}",
        b'{"command": "true"}',
        b'{"args": ""}',
        b'{"command": "", "args": ""}',
        b'{"command": null, "args": ""}',
        b'{"command": ["true"], "args": ""}',
        b'{"command": "true", "args": null}',
        b'{"command": "true", "args": ["a"]}',
        b'{"command": "true", "args": 1}',
        b'{"COMMAND": "true", "args": ""}',
        b'{"command": "true", "args": "", "callback": 1}',
        b'{"command": "true", "args": "", "callback": {}}',
        b'{"command": "true", "args": "", "callback": "no URL"}',
        b'{"command": "true", "args": "", "callback": "http://169.254.169.254/"}',
        rb'{"command": "tr\u0000ue", "args": ""}',
        rb'{"command": "true", "args": "a\u0000"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:70]),
)
def test_what_is_no_job_is_refused(ask: Asking, service: Service, body: bytes) -> None:
    answer = ask("POST", "/", body)

    assert answer.status == 400
    document = parsed(answer)
    assert list(document) == ["message", "error"]
    assert document["message"] == "Bad Request"
    assert document["error"]


@pytest.mark.parametrize(
    ("members", "wrong"),
    [({"command": "\0"}, "#/command"), ({"args": "a b\0"}, "#/args"), ({"callback": "no URL"}, "#/callback")],
)
def test_what_is_wrong_is_called_as_its_client_calls_it(ask: Asking, members: dict[str, str], wrong: str) -> None:
    answer = ask("POST", "/", json.dumps({"command": "true", "args": "", **members}))

    assert parsed(answer)["error"].startswith(f"{wrong}: ")


def test_a_job_is_taken_and_shown(both: list[Asking]) -> None:
    for ask in both:
        answer = ask("POST", "/?ignored=1", '{"command": "echo", "args": "foo"}', Content_Type="text/plain")
        number = parsed(answer)["id"]
        assert re.fullmatch(r"[0-9a-f]{40}", number)
        assert answer.status == 202
        assert answer.text == (
            f'{{"stderr":"","stdout":"","id":"{number}","code":null,"command":"echo","arguments":["foo"]}}'
        )
        assert eventually(lambda: "err" in parsed(ask("GET", f"/{number}")), within=60)  # noqa: B023
        shown = ask("GET", f"/{number}?also=ignored")
        assert (shown.status, shown.text) == (
            200,
            f'{{"stderr":"","stdout":"foo\\n","id":"{number}","code":0,"command":"echo","arguments":["foo"],"err":null}}',
        )
        slash = ask("GET", f"/{number}/")
        assert (slash.status, slash.body) == NOT_FOUND
        changed = number[:-1] + ("0" if number[-1] != "0" else "1")
        assert ask("GET", f"/{changed}").status == 404


@pytest.mark.parametrize(
    ("args", "arguments"),
    [
        ("", [""]),
        (" ", ["", ""]),
        ("a b", ["a", "b"]),
        (" a \t\r\n b ", ["", "a", "b", ""]),
        ("'a b' \"c\" $HOME * \\", ["'a", "b'", '"c"', "$HOME", "*", "\\"]),
        ("a\u00a0\ufeff\u2028b", ["a", "b"]),
        ("a\u0085b\u001cc\u200bd\u180ee", ["a\u0085b\u001cc\u200bd\u180ee"]),
        ("é 😀", ["é", "😀"]),
        ("a\ud800", ["a\ufffd"]),
    ],
)
def test_arguments_are_split_as_javascript_splits_them(ask: Asking, args: str, arguments: list[str]) -> None:
    made = submit(ask, "true", args)

    assert (made["command"], made["arguments"]) == ("true", arguments)


def test_the_program_gets_these_arguments_and_no_shell(ask: Asking) -> None:
    job = run(ask, "printf", r"<%s>  $HOME *  'x ")

    assert job["stdout"] == "<$HOME><*><'x><>"


@pytest.mark.parametrize(
    ("command", "args", "code", "err"),
    [
        ("false", "", 1, None),
        ("env", "sh -c exit\u3000", 0, None),
        ("absent-program", "a b", -2, ("ENOENT", -2)),
        ("/absent/program", "", -2, ("ENOENT", -2)),
        ("/", "", -13, ("EACCES", -13)),
        ("/etc/passwd", "x", -13, ("EACCES", -13)),
    ],
)
def test_how_it_ends_is_told(ask: Asking, command: str, args: str, code: int, err: tuple[str, int] | None) -> None:
    job = run(ask, command, args)

    expected = err and {
        "errno": err[1], "code": err[0], "syscall": f"spawn {command}", "path": command, "spawnargs": job["arguments"],
    }  # fmt: skip
    assert (job["code"], job["err"]) == (code, expected)
    assert list(job)[-1] == "err"


def test_a_signal_is_no_code(ask: Asking, service: Service) -> None:
    number = submit(ask, "sleep", "60")["id"]
    assert eventually(lambda: service.get("/v1/jobs?limit=1").json()["jobs"][0]["state"] == "running", within=60)
    job = service.get("/v1/jobs?limit=1").json()["jobs"][0]
    assert (job["api"], job["owner"]) == ("http-runner", "admin")
    running = parsed(ask("GET", f"/{number}"))
    assert (running["code"], "err" in running) == (None, False)

    service.post(f"/v1/jobs/{job['id']}/cancel", {"signal": "SIGKILL"})
    service.wait(job["id"])

    ended = parsed(ask("GET", f"/{number}"))
    assert (ended["code"], ended["err"]) == (None, None)


def test_a_running_job_shows_its_output_so_far(ask: Asking) -> None:
    number = submit(ask, "tail", "-n 1 -f /etc/passwd /absent-file")["id"]

    def shown() -> dict[str, Any]:
        return parsed(ask("GET", f"/{number}"))

    assert eventually(lambda: shown()["stdout"] and shown()["stderr"], within=60)
    assert shown()["code"] is None
    assert "err" not in shown()


def test_bytes_that_are_no_text_are_replaced_as_node_does(ask: Asking) -> None:
    """One for each maximal part: RFC 3629's table, and what the Unicode Standard recommends."""
    job = run(ask, "printf", r"a\377b\342\202c\360\237\230\303\251\355\240\200")

    assert job["stdout"] == "a\ufffdb\ufffdc\ufffdé\ufffd\ufffd\ufffd"


@pytest.mark.parametrize(("command", "args"), [("echo", "hé\u2019"), ("absent-program", "x")])
def test_who_wants_to_be_told_is_sent_the_whole_document(ask: Asking, command: str, args: str) -> None:
    with Receiver(status(500), status(204)) as receiver:
        made = submit(ask, command, args, callback=f"{receiver.url}?of=it")
        assert list(made) == ["stderr", "stdout", "id", "code", "command", "arguments", "callback"]
        assert made["callback"] == f"{receiver.url}?of=it"
        assert eventually(lambda: len(receiver.received) == 2, within=60)  # the first is refused, so it comes again
        told = receiver.received[1]

    shown = ask("GET", f"/{made['id']}")
    assert told.path == "/done?of=it"
    assert told.body == shown.body
    assert list(parsed(shown))[-2:] == ["callback", "err"]
    assert (told.headers["content-type"], told.headers["accept"]) == (JSON, JSON)
    assert told.headers["content-length"] == str(len(shown.body))
    assert re.fullmatch(r"\d{13}", told.headers["x-notify-timestamp"])


def test_only_jobs_of_the_dialect_are_found(ask: Asking, service: Service) -> None:
    other = service.run(argv=["true"])["id"].replace("-", "")

    answer = ask("GET", f"/{other}{other[:8]}")

    assert (answer.status, answer.body) == NOT_FOUND


def test_what_can_not_be_taken_is_refused_in_json(ask: Asking, service: Service) -> None:
    elsewhere = Asking(service.port, "/http-runner", {"Host": "evil.example"})
    refusals = [
        (elsewhere("GET", f"/{NOBODY}"), 421),
        (ask("POST", "/", '{"command": "true", "args": ""}', Origin="http://evil.example"), 403),
        (ask("POST", "/", b" " * (16777216 + 1)), 413),
    ]
    for answer, expected in refusals:
        assert answer.status == expected
        assert parsed(answer).keys() == {"message"}


def test_the_newest_jobs_alone_are_found_and_the_whitelist_is_kept(start_service: StartService) -> None:
    port = free_port()
    dialect = {"enabled": "yes", "port": port, "whitelist": "sleep, echo", "max_jobs": 2}
    service = start_service({"dialect_http_runner": dialect, "executor": {"max_queued": 2, "max_running": 1}})
    ask = Asking(port, "", {"Authorization": f"Bearer {service.token}"})
    with Receiver() as receiver:
        first = submit(ask, "sleep", "1", callback=receiver.url)["id"]
        assert eventually(lambda: service.get("/v1/stats").json()["running"] == 1)
        second = submit(ask, "echo", "2")["id"]
        assert ask("GET", f"/{first}").status == 200
        third = submit(ask, "echo", "3")["id"]
        full = ask("POST", "/", '{"command": "echo", "args": ""}')
        assert [ask("GET", f"/{number}").status for number in (first, second, third)] == [404, 200, 200]
        assert (full.status, full.headers["retry-after"]) == (503, "5")
        assert parsed(full).keys() == {"message"}
        assert eventually(lambda: receiver.received, within=60), "it has run on, and its callback is sent"
        assert receiver.received[0].json()["id"] == first

    for body in ('{"command": "ls", "args": 1}', '{"command": " echo", "args": ""}', "{}", '{"command": ["echo"]}'):
        answer = ask("POST", "/", body)
        assert (answer.status, answer.body) == NOT_IN_WHITELIST
    nobody = ask("GET", "/", Authorization=None)
    assert (nobody.status, nobody.body) == (401, b'{"message":"Unauthorized"}')
