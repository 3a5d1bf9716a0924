"""From what was asked for to what will be run: limits and policy of the configuration."""

from pathlib import Path
from typing import Any

import pytest

from jobrunner.config import Callbacks, Executor, Output, Policy
from jobrunner.domain.access import EVERYTHING
from jobrunner.domain.errors import InvalidRequest, ShellNotAllowed
from jobrunner.domain.spec import Input, InputInfo, InputKind, StepKind
from jobrunner.domain.states import Priority
from jobrunner.service.catalogue import Catalogue
from jobrunner.service.commands import CommandRules
from jobrunner.service.submission import SpecMaker, StepAsked, Submission
from jobrunner.service.timelimits import TimeLimits
from tests.factories import CALLER, argv, shell

RECEIVERS = Callbacks().policy
ANY_PROGRAM = CommandRules(EVERYTHING, {})
LIMITS = TimeLimits(Executor(default_timeout=60.0, max_timeout=3600.0, grace=5.0, max_grace=600.0))


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A catalogue with one script."""
    made = tmp_path / "scripts"
    made.mkdir()
    (made / "backup").write_text("#!/bin/sh\n")
    return made


@pytest.fixture
def maker(scripts: Path) -> SpecMaker:
    """The default configuration, with a ceiling of an hour."""
    return SpecMaker(
        LIMITS,
        Output(),
        Policy(),
        ANY_PROGRAM,
        Catalogue(scripts),
        RECEIVERS,
    )


@pytest.fixture
def strict(scripts: Path) -> SpecMaker:
    """A policy without shells."""
    return SpecMaker(
        TimeLimits(Executor()), Output(), Policy(allow_shell=False), ANY_PROGRAM, Catalogue(scripts), RECEIVERS
    )


def pointers(maker: SpecMaker, asked: Submission) -> list[str]:
    with pytest.raises(InvalidRequest) as refusal:
        maker.make(asked, CALLER)
    return [problem.pointer for problem in refusal.value.problems]


def source(text: bytes, **members: Any) -> Submission:
    return Submission((StepAsked(StepKind.SOURCE, source=text),), **members)


def script(*words: str, **members: Any) -> Submission:
    return Submission((StepAsked(StepKind.SCRIPT, words),), **members)


# ── what is run ──


def test_a_command_goes_to_the_shell(maker: SpecMaker) -> None:
    spec, inputs = maker.make(shell("echo $HOME; exit 3"), CALLER)

    assert spec.steps[0].argv == ("/bin/sh", "-c", "echo $HOME; exit 3")
    assert inputs == []


def test_words_are_run_as_they_are(maker: SpecMaker) -> None:
    assert maker.make(argv("echo", "$HOME", "", "a b"), CALLER)[0].steps[0].argv == ("echo", "$HOME", "", "a b")


def test_a_script_is_run_by_its_path(maker: SpecMaker, scripts: Path) -> None:
    assert maker.make(script("backup", "--all", ""), CALLER)[0].steps[0].argv == (str(scripts / "backup"), "--all", "")


@pytest.mark.parametrize("name", ["absent", "../backup", "/bin/sh", "", "."])
def test_a_script_that_is_not_catalogued_is_refused(maker: SpecMaker, name: str) -> None:
    assert pointers(maker, script(name)) == ["#/script"]


def test_a_source_is_kept_and_goes_to_its_interpreter(maker: SpecMaker) -> None:
    spec, inputs = maker.make(source(b"#!/usr/bin/env python3\n\xff\0"), CALLER)

    assert spec.steps[0].argv == ()
    assert inputs == [Input(InputKind.SOURCE, "", b"#!/usr/bin/env python3\n\xff\0")]
    assert maker.make(source(b"echo"), CALLER)[0].steps[0].argv == ("/bin/sh",)


def test_everything_that_was_asked_is_in_the_specification(maker: SpecMaker) -> None:
    asked = argv(
        "true",
        env={"A": "b"},
        cwd="sub",
        merge_stderr=True,
        name="n",
        priority=Priority.HIGH,
        labels={"k": "v"},
        timeout=1.5,
        grace=0.0,
        stdin=b"in",
        files={"f": b"content", "g": b""},
    )
    spec, inputs = maker.make(asked, CALLER)

    assert (spec.env, spec.cwd, spec.merge_stderr, spec.name) == ({"A": "b"}, "sub", True, "n")
    assert (spec.priority, spec.labels, spec.timeout, spec.grace) == (Priority.HIGH, {"k": "v"}, 1.5, 0.0)
    assert set(spec.inputs) == {
        InputInfo(InputKind.FILE, "f", 7), InputInfo(InputKind.FILE, "g", 0), InputInfo(InputKind.STDIN, "", 2),
    }  # fmt: skip
    assert {given.name: given.content for given in inputs if given.kind is InputKind.FILE} == asked.files


def test_an_empty_input_is_no_input(maker: SpecMaker) -> None:
    assert maker.make(argv("cat", stdin=b""), CALLER)[1] == []


# ── limits ──


def test_what_was_not_said_is_taken_from_the_configuration(maker: SpecMaker) -> None:
    spec, _ = maker.make(argv("true"), CALLER)

    assert (spec.timeout, spec.grace) == (60.0, 5.0)


@pytest.mark.parametrize("timeout", [0.001, 1.0, 3600.0])
def test_a_timeout_up_to_the_ceiling_is_taken(maker: SpecMaker, timeout: float) -> None:
    assert maker.make(argv("true", timeout=timeout), CALLER)[0].timeout == timeout


@pytest.mark.parametrize("timeout", [0.0, -1.0, 3600.001, float("inf"), float("nan")])
def test_a_timeout_out_of_range_is_refused(maker: SpecMaker, timeout: float) -> None:
    assert pointers(maker, argv("true", timeout=timeout)) == ["#/timeout"]


@pytest.mark.parametrize("grace", [-0.001, 600.001, float("inf"), float("nan")])
def test_a_grace_period_out_of_range_is_refused(maker: SpecMaker, grace: float) -> None:
    assert pointers(maker, argv("true", grace=grace)) == ["#/grace"]
    with pytest.raises(InvalidRequest, match=r"from 0 to 600 seconds \(\[executor\] max_grace\)"):
        LIMITS.checked_grace(grace)


@pytest.mark.parametrize("grace", [None, 0.0, 600.0])
def test_a_grace_period_in_range_is_taken(maker: SpecMaker, grace: float | None) -> None:
    assert LIMITS.checked_grace(grace) == grace


def test_all_problems_are_named_at_once(maker: SpecMaker) -> None:
    asked = argv("", timeout=-1.0, grace=-1.0, cwd="..", env={"=": ""}, files={"a/b": b""}, labels={"": ""}, name="")

    assert set(pointers(maker, asked)) == {
        "#/argv", "#/timeout", "#/grace", "#/cwd", "#/env/=", "#/files/a~1b", "#/labels/", "#/name",
    }  # fmt: skip


def test_an_absent_script_is_named_together_with_the_rest(maker: SpecMaker) -> None:
    asked = script("absent", cwd="..")

    assert set(pointers(maker, asked)) == {"#/script", "#/cwd"}


def test_half_a_surrogate_pair_is_refused_here_and_not_only_by_http(maker: SpecMaker) -> None:
    asked = shell("echo \ud800", env={"A": "\udfff"}, files={"\ud800": b""}, labels={"a": "\ud800"}, name="\ud800")

    assert set(pointers(maker, asked)) == {"#/command", "#/env/A", "#/files/\ud800", "#/labels/a", "#/name"}
    assert pointers(maker, script("\ud800")) == ["#/script"]


# ── policy ──


@pytest.mark.parametrize("asked", [shell("true"), source(b"true"), source(b"#!/usr/bin/python3\n")])
def test_without_shells_commands_and_sources_are_refused(strict: SpecMaker, asked: Submission) -> None:
    with pytest.raises(ShellNotAllowed, match="allow_shell"):
        strict.make(asked, CALLER)


def test_without_shells_programs_and_catalogued_scripts_run(strict: SpecMaker) -> None:
    made = [strict.make(asked, CALLER)[0].steps[0].kind for asked in (argv("true"), script("backup"))]

    assert made == [StepKind.ARGV, StepKind.SCRIPT]


# ── callbacks ──


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/done", "https://hooks.example.org", "http://[::1]/?a=b"])
def test_a_callback_goes_into_the_specification_as_it_was_given(maker: SpecMaker, url: str) -> None:
    assert maker.make(argv("true", callback_url=url), CALLER)[0].callback_url == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.org/", "http:// or https://"),
        ("http://user:password@example.org/", "password"),
        ("http://169.254.169.254/latest/", "[callbacks] deny"),
        ("http://0xA9FEA9FE/latest/", "[callbacks] deny"),
        ("http://[::ffff:169.254.169.254]/", "[callbacks] deny"),
    ],
)
def test_a_callback_that_can_go_nowhere_is_refused_at_once(maker: SpecMaker, url: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        maker.make(argv("true", callback_url=url), CALLER)

    ((pointer, detail),) = [(found.pointer, found.detail) for found in refusal.value.problems]
    assert pointer == "#/callback_url"
    assert words in detail


def test_a_callback_of_earlier_is_held_against_the_policy_of_today(scripts: Path) -> None:
    lax, strict = (
        SpecMaker(TimeLimits(Executor()), Output(), Policy(), ANY_PROGRAM, Catalogue(scripts), receivers)
        for receivers in (Callbacks(deny=()).policy, RECEIVERS)
    )
    spec, _ = lax.make(argv("true", callback_url="http://169.254.1.1/"), CALLER)

    lax.check(spec, CALLER, list)
    with pytest.raises(InvalidRequest, match="callback_url"):
        strict.check(spec, CALLER, list)


def test_a_script_of_earlier_is_run_again_only_if_it_is_catalogued_today(scripts: Path, tmp_path: Path) -> None:
    """Its file may be where it was: the catalogue is another now, or the script was taken out of it."""
    moved = tmp_path / "moved"
    before, now = (
        SpecMaker(TimeLimits(Executor()), Output(), Policy(), ANY_PROGRAM, Catalogue(path), RECEIVERS)
        for path in (scripts, moved)
    )
    single, _ = before.make(script("backup", "now"), CALLER)
    several, _ = before.make(Submission((StepAsked(StepKind.ARGV, ("true",)), *script("backup").steps)), CALLER)

    assert before.check(single, CALLER, list) == single
    for spec, pointer in ((single, "#/script"), (several, "#/steps/1/script")):
        with pytest.raises(InvalidRequest) as refusal:
            now.check(spec, CALLER, list)
        assert [problem.pointer for problem in refusal.value.problems] == [pointer]
    (scripts / "backup").unlink()
    with pytest.raises(InvalidRequest, match="there is no script 'backup'"):
        before.check(single, CALLER, list)
