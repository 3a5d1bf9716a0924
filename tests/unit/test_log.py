"""The log: one line a record, with the job's number on every line that is about one."""

import json
import logging
import logging.config
import subprocess
import sys
from typing import Any

import pytest

from jobrunner.log import JsonFormatter, TextFormatter, logging_config
from tests.service import clean_environment


def make_record(message: str, *arguments: object, **attributes: Any) -> logging.LogRecord:
    record = logging.LogRecord("jobrunner.executor", logging.INFO, __file__, 1, message, arguments, None)
    record.created, record.msecs = 1_769_860_800.25, 250.0
    for name, value in attributes.items():
        setattr(record, name, value)
    return record


def failed(message: str = "of no use") -> logging.LogRecord:
    try:
        raise RuntimeError(message)
    except RuntimeError:
        return make_record("it failed", exc_info=sys.exc_info())


def test_a_line_of_text_has_time_level_logger_job_and_message() -> None:
    line = TextFormatter().format(make_record("succeeded in %d s", 3, job=17))

    assert line == "2026-01-31T12:00:00.250Z INFO jobrunner.executor [job 17] succeeded in 3 s"


@pytest.mark.parametrize("attributes", [{}, {"job": None}])
def test_a_line_that_is_about_no_job_names_none(attributes: dict[str, Any]) -> None:
    line = TextFormatter().format(make_record("ready", **attributes))

    assert line == "2026-01-31T12:00:00.250Z INFO jobrunner.executor ready"


def test_a_traceback_follows_its_line_of_text() -> None:
    lines = TextFormatter().format(failed()).splitlines()

    assert lines[0].endswith("it failed")
    assert lines[1].strip().startswith("Traceback")
    assert lines[-1].strip() == "RuntimeError: of no use"


def test_a_message_is_on_one_line_whatever_is_in_it() -> None:
    """What a client or a job has written must neither look like a record of ours nor steer a terminal."""
    line = TextFormatter().format(make_record("no %s", "a\nb\r\tc\0d\x1b[31m\x7f\x85\x9b\u2028\u202eGrüße \\ ✓"))

    assert line.endswith(r" no a\nb\r\tc\x00d\x1b[31m\x7f\x85\x9b\u2028\u202eGrüße \ ✓")
    assert len(line.splitlines()) == 1


def test_only_a_record_begins_at_the_begin_of_a_line() -> None:
    """A traceback is for people to read, so it keeps its lines; but none of them can pass for a record."""
    lines = TextFormatter().format(failed("x\n2026-01-31T12:00:00.250Z INFO jobrunner\x1b[2J\rall is well")).split("\n")

    assert lines[-1].endswith(r"all is well")
    assert all(line.startswith("    ") for line in lines[1:])
    assert not any(character in "".join(lines) for character in "\r\x1b")


def test_a_line_of_json_is_an_object_with_the_same() -> None:
    line = JsonFormatter().format(make_record("Grüße\nan %s", "alle", job=17))

    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-31T12:00:00.250Z",
        "level": "info",
        "logger": "jobrunner.executor",
        "job": 17,
        "message": "Grüße\nan alle",
    }


def test_a_line_of_json_leaves_out_what_there_is_not() -> None:
    assert set(json.loads(JsonFormatter().format(make_record("ready")))) == {"time", "level", "logger", "message"}


def test_a_traceback_is_part_of_its_line_of_json() -> None:
    line = JsonFormatter().format(failed())

    assert "\n" not in line
    traceback = json.loads(line)["traceback"]
    assert traceback.startswith("Traceback")
    assert traceback.endswith("\nRuntimeError: of no use")


def test_fields_are_words_or_json_in_text() -> None:
    fields = {
        "by": None,
        "to": "null",
        "id": "1a-b.c:1/2",
        "ip": "127.0.0.1",
        "no": "1.5",
        "words": ["a b", 'c"d'],
        "n": 1,
        "text": "x y=z\n",
        "none": "",
    }
    line = TextFormatter().format(make_record("", fields=fields, job=17))

    told = r'by=null to="null" id=1a-b.c:1/2 ip=127.0.0.1 no="1.5" words=["a b","c\"d"] n=1 text="x y=z\n" none=""'
    assert line.partition("jobrunner.executor ")[2] == f"[job 17] {told}"


def test_fields_are_members_in_json() -> None:
    line = JsonFormatter().format(make_record("", fields={"by": None, "words": ["a", "b\x9b\u2028"], "n": 1}))

    assert line.isprintable()
    found = json.loads(line)
    assert (found["by"], found["words"], found["n"]) == (None, ["a", "b\x9b\u2028"], 1)
    assert "message" not in found


@pytest.mark.parametrize(
    "text",
    [
        "jr_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
        "GET /v1/jobs/17/events?signature=WyIwMTkyZjBjNC01.x_y-z",
        "authorization: Bearer 0123456789abcdefghijkl",
        "Basic OmpyXzAxMjM0NTY3ODlhYmNkZWZnaGlqa2xtbm9w==",
        "Authorization:Bearer\t0123456789abcdefghijkl",
        "Authorization: token ghp_0123456789abcdef",
        "Authorization: rtot a-secret-of-clients",
        "proxy-authorization: 0123456789abcdef",
    ],
)
@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_what_lets_its_readers_in_is_hidden_wherever_it_stands(formatter: logging.Formatter, text: str) -> None:
    for line in (
        formatter.format(make_record("it was %r", text)),
        formatter.format(make_record("", fields={"words": [text]})),
        formatter.format(failed(text)),
    ):
        assert "***" in line
        assert text[-16:] not in line


def test_a_credential_is_hidden_however_short_and_what_follows_is_not() -> None:
    """Else who submits could keep the rest of a command line out of the log."""
    line = TextFormatter().format(
        make_record("", fields={"argv": ["sh", "-c", "curl -H 'Authorization: Basic dTpw' u; rm x", "authorization="]})
    )

    assert line.endswith("""argv=["sh","-c","curl -H 'Authorization: Basic ***' u; rm x","authorization="]""")


def write_log(style: str, level: str = "info") -> list[str]:
    """Log a few records in a process of its own: logging is set up once in each."""
    program = f"""
import logging, threading
from jobrunner.log import JOB, set_up_logging
set_up_logging({style!r}, {level!r})
logger = logging.getLogger("jobrunner.test")
logger.info("before")
JOB.set(17)
logger.info("about a job")
thread = threading.Thread(target=logger.info, args=("from another thread",))
thread.start()
thread.join()
JOB.set(None)
logger.debug("details")
logging.getLogger("alembic.runtime.migration").info("Context impl")
logging.getLogger("gunicorn.error").info("Listening")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_the_number_of_the_job_is_on_the_lines_of_the_thread_that_is_about_it() -> None:
    about = {line.split("jobrunner.test ")[-1] for line in write_log("text") if "jobrunner.test" in line}

    assert about == {"before", "[job 17] about a job", "from another thread"}


def test_the_log_of_json_has_the_number_too() -> None:
    records = [json.loads(line) for line in write_log("json")]

    assert [record.get("job") for record in records if record["message"] == "about a job"] == [17]


def test_the_server_s_lines_are_written_once_and_the_migrations_are_not() -> None:
    lines = write_log("text")

    assert [line for line in lines if line.endswith("Listening")] == [lines[-1]]
    assert not any("Context impl" in line for line in lines)


def test_the_level_decides_what_is_written() -> None:
    assert any(line.endswith("details") for line in write_log("text", "debug"))
    assert write_log("text", "error") == []


def test_the_configuration_is_one_that_dictconfig_takes() -> None:
    logging.config.DictConfigurator(logging_config("json", "warning"))
