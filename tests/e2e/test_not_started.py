"""Jobs that can't be started, and others that look as if they could not."""

import base64
import sys
from typing import Any

import pytest

from jobrunner.domain.arguments import ARGUMENT_MAX
from tests.e2e.checks import check_job
from tests.service import Service

NOT_STARTED: list[tuple[dict[str, Any], str, str]] = [
    ({"argv": ["no-such-program-anywhere"]}, "not-found", "No such file"),
    ({"argv": ["/no/such/program"]}, "not-found", "No such file"),
    ({"argv": ["./absent"]}, "not-found", "No such file"),
    ({"argv": ["/etc/passwd"]}, "permission-denied", "Permission denied"),
    ({"argv": ["/etc"]}, "permission-denied", "Permission denied"),
    ({"argv": ["/etc/passwd/x"]}, "not-found", "Not a directory"),
    ({"argv": ["x" * 300]}, "spawn-failed", "File name too long"),
    ({"argv": ["true"], "cwd": "/no/such/directory"}, "bad-cwd", "No such file"),
    ({"argv": ["true"], "cwd": "absent"}, "bad-cwd", "No such file"),
    ({"argv": ["true"], "cwd": "/etc/passwd"}, "bad-cwd", "Not a directory"),
    ({"argv": ["./x"], "files": {"x": "not executable"}}, "permission-denied", "Permission denied"),
    ({"source": "#!/no/such/interpreter\n"}, "not-found", "No such file"),
    ({"source": "#!\n"}, "exec-format", "Exec format error"),
]


@pytest.mark.parametrize(
    ("body", "code", "words"), NOT_STARTED, ids=[str(number) for number in range(len(NOT_STARTED))]
)
def test_what_can_not_be_started_has_failed_with_the_words_of_the_system(
    service: Service, body: dict[str, Any], code: str, words: str
) -> None:
    job = check_job(service.run(**body))

    assert (job["state"], job["exit_code"], job["signal"]) == ("failed", None, None)
    assert job["error"]["code"] == code, job["error"]
    assert words in job["error"]["detail"]


def test_a_file_that_is_no_program_has_failed_with_the_words_of_the_system(service: Service) -> None:
    made = service.run(command="printf garbage > x && chmod +x x && pwd")
    program = made["stdout"]["text"].strip() + "/x"

    job = check_job(service.run(argv=[program]))

    assert job["state"] == "failed"
    assert job["error"]["code"] == "exec-format"
    assert "Exec format error" in job["error"]["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"argv": ["true", "x" * ARGUMENT_MAX]},
        {"command": "true #" + "x" * (ARGUMENT_MAX - 6)},
        {"argv": ["true"], "env": {"A": "ä" * ((ARGUMENT_MAX - 2) // 2)}},
        {"argv": ["true", *["x" * 991] * 1048, "x" * 554]},
        {"argv": ["true"], "env": {f"NAME{number:04}": "x" * 1030 for number in range(1000)}},
        {"argv": ["true"], "files": {f"file{number}": "" for number in range(1000)}},
    ],
    ids=["argument", "command", "variable", "arguments", "variables", "files"],
)
def test_as_much_as_is_accepted_can_be_executed(service: Service, body: dict[str, Any]) -> None:
    assert service.run(**body)["state"] == "succeeded"


def test_bodies_that_are_right_but_extreme_are_run(service: Service) -> None:
    body = {
        "argv": [sys.executable, "-c", "import sys; print(len(sys.argv[1]))", "ä" * 60_000],
        "name": "ü" * 128,
        "labels": {("k" * 250) + str(number): "💥" * 256 for number in range(32)},
        "env": {"UNUSUAL name with spaces": "\n\t\x7f\u2028"},
        "files": {"x" * 255: "", "-rf": {"base64": base64.b64encode(bytes(range(256))).decode()}},
    }

    job = check_job(service.run(**body))

    assert job["stdout"]["text"] == "60000\n"
    assert job["labels"] == body["labels"]
    assert job["files"] == [{"name": "x" * 255, "bytes": 0}, {"name": "-rf", "bytes": 256}]
