"""Which programs may be run: judged on the very files, and these are what is executed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jobrunner.domain.access import Caller
from jobrunner.domain.errors import CommandNotAllowed, InvalidRequest, Problem
from jobrunner.domain.interpreter import read_interpreter
from jobrunner.domain.patterns import find_match, matches
from jobrunner.domain.spec import SHELL, Input, InputKind, JobSpec, Step, StepKind, source_name, step_pointer
from jobrunner.programs import find_program

LoadInputs = Callable[[], Sequence[Input]]

_FOREIGN_CODE = frozenset({
    "AWKLIBPATH", "CLASSPATH", "DOTNET_STARTUP_HOOKS", "ENV", "FPATH", "GCONV_PATH", "GIO_EXTRA_MODULES",
    "GIO_MODULE_DIR", "GLIBC_TUNABLES", "GTK_MODULES", "GTK_PATH", "HOME", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS",
    "KRB5_CONFIG", "PHPRC", "PHP_INI_SCAN_DIR", "PS4", "PYTHONBREAKPOINT", "PYTHONEXECUTABLE", "PYTHONHOME",
    "PYTHONINSPECT", "PYTHONPATH", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX", "PYTHONSTARTUP", "PYTHONUSERBASE",
    "PYTHONWARNINGS", "QT_PLUGIN_PATH", "SASL_PATH", "SHELLOPTS", "TCLLIBPATH", "ZDOTDIR", "_JAVA_OPTIONS",
})  # fmt: skip
_FOREIGN_PREFIXES = (
    "BASH", "BUNDLE_", "CORECLR_", "COR_", "ERL_", "GEM_", "GUILE_", "JULIA_", "LD_", "LUA_", "MONO_", "NODE_",
    "OPENSSL_", "PERL", "RUBY", "R_",
)  # fmt: skip
"""Variables by which the loader, a library or an interpreter runs other code than the program's own.

With HOME, too: there zsh and Python look for code.
"""


class CommandRules:
    """What ``[policy] allow_commands`` and the tokens say of programs. Where both allow all, nothing is looked up.

    Args:
        allowed: patterns (fnmatch) of the absolute paths of programs.
        environment: the base environment of jobs.
    """

    def __init__(self, allowed: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._allowed = allowed
        self._environment = environment

    def judge(self, spec: JobSpec, caller: Caller, load_inputs: LoadInputs, *, is_sequence: bool = False) -> JobSpec:
        """Return the specification with the files that are to be executed, if it matters which they are.

        Args:
            spec: without problems otherwise.
            caller: who submits it.
            load_inputs: returns what came with it; called only for the text of a ``source``.
            is_sequence: the client has written an array of steps, and not the one step as the job.

        Raises:
            CommandNotAllowed: one of them may not be executed.
            InvalidRequest: there is no such program.
        """
        if not self._is_narrow and caller.grant.allows_all_commands:
            if any(step.executable is not None for step in spec.steps):  # of earlier, when it mattered
                return replace(spec, steps=tuple(replace(step, executable=None) for step in spec.steps))
            return spec
        steps: list[Step] = []
        problems: list[Problem] = []
        for index, step in enumerate(spec.steps):
            try:
                steps.append(self._judge_step(spec, index, caller, load_inputs))
            except ValueError as error:
                member = f"{step.kind.value}/0" if step.kind is StepKind.ARGV else step.kind.value
                problems.append(Problem(f"{step_pointer(index, is_sequence=is_sequence)}/{member}", str(error)))
        if problems:
            raise InvalidRequest(problems)
        return replace(spec, steps=tuple(steps))

    def rule(self, step: Step, caller: Caller) -> str | None:
        """Name the rules that allow a step's program; None: all programs are allowed."""
        if step.executable is None:
            return None
        rules = {"[policy] allow_commands": self._allowed} if self._is_narrow else {}
        if not caller.grant.allows_all_commands:
            rules[f"commands of the token {caller.name!r}"] = caller.grant.commands
        # Of a job of earlier, which a repeated submission leads to, there need be none any more.
        found = [
            f"{name}: {match}" for name, patterns in rules.items() if (match := find_match(step.executable, patterns))
        ]
        return f"{', '.join(found) or 'a rule of earlier'} ({step.executable})"

    @property
    def _is_narrow(self) -> bool:
        return "*" not in self._allowed

    def _judge_step(self, spec: JobSpec, index: int, caller: Caller, load_inputs: LoadInputs) -> Step:
        """Return a step with the file that is to be executed.

        Raises:
            CommandNotAllowed: it may not be.
            ValueError: there is none.
        """
        step = spec.steps[index]
        if self._is_narrow:
            self._check_variables({**spec.env, **step.env}, step.kind)
        if step.kind is StepKind.SCRIPT:
            return step
        argv = self._command_line(step, index, load_inputs)
        executable = self._find(argv[0], spec, step)
        self._check_program(executable, caller)
        return replace(step, argv=argv, executable=executable)

    def _command_line(self, step: Step, index: int, load_inputs: LoadInputs) -> tuple[str, ...]:
        """Return a command line that begins with the program: for a ``source``, what the kernel would make of it.

        Raises:
            ValueError: its ``#!`` line names none.
        """
        if step.kind is not StepKind.SOURCE:
            return step.argv
        is_it = (InputKind.SOURCE, source_name(index))
        text = next(given.content for given in load_inputs() if (given.kind, given.name) == is_it)
        return read_interpreter(text) if text.startswith(b"#!") else (SHELL,)

    def _find(self, name: str, spec: JobSpec, step: Step) -> str:
        cwd = spec.cwd_of(step)
        if cwd is not None and not cwd.startswith("/"):
            cwd = None
        if cwd is None and "/" in name and not name.startswith("/"):
            raise CommandNotAllowed(
                f"{name!r} would be in the job's own directory: nobody can judge today what will be there; "
                "programs are limited here, so name one by its absolute path, or by its name alone"
            )
        found = find_program(name, spec.search_path_of(step, self._environment), cwd)
        if found is None:
            raise ValueError(f"there is no program {name!r}, and it has to be there to be judged")
        if not _is_text(found):
            raise CommandNotAllowed(f"the program {name!r} has a path that is not UTF-8, and can't be judged")
        return found

    def _check_program(self, program: str, caller: Caller) -> None:
        if not matches(program, self._allowed):
            raise CommandNotAllowed(
                f"the program {program} is not allowed here ([policy] allow_commands = {', '.join(self._allowed)})"
            )
        if not matches(program, caller.grant.commands):
            raise CommandNotAllowed(
                f"the token {caller.name!r} is not for the program {program}, only for "
                f"{', '.join(caller.grant.commands)}"
            )

    def _check_variables(self, env: Mapping[str, str], kind: StepKind) -> None:
        for name in env:
            is_path = name == "PATH" and kind is StepKind.SCRIPT
            if is_path or name in _FOREIGN_CODE or name.startswith(_FOREIGN_PREFIXES):
                raise CommandNotAllowed(
                    f"the variable {name} can make any program run another one, and programs are limited here "
                    "([policy] allow_commands); [environment] may set it"
                )


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
