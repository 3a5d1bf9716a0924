"""Which programs may be run: what the configuration and a token say of the file that would be executed."""

import os
from pathlib import Path
from typing import Any

import pytest

from jobrunner.config import Callbacks, Executor, Output, Policy
from jobrunner.domain.access import EVERYTHING, Caller, Grant, Scope
from jobrunner.domain.errors import CommandNotAllowed, InvalidRequest
from jobrunner.domain.spec import JobSpec, Step, StepKind
from jobrunner.service.catalogue import Catalogue
from jobrunner.service.commands import CommandRules
from jobrunner.service.submission import SpecMaker, StepAsked, Submission
from jobrunner.service.timelimits import TimeLimits
from tests.factories import CALLER, argv, shell

SHELL = os.path.realpath("/bin/sh")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Directories of programs: those in ``good`` are allowed in these tests, those in ``evil`` are not."""
    for name in ("good/tool", "good/interpreter", "evil/tool", "scripts/backup"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (tmp_path / "good" / "link").symlink_to("../evil/tool")
    (tmp_path / "evil" / "link").symlink_to("../good/tool")
    return tmp_path


class Rules:
    """Makes specifications where programs are limited."""

    def __init__(self, place: Path, *allowed: str, path: str = "{0}/good:{0}/evil", **grant: Any) -> None:
        self.place = place
        patterns = tuple(pattern.format(place) for pattern in allowed) or EVERYTHING
        grant["commands"] = tuple(pattern.format(place) for pattern in grant.get("commands", EVERYTHING))
        self.caller = Caller("ci", Grant(frozenset({Scope.EXEC}), **grant))
        self.rules = CommandRules(patterns, {"PATH": path.format(place)})
        catalogue = Catalogue(place / "scripts")
        self.maker = SpecMaker(TimeLimits(Executor()), Output(), Policy(), self.rules, catalogue, Callbacks().policy)

    def make(self, asked: Submission) -> JobSpec:
        return self.maker.make(asked, self.caller)[0]

    def step(self, asked: Submission) -> Step:
        (step,) = self.make(asked).steps
        return step

    def found(self, asked: Submission) -> str:
        """Return the program that would be executed, without the place of all of them."""
        executable = self.step(asked).executable
        assert executable is not None
        return os.path.relpath(executable, self.place)

    def refuses(self, asked: Submission, words: str = "allowed") -> bool:
        with pytest.raises(CommandNotAllowed, match=words):
            self.make(asked)
        return True


@pytest.fixture
def rules(place: Path) -> Rules:
    """Only what is in ``good``."""
    return Rules(place, "{0}/good/*")


def source(text: str, **members: Any) -> Submission:
    return Submission((StepAsked(StepKind.SOURCE, source=text.encode()),), **members)


def script(**members: Any) -> Submission:
    return Submission((StepAsked(StepKind.SCRIPT, ("backup",)),), **members)


# ── without limits ──


@pytest.mark.parametrize("asked", [argv("absent"), argv("./absent"), shell("true"), source("#!/absent\n"), script()])
def test_where_all_programs_are_allowed_nothing_is_looked_up(place: Path, asked: Submission) -> None:
    assert Rules(place).step(asked).executable is None


def test_a_star_among_the_patterns_allows_all(place: Path) -> None:
    assert Rules(place, "/usr/bin/git", "*").step(argv("absent")).executable is None
    assert Rules(place, commands=("/usr/bin/git", "*")).step(argv("absent")).executable is None


# ── programs ──


def test_a_program_is_judged_and_executed_by_the_path_of_its_file(rules: Rules, place: Path) -> None:
    step = rules.step(argv("tool", "x"))

    assert (step.argv, step.executable) == (("tool", "x"), str(place / "good" / "tool"))


def test_a_link_is_what_it_leads_to(rules: Rules, place: Path) -> None:
    assert rules.found(argv(str(place / "evil" / "link"))) == "good/tool"
    assert rules.refuses(argv(str(place / "good" / "link")), "evil/tool is not allowed here .*allow_commands")


def test_the_job_s_own_path_counts(rules: Rules, place: Path) -> None:
    assert rules.refuses(argv("tool", env={"PATH": f"{place}/evil:{place}/good"}))
    assert rules.found(argv("tool", env={"PATH": f"{place}/absent:{place}/good"})) == "good/tool"


def test_the_path_and_directory_of_a_step_win_over_those_of_the_job(rules: Rules, place: Path) -> None:
    good, evil = ({"PATH": f"{place}/{name}"} for name in ("good", "evil"))
    words = ("tool",)

    assert rules.refuses(Submission((StepAsked(StepKind.ARGV, words, env=evil),), env=good))
    assert rules.found(Submission((StepAsked(StepKind.ARGV, words, env=good),), env=evil)) == "good/tool"
    here = StepAsked(StepKind.ARGV, ("./tool",), cwd=str(place / "good"))
    assert rules.found(Submission((here,), cwd=str(place / "evil"))) == "good/tool"


def test_with_a_bare_environment_the_service_s_path_counts(rules: Rules, place: Path) -> None:
    """The job's own is not what the program is looked up in when it starts."""
    asked = argv("tool", env={"PATH": f"{place}/evil"}, bare_env=True)

    assert rules.found(asked) == "good/tool"


def test_each_step_is_judged(rules: Rules, place: Path) -> None:
    steps = [StepAsked(StepKind.ARGV, (name,)) for name in ("tool", str(place / "evil" / "tool"))]

    assert rules.refuses(Submission(tuple(steps), is_sequence=True), "evil/tool")


def test_a_relative_path_is_judged_where_it_starts(rules: Rules, place: Path) -> None:
    assert rules.found(argv("../good/tool", cwd=str(place / "evil"))) == "good/tool"
    assert rules.refuses(argv("./tool", cwd=str(place / "evil")))
    assert rules.found(argv("tool", env={"PATH": ""}, cwd=str(place / "good"))) == "good/tool"


@pytest.mark.parametrize("members", [{}, {"cwd": "sub"}, {"files": {"tool": b"#!/bin/sh\n"}}])
def test_nothing_in_the_job_s_own_directory_is_a_program(place: Path, members: dict[str, Any]) -> None:
    """Whatever comes with it, or an earlier step makes there."""
    rules = Rules(place, "/*")

    assert rules.refuses(argv("./tool", **members), "the job's own directory")
    assert rules.found(argv("tool", env={"PATH": f":.:sub:{place}/good"}, **members)) == "good/tool"


def test_a_program_that_is_not_there_can_not_be_judged(rules: Rules, place: Path) -> None:
    steps = [StepAsked(StepKind.ARGV, (name,)) for name in ("absent", "tool", "/no/such/program")]
    with pytest.raises(InvalidRequest) as refusal:
        rules.make(Submission(tuple(steps), is_sequence=True))

    assert [found.pointer for found in refusal.value.problems] == ["#/steps/0/argv/0", "#/steps/2/argv/0"]
    assert "no program 'absent'" in refusal.value.problems[0].detail


def test_a_program_whose_path_is_no_text_is_refused(place: Path) -> None:
    (place / os.fsdecode(b"\xff")).symlink_to("good")
    (place / "good").rename(place / os.fsdecode(b"\xfe"))
    (place / "good").symlink_to(os.fsdecode(b"\xfe"))

    assert Rules(place, "/*").refuses(argv("tool"), "not UTF-8")


def test_none_allows_no_program(place: Path) -> None:
    rules = Rules(place, "none")

    assert rules.refuses(argv("tool"))
    assert rules.step(script()).executable is None


# ── interpreters ──


def test_a_shell_s_command_needs_the_shell_allowed(place: Path) -> None:
    step = Rules(place, SHELL).step(shell("exit 3"))

    assert (step.argv, step.executable) == (("/bin/sh", "-c", "exit 3"), SHELL)
    assert Rules(place, "{0}/*").refuses(shell("exit 3"), SHELL)


def test_a_source_needs_its_interpreter_allowed(place: Path) -> None:
    rules = Rules(place, "{0}/good/*", SHELL)
    named = rules.step(source(f"#! {place}/evil/link -x y\n"))

    assert (named.argv, named.executable) == ((f"{place}/evil/link", "-x y"), str(place / "good" / "tool"))
    assert named.command_line("/spool/source") == (f"{place}/evil/link", "-x y", "/spool/source")
    assert (rules.step(source("true")).argv, rules.step(source("true")).executable) == (("/bin/sh",), SHELL)
    assert rules.refuses(source(f"#!{place}/good/link\n"))
    assert Rules(place, "{0}/good/*").refuses(source("true"))


def test_what_env_looks_up_is_the_interpreter(place: Path) -> None:
    """To allow env(1) itself would be to allow everything."""
    rules = Rules(place, "{0}/good/*")
    step = rules.step(source("#!/usr/bin/env interpreter\n"))

    assert (step.argv, step.executable) == (("interpreter",), str(place / "good" / "interpreter"))
    assert rules.refuses(source("#!/usr/bin/env tool\n", env={"PATH": f"{place}/evil"}))
    assert rules.refuses(source("#!/usr/bin/env -S tool\n"), "/env")
    assert rules.refuses(source("#!/usr/bin/env\n"), "/env")


@pytest.mark.parametrize("text", ["#!\n", "#!/no/such/interpreter\n", "#!/usr/bin/env absent\n", "#!" + "x" * 300])
def test_a_source_without_interpreter_can_not_be_judged(rules: Rules, text: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        rules.make(source(text))

    assert [found.pointer for found in refusal.value.problems] == ["#/source"]


def test_a_catalogued_script_is_allowed_by_being_catalogued(rules: Rules, place: Path) -> None:
    step = rules.step(script())

    assert (step.argv, step.executable) == ((f"{place}/scripts/backup",), None)


def test_a_catalogued_script_is_no_program(rules: Rules, place: Path) -> None:
    assert rules.refuses(argv(f"{place}/scripts/backup"))


# ── what makes a program another one ──


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD", "LD_AUDIT", "BASH_ENV", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "PERL5OPT", "BASH_FUNC_ls%%", "HOME",
        "OPENSSL_CONF", "NODE_OPTIONS", "GEM_HOME", "R_PROFILE", "DOTNET_STARTUP_HOOKS",
    ],
)  # fmt: skip
@pytest.mark.parametrize("asked", [("tool",), None])
def test_variables_that_run_other_code_are_refused(rules: Rules, name: str, asked: tuple[str, ...] | None) -> None:
    members = {"env": {name: "x"}}

    assert rules.refuses(argv(*asked, **members) if asked else script(**members), name)
    step = StepAsked(StepKind.ARGV, ("tool",), env={name: "x"})
    assert rules.refuses(Submission((step,), is_sequence=True), name)


def test_a_script_finds_its_programs_where_the_service_says(rules: Rules, place: Path) -> None:
    assert rules.refuses(script(env={"PATH": f"{place}/evil"}), "PATH")
    rules.make(script(env={"LANG": "C", "PYTHONUNBUFFERED": "1"}, cwd="/"))


def test_where_all_programs_are_allowed_all_variables_are(place: Path) -> None:
    env = {"LD_PRELOAD": "x", "PATH": "/x"}

    assert Rules(place).make(argv("tool", env=env)).env == env
    assert Rules(place).make(script(env=env)).env == env


# ── tokens ──


def test_a_token_is_for_some_programs(place: Path) -> None:
    rules = Rules(place, commands=("{0}/good/*", "/usr/bin/git"))

    assert rules.found(argv("tool")) == "good/tool"
    assert rules.refuses(argv(str(place / "good" / "link")), "token 'ci' is not for the program .*evil/tool, only for")
    assert rules.refuses(shell("true"), SHELL)
    assert rules.refuses(source("#!/bin/sh\n"), SHELL)
    assert rules.step(script()).executable is None


def test_policy_and_token_must_both_allow_a_program(place: Path) -> None:
    assert Rules(place, "{0}/*", commands=("{0}/good/*",)).found(argv("tool")) == "good/tool"
    assert Rules(place, "{0}/evil/*", commands=("*",)).refuses(argv("tool"), "allow_commands")
    assert Rules(place, "{0}/evil/*", commands=("{0}/good/*",)).refuses(argv("tool"), "allow_commands")
    assert Rules(place, "{0}/good/*", commands=("{0}/evil/*",)).refuses(argv("tool"), "token")


def test_the_rule_names_what_allows_a_program(place: Path) -> None:
    both = Rules(place, "/no/*", "{0}/good/*", SHELL, commands=("{0}/*", "/*"))
    tool = f"{place}/good/tool"

    def rule(rules: Rules, asked: Submission) -> str:
        return rules.maker.rule(rules.step(asked), rules.caller)

    assert rule(both, argv("tool")) == (
        f"[policy] allow_commands: {place}/good/*, commands of the token 'ci': {place}/* ({tool})"
    )
    assert rule(Rules(place, SHELL), shell("true")) == (
        f"[policy] allow_shell = yes, [policy] allow_commands: {SHELL} ({SHELL})"
    )
    assert rule(Rules(place, commands=("{0}/*",)), argv("tool")) == f"commands of the token 'ci': {place}/* ({tool})"
    assert rule(both, script()).startswith("catalogue")
    assert rule(Rules(place), argv("tool")) == "every program is allowed"


# ── again ──


def test_a_specification_of_earlier_is_judged_by_what_is_there_today(rules: Rules, place: Path) -> None:
    (place / "link").symlink_to("good/tool")
    earlier = rules.make(argv(str(place / "link")))
    (place / "link").unlink()
    (place / "link").symlink_to("evil/tool")

    with pytest.raises(CommandNotAllowed):
        rules.maker.check(earlier, CALLER, list)
    assert Rules(place).maker.check(earlier, CALLER, list).steps[0].executable is None


def test_a_source_of_earlier_is_judged_by_its_text(rules: Rules, place: Path) -> None:
    text = f"#!{place}/good/tool\n"
    lax = Rules(place)
    spec, inputs = lax.maker.make(source(text), CALLER)
    assert spec.steps[0].argv == ()

    assert rules.maker.check(spec, CALLER, lambda: inputs).steps == rules.make(source(text)).steps
    with pytest.raises(CommandNotAllowed):
        Rules(place, "{0}/evil/*").maker.check(spec, CALLER, lambda: inputs)
