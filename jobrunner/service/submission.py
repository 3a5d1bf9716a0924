"""From what a client asked for to what will be run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jobrunner.config import Executor, Output, Policy
from jobrunner.domain.addresses import AddressPolicy
from jobrunner.domain.callback import parse_url
from jobrunner.domain.errors import InvalidRequest, Problem, ShellNotAllowed
from jobrunner.domain.spec import SHELL, Input, InputInfo, InputKind, JobSpec, StepKind, source_interpreter
from jobrunner.domain.states import Priority
from jobrunner.service.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Submission:
    """What a client asked for, as it was asked; each face of the service makes one.

    Attributes:
        kind: in which way it says what to run.
        words: for ``command`` the one text, for ``argv`` the words, for
            ``script`` its name and arguments, for ``source`` nothing.
        source: the text of a ``source``.
        timeout, grace: seconds; None takes the configuration's.
    """

    kind: StepKind
    words: tuple[str, ...] = ()
    source: bytes = b""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
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


class SpecMaker:
    """Applies configuration and policy to submissions.

    Args:
        limits: how long jobs may run.
        output: how much is kept of what they write.
        policy: what they may be.
        catalogue: the scripts that may be run by name.
        receivers: where callbacks may go.
    """

    def __init__(
        self, limits: Executor, output: Output, policy: Policy, catalogue: Catalogue, receivers: AddressPolicy
    ) -> None:
        self._limits = limits
        self._output = output
        self._policy = policy
        self._catalogue = catalogue
        self._receivers = receivers

    def make(self, asked: Submission) -> tuple[JobSpec, list[Input]]:
        """Return the specification of the job, and the content of what came with it.

        Raises:
            InvalidRequest: with everything that is wrong.
            ShellNotAllowed: policy refuses.
        """
        self._check_policy(asked.kind)
        problems = self._limit_problems(asked.timeout, asked.grace)
        problems.extend(self._callback_problems(asked.callback_url))
        inputs = _inputs(asked)
        spec = JobSpec(
            kind=asked.kind,
            argv=self._argv(asked, problems),
            timeout=asked.timeout if asked.timeout is not None else self._limits.default_timeout,
            grace=asked.grace if asked.grace is not None else self._limits.grace,
            env=asked.env,
            cwd=asked.cwd,
            merge_stderr=asked.merge_stderr,
            name=asked.name,
            exclusive=asked.exclusive,
            priority=asked.priority,
            labels=asked.labels,
            inputs=tuple(InputInfo(given.kind, given.name, len(given.content)) for given in inputs),
            callback_url=asked.callback_url,
        )
        problems.extend(spec.problems())
        if problems:
            raise InvalidRequest(problems)
        return spec, inputs

    def _argv(self, asked: Submission, problems: list[Problem]) -> tuple[str, ...]:
        match asked.kind:
            case StepKind.COMMAND:
                return (SHELL, "-c", *asked.words)
            case StepKind.SCRIPT:
                try:
                    return (str(self._catalogue.find(asked.words[0])), *asked.words[1:])
                except InvalidRequest as error:
                    problems.extend(error.problems)
                    return ("-",)
            case StepKind.SOURCE:
                return source_interpreter(asked.source)
            case StepKind.ARGV:
                return asked.words

    def check(self, spec: JobSpec) -> None:
        """Hold a specification of earlier against the configuration and policy of today.

        Raises:
            InvalidRequest, ShellNotAllowed: it would not be accepted now.
        """
        self._check_policy(spec.kind)
        problems = self._limit_problems(spec.timeout, spec.grace)
        problems.extend(self._callback_problems(spec.callback_url))
        if problems:
            raise InvalidRequest(problems)

    def script(self, spec: JobSpec) -> str | None:
        """Return the name of the catalogued script that a job runs; None: it runs something else."""
        return self._catalogue.name_of(spec.argv[0]) if spec.kind is StepKind.SCRIPT else None

    def limits(self) -> dict[str, int | str]:
        """Return what the configuration sets to every job, beyond its time."""
        return {"output_bytes": self._output.max_bytes, "on_output_limit": self._output.on_limit}

    def rule(self, spec: JobSpec) -> str:
        """Name the rule that allows a job, in the words of the configuration."""
        if spec.kind is StepKind.SCRIPT:
            return "catalogue: scripts in [storage] scripts_dir"
        if spec.kind.needs_shell:
            return "[policy] allow_shell = yes"
        return "every program is allowed"

    def _check_policy(self, kind: StepKind) -> None:
        if kind.needs_shell and not self._policy.allow_shell:
            raise ShellNotAllowed

    def _limit_problems(self, timeout: float | None, grace: float | None) -> list[Problem]:
        most = self._limits.max_timeout
        problems: list[Problem] = []
        if timeout is not None and not 0 < timeout <= most:
            problems.append(Problem("#/timeout", f"must be more than 0 and at most {most:g} seconds"))
        problems.extend(self._grace_problems(grace))
        return problems

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

    def checked_grace(self, grace: float | None) -> float | None:
        """Return a grace period as it was given.

        Raises:
            InvalidRequest: it is out of range.
        """
        if problems := self._grace_problems(grace):
            raise InvalidRequest(problems)
        return grace

    def _grace_problems(self, grace: float | None) -> list[Problem]:
        most = self._limits.max_timeout
        if grace is None or 0 <= grace <= most:
            return []
        return [Problem("#/grace", f"must be from 0 to {most:g} seconds")]


def _inputs(asked: Submission) -> list[Input]:
    inputs = [Input(InputKind.FILE, name, content) for name, content in asked.files.items()]
    if asked.stdin:
        inputs.append(Input(InputKind.STDIN, "", asked.stdin))
    if asked.kind is StepKind.SOURCE:
        inputs.append(Input(InputKind.SOURCE, "", asked.source))
    return inputs
