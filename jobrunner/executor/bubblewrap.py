"""What a job sees of the machine in a sandbox, made by bubblewrap (bwrap(1)): `[policy] sandbox`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobrunner.config import Config
from jobrunner.domain.errors import ConfigError
from jobrunner.executor import inside

_PRIVATE = ("/tmp", "/var/tmp", "/run")  # noqa: S108 each sandbox has its own
"""Directories that each job has for itself, empty at first. Through the sockets in /run much can be had."""

_TRIAL = "import os, sys; os.write(1, b'works')"


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """How sandboxes are made here.

    Attributes:
        program: bwrap.
        python: an interpreter that can be executed in there.
        data_dir: of which nothing is seen but what is the job's; without symbolic links.
        catalogues: directories with scripts, which are seen all the same.
        hidden: files that nothing is seen of.
        network: whether jobs have the machine's.
    """

    program: str
    python: str
    data_dir: str
    catalogues: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    network: bool = True

    def command_line(
        self, scratch: str, source: str, outcome: int, task: int, *, shared: Sequence[str] = ()
    ) -> list[str]:
        """Return what starts a job.

        Args:
            scratch: the job's directory, which can be written to.
            source: the step's, which can be read, if it has one.
            outcome: a descriptor for `inside.run`.
            task: another one.
            shared: more directories that can be written to.
        """
        scratch, source = os.path.realpath(scratch), os.path.realpath(source)
        own = ["--ro-bind-try", source, source, "--bind", scratch, scratch]
        for path in map(os.path.realpath, shared):
            own += ["--bind-try", path, path]
        return self._command_line(own, [_INSIDE, str(outcome), str(task)])

    def _command_line(self, own: Sequence[str], program: Sequence[str]) -> list[str]:
        resolver = os.path.realpath("/etc/resolv.conf")
        words = [self.program, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        for path in _PRIVATE:
            words += ["--tmpfs", path]
        if resolver.startswith("/run/"):
            words += ["--ro-bind-try", resolver, resolver]
        has_data = Path(self.data_dir).is_dir()  # not yet when settings are only checked
        if has_data:
            words += ["--tmpfs", self.data_dir]
        for path in self.catalogues:
            words += ["--ro-bind-try", path, path]
        words += own
        if has_data:
            words += ["--remount-ro", self.data_dir]
        for path in self.hidden:
            words += ["--ro-bind", os.devnull, path]
        # A sandbox outlives its executor: no --die-with-parent.
        words += ["--unshare-pid", "--unshare-ipc", "--cap-drop", "ALL"]
        if not self.network:
            words.append("--unshare-net")
        return [*words, "--", self.python, "-I", "-S", "-c", *program]

    def try_out(self, like_a_job: Mapping[str, Any]) -> str | None:
        """Make a sandbox and do nothing in it; return what is wrong.

        Args:
            like_a_job: of `Confinement.popen_arguments`.
        """
        try:
            done = subprocess.run(
                self._command_line([], [_TRIAL]),
                env={},
                cwd="/",
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                **like_a_job,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
        if done.returncode == 0 and done.stdout == "works":
            return None
        return done.stderr.strip()[:1000] or f"exit code {done.returncode}"


_INSIDE = Path(inside.__file__).read_text(encoding="utf-8")


def find_bubblewrap(config: Config, like_a_job: Mapping[str, Any], *, as_root: bool) -> Bubblewrap | None:
    """Return how jobs get sandboxes by these settings; None: they get none.

    Args:
        config: the settings.
        like_a_job: of `Confinement.popen_arguments`.
        as_root: whether jobs are root's.

    Raises:
        ConfigError: bubblewrap is not here, or does not work here.
    """
    if config.policy.sandbox == "none":
        return None
    where = "[policy] sandbox = bwrap"
    if as_root:
        # It owns much of /proc, core_pattern for one: there it needs no capability.
        raise ConfigError([f"{where}: root gets out of it; set run_as, or run the service as another user"])
    program = shutil.which("bwrap")
    if program is None:
        raise ConfigError([f"{where}: bubblewrap is not installed: there is no program bwrap in PATH"])
    data_dir = os.path.realpath(config.data_dir)
    catalogues = tuple(map(os.path.realpath, config.catalogues))
    for path in (*catalogues, *map(os.path.realpath, filter(None, [config.store_dir]))):
        if os.path.commonpath([path, data_dir]) == path:
            raise ConfigError([f"{where}: {path} is open to jobs, and the data directory, {data_dir}, is in it"])
    settings = os.environ.get("JOBRUNNER_CONFIG")
    reason = None
    # The first may be where a job's user does not come to, or where a sandbox has something else.
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        found = Bubblewrap(
            program,
            python,
            data_dir,
            catalogues,
            (os.path.realpath(settings),) if settings and Path(settings).is_file() else (),
            network=config.policy.sandbox_network,
        )
        refusal = found.try_out(like_a_job)
        if refusal is None:
            return found
        reason = reason or refusal
    raise ConfigError([f"{where}: no sandbox can be made here: {reason}"])
