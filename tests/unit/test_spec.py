"""What a job is asked to do, and the rules that hold whoever asks."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.domain.spec import (
    LABEL_MAX,
    LABELS_MAX,
    NAME_MAX,
    Holder,
    InputInfo,
    InputKind,
    JobSpec,
    Step,
    StepKind,
    escape_pointer,
    leaves_scratch,
    plain_name_problem,
    source_interpreter,
)
from jobrunner.domain.states import Priority


def make_spec(*argv: str, kind: StepKind = StepKind.ARGV, **members: Any) -> JobSpec:
    return JobSpec((Step(kind, argv or ("true",)),), timeout=60.0, grace=10.0, **members)


def pointers(spec: JobSpec) -> list[str]:
    return [problem.pointer for problem in spec.problems()]


def file(name: str) -> InputInfo:
    return InputInfo(InputKind.FILE, name, 0)


# ── the rules ──


def test_an_ordinary_job_has_no_problems() -> None:
    spec = make_spec(
        "sh", "-c", "exit 3",
        env={"PATH": "/bin", "lower": "", "ÜMLAUT": "ä=b"},
        cwd="a/b",
        name="nightly ✓",
        labels={"team": "", "env": "prod: eu"},
        inputs=(file("data.csv"), file("..hidden"), file("with space"), InputInfo(InputKind.STDIN, "", 3)),
    )  # fmt: skip

    assert pointers(spec) == []


@pytest.mark.parametrize("argv", [(), ("",), ("", "x")])
def test_a_job_must_name_a_program(argv: tuple[str, ...]) -> None:
    spec = JobSpec((Step(StepKind.ARGV, argv),), timeout=1.0, grace=1.0)

    assert pointers(spec) == ["#/argv"]


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_command_must_not_be_blank(text: str) -> None:
    assert pointers(make_spec("/bin/sh", "-c", text, kind=StepKind.COMMAND)) == ["#/command"]


def test_an_empty_argument_is_an_argument() -> None:
    assert pointers(make_spec("printf", "")) == []


@pytest.mark.parametrize(
    ("kind", "argv", "pointer"),
    [
        (StepKind.ARGV, ("a\0b",), "#/argv/0"),
        (StepKind.ARGV, ("echo", "fine", "\0"), "#/argv/2"),
        (StepKind.COMMAND, ("/bin/sh", "-c", "echo \0"), "#/command"),
        (StepKind.SCRIPT, ("/scripts/x", "fine", "\0"), "#/args/1"),
    ],
)
def test_nul_in_an_argument_is_refused_where_the_client_wrote_it(
    kind: StepKind, argv: tuple[str, ...], pointer: str
) -> None:
    assert pointers(make_spec(*argv, kind=kind)) == [pointer]


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0", "JOBRUNNER_JOB_ID", "JOBRUNNER_JOB_"])
def test_names_that_no_environment_can_hold_or_that_are_ours_are_refused(name: str) -> None:
    assert pointers(make_spec(env={name: "x"})) == [f"#/env/{name}"]


def test_a_name_that_only_resembles_ours_is_fine() -> None:
    assert pointers(make_spec(env={"JOBRUNNER_TOKEN": "x", "jobrunner_job_id": "x"})) == []


def test_nul_in_the_value_of_a_variable_is_refused() -> None:
    assert pointers(make_spec(env={"A": "x\0y"})) == ["#/env/A"]


@pytest.mark.parametrize("cwd", ["..", "../", "../x", "a/../..", "a/b/../../../c", "./..", "a//..//.."])
def test_a_relative_directory_that_leaves_the_scratch_directory_is_refused(cwd: str) -> None:
    assert leaves_scratch(cwd)
    assert pointers(make_spec(cwd=cwd)) == ["#/cwd"]


@pytest.mark.parametrize("cwd", [".", "a", "a/..", "a/../b", "..a", "...", "a/..b", "/", "/tmp/..", "/../.."])
def test_a_directory_within_or_an_absolute_one_is_taken(cwd: str) -> None:
    assert pointers(make_spec(cwd=cwd)) == []


@pytest.mark.parametrize("cwd", ["", "a\0", "/\0"])
def test_a_directory_must_be_a_path(cwd: str) -> None:
    assert pointers(make_spec(cwd=cwd)) == ["#/cwd"]


@pytest.mark.parametrize("name", ["", "x" * (NAME_MAX + 1), "two\nlines", "\x7f", "\0"])
def test_a_job_s_name_is_short_and_on_one_line(name: str) -> None:
    assert pointers(make_spec(name=name)) == ["#/name"]


def test_the_longest_name_is_taken() -> None:
    assert pointers(make_spec(name="ü" * NAME_MAX)) == []


@pytest.mark.parametrize("key", ["", "a:b", "x" * (LABEL_MAX + 1), "a\n"])
def test_the_key_of_a_label_can_be_written_in_a_filter(key: str) -> None:
    assert pointers(make_spec(labels={key: "x"})) == [f"#/labels/{key}"]


@pytest.mark.parametrize("value", ["x" * (LABEL_MAX + 1), "a\tb"])
def test_the_value_of_a_label_is_short_and_on_one_line(value: str) -> None:
    assert pointers(make_spec(labels={"key": value})) == ["#/labels/key"]


def test_more_labels_than_the_contract_has_are_refused() -> None:
    assert pointers(make_spec(labels={f"k{n}": "" for n in range(LABELS_MAX)})) == []
    assert pointers(make_spec(labels={f"k{n}": "" for n in range(LABELS_MAX + 1)})) == ["#/labels"]


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "/etc/passwd", "../x", "a\0", "x" * 256, "ü" * 128])
def test_a_file_has_a_plain_name(name: str) -> None:
    assert plain_name_problem(name)
    assert pointers(make_spec(inputs=(file(name),))) == [f"#/files/{escape_pointer(name)}"]


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "-rf", " ", "...", "a\nb"])
def test_any_plain_name_is_taken(name: str) -> None:
    assert plain_name_problem(name) is None


HALF = "\ud800"
"""Half a surrogate pair: JSON can write it, Python can hold it, UTF-8 can't."""


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        (make_spec("echo", HALF), "#/argv/1"),
        (make_spec("\udcff"), "#/argv/0"),
        (make_spec("/bin/sh", "-c", f"echo {HALF}", kind=StepKind.COMMAND), "#/command"),
        (make_spec("/scripts/x", "fine", HALF, kind=StepKind.SCRIPT), "#/args/1"),
        (make_spec(f"/scripts/{HALF}", kind=StepKind.SCRIPT), "#/script"),
        (make_spec(env={"A": HALF}), "#/env/A"),
        (make_spec(env={HALF: "x"}), f"#/env/{HALF}"),
        (make_spec(cwd=f"/tmp/{HALF}"), "#/cwd"),
        (make_spec(name=HALF), "#/name"),
        (make_spec(labels={"a": HALF}), "#/labels/a"),
        (make_spec(labels={HALF: "x"}), f"#/labels/{HALF}"),
        (make_spec(inputs=(file(HALF),)), f"#/files/{HALF}"),
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_a_client_may_write(spec: JobSpec, pointer: str) -> None:
    """It is no character, so that neither a process nor the database can be given it."""
    assert pointers(spec) == [pointer]


def test_a_whole_surrogate_pair_is_a_character() -> None:
    text = json.loads(r'"\ud83d\ude00"')

    assert pointers(make_spec(text, env={"A": text}, name=text, labels={text: text}, inputs=(file(text),))) == []


def test_every_problem_is_named_at_once() -> None:
    spec = make_spec("\0", env={"": "\0"}, cwd="..", labels={":": "\n"}, name="", inputs=(file("/"),))

    assert set(pointers(spec)) == {"#/argv/0", "#/env/", "#/cwd", "#/labels/:", "#/name", "#/files/~1"}


def test_pointers_are_escaped_as_rfc_6901_has_it() -> None:
    assert escape_pointer("a/b~c") == "a~1b~0c"
    assert pointers(make_spec(env={"a/b~=": "x"})) == ["#/env/a~1b~0="]


# ── what the database keeps ──

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
STEPS = st.builds(
    Step,
    kind=st.sampled_from(StepKind),
    argv=st.lists(TEXT, max_size=5).map(tuple),
    env=st.dictionaries(TEXT, TEXT, max_size=4),
    cwd=st.none() | TEXT,
    timeout=st.none() | st.floats(min_value=0.001, max_value=1e9),
    name=st.none() | TEXT,
    executable=st.none() | TEXT,
)
SPECS = st.builds(
    JobSpec,
    steps=st.lists(STEPS, min_size=1, max_size=3).map(tuple),
    timeout=st.floats(min_value=0.001, max_value=1e9),
    grace=st.floats(min_value=0, max_value=1e9),
    env=st.dictionaries(TEXT, TEXT, max_size=4),
    bare_env=st.booleans(),
    cwd=st.none() | TEXT,
    make_cwd=st.booleans(),
    paths=st.dictionaries(TEXT, TEXT, max_size=2),
    result=st.none() | TEXT,
    drops_scratch=st.booleans(),
    doom=st.none() | TEXT,
    holder=st.none() | st.builds(Holder, st.integers(1, 1 << 22), st.integers(0, 1 << 60), TEXT),
    merge_stderr=st.booleans(),
    name=st.none() | TEXT,
    priority=st.sampled_from(Priority),
    labels=st.dictionaries(TEXT, TEXT, max_size=4),
    inputs=st.lists(st.builds(InputInfo, st.sampled_from(InputKind), TEXT, st.integers(0, 1 << 40)), max_size=4).map(
        tuple
    ),
)


@given(SPECS)
def test_a_specification_survives_the_database(spec: JobSpec) -> None:
    stored = json.dumps(spec.to_json(), ensure_ascii=False)

    assert JobSpec.from_json(json.loads(stored), name=spec.name, priority=spec.priority) == spec


def test_a_specification_of_before_there_were_sequences_is_one_of_one_step() -> None:
    stored = {
        "kind": "command", "argv": ["/bin/sh", "-c", "make"], "timeout": 60.0, "grace": 10.0, "env": {"A": "b"},
        "cwd": "sub", "merge_stderr": False, "labels": {}, "inputs": [],
    }  # fmt: skip

    spec = JobSpec.from_json(stored, name=None, priority=Priority.NORMAL)

    assert spec == make_spec("/bin/sh", "-c", "make", kind=StepKind.COMMAND, env={"A": "b"}, cwd="sub")
    assert spec.cwd_of(spec.steps[0]) == "sub"


@given(SPECS)
def test_looking_for_problems_of_any_specification_ends_well(spec: JobSpec) -> None:
    assert all(problem.pointer.startswith("#/") and problem.detail for problem in spec.problems())


# ── what is executed, and what is shown of it ──


def test_a_source_without_interpreter_goes_to_the_shell() -> None:
    assert source_interpreter(b"echo hello\n") == ("/bin/sh",)
    assert source_interpreter(b"") == ("/bin/sh",)
    assert source_interpreter(b"\n#!/bin/cat\n") == ("/bin/sh",)


def test_a_source_that_names_its_interpreter_is_executed_itself() -> None:
    assert source_interpreter(b"#!/usr/bin/env python3\nprint(1)\n") == ()


def test_the_file_of_a_source_ends_its_command_line() -> None:
    assert Step(StepKind.SOURCE, ("/bin/sh",)).command_line("/spool/source") == ("/bin/sh", "/spool/source")
    interpreted = Step(StepKind.SOURCE, ())
    assert interpreted.command_line("/spool/source") == ("/spool/source",)
    assert list(interpreted.problems("#")) == []


@pytest.mark.parametrize("kind", sorted(set(StepKind) - {StepKind.SOURCE}))
def test_other_command_lines_are_what_was_asked(kind: StepKind) -> None:
    assert Step(kind, ("a", "b")).command_line("/spool/source") == ("a", "b")


def test_only_command_and_source_need_a_shell() -> None:
    assert {kind for kind in StepKind if kind.needs_shell} == {StepKind.COMMAND, StepKind.SOURCE}


def test_the_summary_of_a_command_is_its_text_and_of_a_program_its_words() -> None:
    assert make_spec("/bin/sh", "-c", "make all", kind=StepKind.COMMAND).summary == "make all"
    assert make_spec("make", "all").summary == "make all"


def test_the_summary_of_a_long_command_is_cut() -> None:
    assert make_spec("x" * 2000).summary == "x" * 1000


def test_the_summary_of_a_sequence_names_all_its_steps() -> None:
    steps = (Step(StepKind.COMMAND, ("/bin/sh", "-c", "make all")), Step(StepKind.ARGV, ("make", "check")))

    assert JobSpec(steps, timeout=1.0, grace=1.0).summary == "make all; make check"


def test_the_problems_of_steps_point_into_the_array_that_they_were_written_in() -> None:
    wrong = Step(StepKind.ARGV, ("x", "\0"), env={"": ""}, cwd="..", name="")
    spec = JobSpec((Step(StepKind.COMMAND, ("/bin/sh", "-c", "")), wrong), timeout=1.0, grace=1.0, cwd="..")

    assert [problem.pointer for problem in spec.problems(is_sequence=True)] == [
        "#/steps/0/command", "#/steps/1/argv/1", "#/steps/1/env/", "#/steps/1/cwd", "#/steps/1/name", "#/cwd",
    ]  # fmt: skip


def test_inputs_are_found_by_their_purpose_in_the_order_given() -> None:
    stdin = InputInfo(InputKind.STDIN, "", 1)
    spec = make_spec(inputs=(file("b"), stdin, file("a")))

    assert spec.input_info(InputKind.FILE) == [file("b"), file("a")]
    assert spec.input_info(InputKind.STDIN) == [stdin]
    assert spec.input_info(InputKind.SOURCE) == []
