"""From what a client asked for to what will be run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobrunner.config import Output, Policy
from jobrunner.domain.access import Caller
from jobrunner.domain.addresses import AddressPolicy
from jobrunner.domain.callback import parse_url
from jobrunner.domain.errors import InvalidRequest, Problem, ShellNotAllowed
from jobrunner.domain.spec import (
    SHELL,
    Holder,
    Input,
    InputInfo,
    InputKind,
    JobSpec,
    Step,
    StepKind,
    source_interpreter,
    source_name,
    step_pointer,
)
from jobrunner.domain.states import Priority
from jobrunner.service.catalogue import Catalogue
from jobrunner.service.commands import CommandRules, LoadInputs
from jobrunner.service.timelimits import TimeLimits


@dataclass(frozen=True, slots=True)
class StepAsked:
    """What a client asked for one step, as it was asked.

    Attributes:
        kind: in which way it says what to run.
        words: for ``command`` the one text, for ``argv`` the words, for
            ``script`` its name and arguments, for ``source`` nothing.
        source: the text of a ``source``.
        shell: what runs the text of a ``command``.
        timeout: seconds; None: as long as the job may run.
    """

    kind: StepKind
    words: tuple[str, ...] = ()
    source: bytes = b""
    shell: str = SHELL
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    timeout: float | None = None
    name: str | None = None

    @property
    def script(self) -> str | None:
        """The name of the catalogued script that it asks for; None: it asks for something else."""
        return self.words[0] if self.kind is StepKind.SCRIPT else None


@dataclass(frozen=True, slots=True)
class Submission:
    """What a client asked for, as it was asked; each API makes one.

    Attributes:
        steps: what to run, one after the other.
        is_sequence: they were written as an array; else there is one, and its members are the job's.
        env, cwd: of all steps.
        bare_env, make_cwd, paths, result, drops_scratch, doom, holder: as `JobSpec` has them.
        is_cwd_ours: it is not the client who has chosen `cwd`.
        timeout, grace: seconds; None takes the configuration's.
    """

    steps: tuple[StepAsked, ...]
    is_sequence: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    bare_env: bool = False
    cwd: str | None = None
    make_cwd: bool = False
    is_cwd_ours: bool = False
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    merge_stderr: bool = False
    timeout: float | None = None
    grace: float | None = None
    name: str | None = None
    exclusive: bool = False
    priority: Priority = Priority.NORMAL
    labels: Mapping[str, str] = field(default_factory=dict)
    callback_url: str | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    result: str | None = None
    drops_scratch: bool = False
    doom: str | None = None
    holder: Holder | None = None


class SpecMaker:
    """Applies configuration and policy to submissions.

    Args:
        limits: how long jobs may run.
        output: how much is kept of what they write.
        policy: what they may be.
        commands: which programs they may run.
        catalogue: the scripts that may be run by name.
        others: catalogues whose scripts may only be run again.
        receivers: where callbacks may go.
    """

    def __init__(
        self,
        limits: TimeLimits,
        output: Output,
        policy: Policy,
        commands: CommandRules,
        catalogue: Catalogue,
        receivers: AddressPolicy,
        others: Sequence[Catalogue] = (),
    ) -> None:
        self._limits = limits
        self._output = output
        self._policy = policy
        self._commands = commands
        self._catalogue = catalogue
        self._receivers = receivers
        self._others = others

    @property
    def longest(self) -> Mapping[str, float]:
        """Most seconds that a ``timeout`` and a ``grace`` period may have."""
        return self._limits.longest

    def make(self, asked: Submission, caller: Caller) -> tuple[JobSpec, list[Input]]:
        """Return the specification of the job, and the content of what came with it.

        Raises:
            InvalidRequest: with everything that is wrong.
            ShellNotAllowed, CommandNotAllowed: policy refuses, or the caller's token.
        """
        self._check_policy(asked.steps)
        problems = self._problems(asked)
        inputs = _inputs(asked)
        spec = JobSpec(
            steps=self._steps(asked, problems),
            timeout=asked.timeout if asked.timeout is not None else self._limits.default_timeout,
            grace=asked.grace if asked.grace is not None else self._limits.default_grace,
            env=asked.env,
            bare_env=asked.bare_env,
            cwd=asked.cwd,
            make_cwd=asked.make_cwd,
            merge_stderr=asked.merge_stderr,
            name=asked.name,
            exclusive=asked.exclusive,
            priority=asked.priority,
            labels=asked.labels,
            inputs=tuple(InputInfo(given.kind, given.name, len(given.content)) for given in inputs),
            callback_url=asked.callback_url,
            paths=asked.paths,
            result=asked.result,
            drops_scratch=asked.drops_scratch,
            doom=asked.doom,
            holder=asked.holder,
        )
        problems.extend(spec.problems(is_sequence=asked.is_sequence))
        if problems:
            raise InvalidRequest(problems)
        return self._commands.judge(spec, caller, lambda: inputs, is_sequence=asked.is_sequence), inputs

    def _steps(self, asked: Submission, problems: list[Problem]) -> tuple[Step, ...]:
        return tuple(
            Step(
                kind=step.kind,
                argv=self._argv(
                    step,
                    self._catalogue,
                    step_pointer(index, is_sequence=asked.is_sequence),
                    problems,
                    doomed=asked.doom is not None,
                ),
                env=step.env,
                cwd=step.cwd,
                timeout=step.timeout,
                name=step.name,
            )
            for index, step in enumerate(asked.steps)
        )

    def _argv(
        self, asked: StepAsked, catalogue: Catalogue, at: str, problems: list[Problem], *, doomed: bool
    ) -> tuple[str, ...]:
        match asked.kind:
            case StepKind.COMMAND:
                return (asked.shell, "-c", *asked.words)
            case StepKind.SCRIPT if doomed:
                return (str(catalogue.directory / asked.words[0]), *asked.words[1:])
            case StepKind.SCRIPT:
                try:
                    return (str(catalogue.find(asked.words[0])), *asked.words[1:])
                except InvalidRequest as error:
                    problems.extend(
                        Problem(at + found.pointer.removeprefix("#"), found.detail) for found in error.problems
                    )
                    return ("-",)
            case StepKind.SOURCE:
                return source_interpreter(asked.source)
            case StepKind.ARGV:
                return asked.words

    def check(self, spec: JobSpec, caller: Caller, load_inputs: LoadInputs) -> JobSpec:
        """Hold a specification of earlier against the configuration and policy of today.

        Args:
            spec: of a job.
            caller: who would submit it again.
            load_inputs: returns what came with it; called only if that matters.

        Returns:
            What would be run today.

        Raises:
            InvalidRequest, ShellNotAllowed, CommandNotAllowed: it would not be accepted now.
        """
        self._check_policy(spec.steps)
        problems = self._problems(spec)
        steps = tuple(self._find_again(spec, index, problems) for index in range(len(spec.steps)))
        spec = replace(spec, steps=steps, holder=None)  # nobody listens to it as the client of then did
        if problems:
            raise InvalidRequest(problems)
        return self._commands.judge(spec, caller, load_inputs, is_sequence=len(spec.steps) > 1)

    def _find_again(self, spec: JobSpec, index: int, problems: list[Problem]) -> Step:
        """Return a step as it would be today: what was a catalogued script then has to be one now."""
        step = spec.steps[index]
        name = self.script(step)
        if name is None:
            return step
        asked = StepAsked(step.kind, (name, *step.argv[1:]))
        at = step_pointer(index, is_sequence=len(spec.steps) > 1)
        catalogue = self._catalogue_of(step)
        return replace(step, argv=self._argv(asked, catalogue, at, problems, doomed=spec.doom is not None))

    def script(self, step: Step) -> str | None:
        """Return the name of the catalogued script that a step runs; None: it runs something else."""
        return self._catalogue_of(step).name_of(step.argv[0]) if step.kind is StepKind.SCRIPT else None

    def _catalogue_of(self, step: Step) -> Catalogue:
        """Return the catalogue that a script of earlier was found in; ours, if that is none any more."""
        path = step.argv[0]
        mine = (catalogue for catalogue in (self._catalogue, *self._others) if catalogue.name_of(path) != path)
        return next(mine, self._catalogue)

    def limits(self) -> dict[str, int | str]:
        """Return what the configuration sets to every job, beyond its time."""
        return {"output_bytes": self._output.max_bytes, "on_output_limit": self._output.on_limit}

    def rule(self, step: Step, caller: Caller) -> str:
        """Name the rule that allows a step, in the words of the configuration."""
        if step.kind is StepKind.SCRIPT:
            return "catalogue: scripts in [storage] scripts_dir"
        rules = ["[policy] allow_shell = yes" if step.kind.needs_shell else None, self._commands.rule(step, caller)]
        return ", ".join(filter(None, rules)) or "every program is allowed"

    def _check_policy(self, steps: Iterable[Step | StepAsked]) -> None:
        if not self._policy.allow_shell and any(step.kind.needs_shell for step in steps):
            raise ShellNotAllowed

    def _problems(self, asked: Submission | JobSpec) -> list[Problem]:
        """Name what the configuration of today does not allow."""
        return [*self._limits.problems(asked), *self._callback_problems(asked.callback_url)]

    def _callback_problems(self, url: str | None) -> Iterator[Problem]:
        """Name what is wrong with the URL of a callback, as far as that is known without looking its host up."""
        if url is None:
            return
        try:
            problem = self._receivers.host_problem(parse_url(url).host)
        except ValueError as error:
            problem = str(error)
        if problem is not None:
            yield Problem("#/callback_url", problem)


def _inputs(asked: Submission) -> list[Input]:
    inputs = [Input(InputKind.FILE, name, content) for name, content in asked.files.items()]
    if asked.stdin:
        inputs.append(Input(InputKind.STDIN, "", asked.stdin))
    inputs.extend(
        Input(InputKind.SOURCE, source_name(index), step.source)
        for index, step in enumerate(asked.steps)
        if step.kind is StepKind.SOURCE
    )
    return inputs
