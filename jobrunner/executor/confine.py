"""As whom jobs run, and what each of their processes may take of the machine: `[policy]` of the settings."""

import math
import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from jobrunner.config import Config, Policy
from jobrunner.domain.errors import ConfigError
from jobrunner.executor.bubblewrap import Bubblewrap, find_bubblewrap
from jobrunner.users import User, find_user

Preparation = Callable[[], Any]
"""What a new process does before it executes anything: calls of the system only, no thread is there to free a lock."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """How the processes of jobs are confined; by default not at all.

    Attributes:
        user: whom they run as; None: as the service does.
        limits: of the kernel's resources (``RLIMIT_…``), the soft and the hard one.
        bubblewrap: how they get sandboxes; None: they have none.
    """

    user: User | None = None
    limits: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    bubblewrap: Bubblewrap | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """What jobs get in the place of what the service has."""
        return self.user.environment if self.user is not None else {}

    @property
    def runs_as_root(self) -> bool:
        """Whether jobs are root's."""
        return (self.user.uid if self.user is not None else os.geteuid()) == 0

    def popen_arguments(self, cwd: str, first: Preparation | None) -> dict[str, Any]:
        """Return what `subprocess.Popen` needs for a job besides the ordinary.

        Nothing when there is nothing to do: then a vfork(2) starts it, which costs much less than a fork(2).

        Args:
            cwd: where it starts.
            first: what it does before all else; None: nothing.
        """
        preparations = [first] if first is not None else []
        if self.user is not None:
            # subprocess has changed there as root; the user must be allowed to as well.
            preparations.append(partial(os.chdir, cwd))
        preparations.extend(partial(resource.setrlimit, what, limit) for what, limit in self.limits.items())
        arguments: dict[str, Any] = {"preexec_fn": partial(_do, tuple(preparations))} if preparations else {}
        if self.user is not None:
            arguments.update(user=self.user.uid, group=self.user.gid, extra_groups=list(self.user.groups))
        return arguments

    def try_out(self, directory: str) -> None:
        """Start a process like a job's, which looks whether it reaches a directory.

        Raises:
            ConfigError: that does not work.
        """
        like_a_job = self.popen_arguments("/", None)
        if not like_a_job:
            return
        refusal = _look(like_a_job, 'cd "$1"', directory)
        if refusal is not None and self.user is not None:
            raise ConfigError([f"[policy] run_as = {self.user.name}: this user can't reach {directory}: {refusal}"])
        if refusal is not None:
            raise ConfigError([f"[policy]: a shell does not even start within these limits: {refusal}"])

    def can_use(self, directory: str, *, write: bool) -> bool:
        """Tell whether jobs can enter a directory, and make files there.

        Raises:
            ConfigError: no process can be started.
        """
        words = 'cd "$1" && test -w .' if write else 'cd "$1"'
        return self.user is None or _look(self.popen_arguments("/", None), words, directory) is None


def _look(like_a_job: Mapping[str, Any], words: str, directory: str) -> str | None:
    """Have a shell look at a directory as a job could; return what is wrong.

    Raises:
        ConfigError: no process can be started.
    """
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", words, "sh", directory],
            env={},  # its environment is that user's to read
            cwd="/",
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            **like_a_job,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError([f"[policy]: no process can be started as its settings say: {error}"]) from error
    return done.stderr.strip() if done.returncode != 0 else None


def _do(preparations: Sequence[Preparation]) -> None:
    for prepare in preparations:
        prepare()


def find_confinement(policy: Policy) -> Confinement:
    """Make the settings into what can be done here.

    Raises:
        ConfigError: with everything that can't.
    """
    problems: list[str] = []
    confinement = Confinement(_find_user(policy, problems), dict(_find_limits(policy, problems)))
    if problems:
        raise ConfigError(problems)
    return confinement


def add_sandbox(config: Config, confinement: Confinement) -> Confinement:
    """Add the sandboxes of jobs, where these settings want some.

    Raises:
        ConfigError: none can be made here.
    """
    found = find_bubblewrap(config, confinement.popen_arguments("/", None), as_root=confinement.runs_as_root)
    return replace(confinement, bubblewrap=found)


def check_confinement(config: Config) -> None:
    """See whether jobs can be started here as the settings say.

    Raises:
        ConfigError: with what is in the way.
    """
    confinement = find_confinement(config.policy)
    check_places(config, confinement)
    add_sandbox(config, confinement)


def check_places(config: Config, confinement: Confinement) -> None:
    """See whether scripts of QMD can be run, and can write, where the settings say; what is not there yet is fine.

    Raises:
        ConfigError: the user of jobs can't.
    """
    if config.qmd is None or confinement.user is None:
        return
    name, problems = confinement.user.name, []
    own, store = config.qmd.scripts_dir, config.store_dir
    if own is not None and own.is_dir() and not confinement.can_use(str(own.absolute()), write=False):
        problems.append(f"[dialect:qmd] scripts_dir = {own}: jobs are {name}'s ([policy] run_as), who can't get there")
    if store is not None and store.is_dir() and not confinement.can_use(str(store), write=True):
        words = f"jobs are {name}'s ([policy] run_as), who can't write there: give it to that user, or name another"
        problems.append(f"[dialect:qmd] store_dir = {store}: {words}")
    if problems:
        raise ConfigError(problems)


def _find_user(policy: Policy, problems: list[str]) -> User | None:
    if policy.run_as is None:
        return None
    where = f"[policy] run_as = {policy.run_as}"
    if os.geteuid() != 0:
        problems.append(f"{where}: only root can start jobs as another user; run the service as root, or as that user")
        return None
    try:
        return find_user(policy.run_as)
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None


def _find_limits(policy: Policy, problems: list[str]) -> Iterator[tuple[int, tuple[int, int]]]:
    # The address space last: what sets the others may need some.
    for name in ("cpu", "nofile", "nproc", "fsize", "as"):
        value = getattr(policy, f"rlimit_{name}")
        if value is None:
            continue
        what = getattr(resource, f"RLIMIT_{name.upper()}")
        most = resource.getrlimit(what)[1]
        most = most if most != resource.RLIM_INFINITY else _ENDLESS
        wanted = math.ceil(value)
        if wanted > most:
            problems.append(f"[policy] rlimit_{name} = {value:.15g}: the service itself may have no more than {most}")
            continue
        # At the hard limit of CPU time comes SIGKILL, which does not tell why.
        yield what, (wanted, min(wanted + 1, most) if name == "cpu" else wanted)


_ENDLESS = (1 << 63) - 1
