"""What clients of go-jobrunner may ask for, and in which order and words they are told what is wrong with it."""

import json
import uuid
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.domain.ids import make_job_id
from jobrunner.domain.spec import StepKind
from jobrunner.service.submission import StepAsked
from jobrunner.web.dialects.go_jobrunner_request import Asked, Wrong, command_ids, parse_submission

BASH: dict[str, Any] = {"Kind": "bash", "CommandLine": "true", "Environment": {}}
DOCKER: dict[str, Any] = {**BASH, "Kind": "docker", "Repository": "debian"}
NO_LINE, NO_ENV = "Missing CommandLine key.", "Missing Environment key."


def parse(**members: Any) -> Asked:
    return parse_submission(json.dumps(members).encode())


def refusal(body: Any) -> str:
    with pytest.raises(Wrong) as raised:
        parse_submission(body if isinstance(body, bytes) else json.dumps(body).encode())
    return str(raised.value)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, NO_LINE),
        (None, NO_LINE),
        ({"CommandLine": ""}, NO_LINE),
        ({"CommandLine": None, "Environment": {}}, NO_LINE),
        ({"CommandLine": "", "Environment": None}, NO_LINE),
        ({"Environment": {}}, NO_LINE),
        ({"Commands": None}, NO_LINE),
        ({"CommandLine": "true"}, NO_ENV),
        ({"CommandLine": "true", "Environment": None}, NO_ENV),
        ({"Commands": [{}]}, "Missing Kind from command."),
        ({"Commands": [None]}, "Missing Kind from command."),
        ({"Commands": [{**BASH, "Kind": ""}]}, "Missing Kind from command."),
        ({"Commands": [{"Kind": "Bash"}]}, "Missing invalid kind of command: Bash"),
        ({"Commands": [{"Kind": "<&>"}]}, "Missing invalid kind of command: <&>"),
        ({"Commands": [{"Kind": "bash"}]}, "Missing CommandLine from command."),
        ({"Commands": [{"Kind": "bash", "CommandLine": ""}]}, "Missing CommandLine from command."),
        ({"Commands": [{"Kind": "bash", "CommandLine": "true"}]}, "Missing Environment from command."),
        ({"Commands": [{**BASH, "Environment": None}]}, "Missing Environment from command."),
        ({"Commands": [{"Kind": "docker", "CommandLine": "true"}]}, "Missing Environment from command."),
        ({"Commands": [{**BASH, "Kind": "docker"}]}, "Missing docker repository from command."),
        ({"Commands": [{**DOCKER, "Repository": ""}]}, "Missing docker repository from command."),
        ({"Commands": [DOCKER, {}]}, "Missing Kind from command."),
        ({"Commands": [BASH, {"Kind": "bash"}]}, "Missing CommandLine from command."),
        ({"Commands": [], "CommandLine": "", "WorkingDir": ""}, None),
    ],
)
def test_what_is_missing_is_told_in_the_words_of_the_original(asked: Any, expected: str | None) -> None:
    if expected is None:
        parse(**asked)
    else:
        assert refusal(asked) == expected


def test_an_image_is_named_by_registry_repository_and_tag() -> None:
    whole = {**DOCKER, "Registry": "r:5000", "Tag": "12"}

    assert parse(Commands=[DOCKER, BASH, whole]).images == ("debian", "r:5000/debian:12")
    assert parse(Commands=[{**DOCKER, "Registry": "", "Tag": None}]).images == ("debian",)
    assert parse(Commands=[BASH]).images == ()


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b'{"CommandLine": tru}',
        b"[" * 100_000,
        b"1" * 5000,
        [],
        "true",
        {"CommandLine": 1, "Environment": {}},
        {"CommandLine": "true", "Environment": []},
        {"CommandLine": "true", "Environment": {"A": 1}},
        {"Environment": "A=b"},
        {"Commands": {}},
        {"Commands": [[]]},
        {"Commands": ["true"]},
        {"Commands": [{}, {"Kind": 1}]},
        {"Commands": [{"CommandLine": []}]},
        {"Commands": [{"Environment": {"A": {}}}]},
        {"Commands": [{"Tag": 1}]},
        {"Commands": [{"Registry": 1}]},
        {"Commands": [{"Repository": 1}]},
        {"Commands": [{"WorkingDir": 1}]},
        {"Commands": [], "WorkingDir": []},
        {"Commands": [], "CommandLine": 7},
    ],
)
def test_what_has_another_type_is_told_before_what_is_missing(asked: Any) -> None:
    assert refusal(asked).startswith(("json: ", "the body is not JSON: "))


@pytest.mark.parametrize("path", ["..", "../x", "a/../..", "a/../../b", "/", "/etc", "./..", "//"])
def test_a_working_directory_must_not_leave_the_job_s(path: str) -> None:
    words = f"The WorkingDir must be relative, and must not leave the job's directory: {path}"

    assert refusal({"Commands": [], "WorkingDir": path}) == words
    assert refusal({"Commands": [BASH, {**BASH, "WorkingDir": path}]}) == words


def test_one_command_is_a_shell_s_with_nothing_of_our_environment() -> None:
    asked = parse(CommandLine="echo $A", Environment={"A": "1", "B": None}, Unknown=1)

    assert asked.commands is None
    assert asked.submission.steps == (StepAsked(StepKind.COMMAND, ("echo $A",), shell="bash"),)
    assert asked.submission.env == {"A": "1", "B": ""}
    assert (asked.submission.bare_env, asked.submission.merge_stderr, asked.submission.cwd) == (True, True, None)


def test_each_command_has_its_own_environment_and_directory() -> None:
    first = {**BASH, "Environment": {"A": "1"}, "WorkingDir": "a/b"}
    asked = parse(Commands=[first, BASH], WorkingDir="c", CommandLine="ignored", Environment={"X": "ignored"})

    assert asked.commands == 2
    assert [(step.env, step.cwd) for step in asked.submission.steps] == [({"A": "1"}, "a/b"), ({}, None)]
    assert (asked.submission.env, asked.submission.cwd, asked.submission.bare_env) == ({}, "c", True)


@pytest.mark.parametrize(
    "body",
    [
        b'{"commandline": "true", "ENVIRONMENT": {}}',
        b'\n{"CommandLine": "true", "Environment": {}} and more',
        b'{"CommandLine": "false", "Environment": {}, "COMMANDLINE": "true"}',
        b'{"CommandLine": "true", "Environment": {}, "Commands": null}',
    ],
)
def test_keys_are_found_as_go_finds_them(body: bytes) -> None:
    asked = parse_submission(body)

    assert (asked.commands, asked.submission.steps[0].words) == (None, ("true",))


@pytest.mark.parametrize("line", [" ", "\t\n "])
def test_white_space_does_nothing(line: str) -> None:
    assert parse(CommandLine=line, Environment={}).submission.steps[0].words == (":",)


def test_no_commands_are_one_that_does_nothing() -> None:
    asked = parse(Commands=[])

    assert (asked.commands, [step.words for step in asked.submission.steps]) == (0, [(":",)])


def test_commands_have_ids_that_are_always_the_same() -> None:
    one, other = make_job_id(1), make_job_id(1)

    assert command_ids(one, 3) == command_ids(one, 4)[:3]
    assert len({*command_ids(one, 3), *command_ids(other, 3)}) == 6
    assert all(str(uuid.UUID(found)) == found for found in command_ids(one, 3))
    assert command_ids(one, 0) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["bash", "docker", "..", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["CommandLine", "Environment", "Commands", "Kind", "WorkingDir", "Repository", "A"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_asked_for_is_taken_or_refused(value: Any) -> None:
    with suppress(Wrong):
        asked = parse_submission(json.dumps(value).encode())
        assert asked.submission.bare_env
        assert len(asked.submission.steps) == max(asked.commands or 0, 1)


@given(st.binary(max_size=20))  # too short to ask for anything
def test_whatever_bytes_are_sent_are_refused(body: bytes) -> None:
    assert refusal(body)
