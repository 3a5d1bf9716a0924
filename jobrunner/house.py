"""The parts of the service, each made when it is first needed: database, spool, hints, services. A list, so it is long.

Nothing here opens a file that outlives a fork: a server may load the
application first and fork its workers then.
"""

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jobrunner.clock import utc_now
from jobrunner.config import Config
from jobrunner.config_loading import load_config
from jobrunner.domain.masking import MaskRules
from jobrunner.drain import Drain
from jobrunner.hints import Hints
from jobrunner.log import set_up_logging
from jobrunner.spool import Spool, let_through
from jobrunner.store.engine import Database

if TYPE_CHECKING:
    from jobrunner.executor.confine import Confinement
    from jobrunner.service.access import Access
    from jobrunner.service.audit import Audit
    from jobrunner.service.callbacks import CallbackService
    from jobrunner.service.catalogue import Catalogue
    from jobrunner.service.files import FileService
    from jobrunner.service.gc import GcService
    from jobrunner.service.health import HealthService
    from jobrunner.service.jobs import JobService
    from jobrunner.service.output import OutputService
    from jobrunner.service.submitting import SubmissionService
    from jobrunner.service.timelimits import TimeLimits
    from jobrunner.service.tokens import TokenService
    from jobrunner.service.waiting import Waiters

logger = logging.getLogger("jobrunner")

INHERITED_ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "TZ")
"""What jobs get of the service's own environment; everything else stays with the service."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class House:
    """The parts of the service over one data directory, each made when it is first needed."""

    config: Config

    @property
    def data_dir(self) -> Path:
        """The data directory, absolute."""
        return self.config.data_dir

    @property
    def executor_lock(self) -> Path:
        """The file whose lock the one executor holds."""
        return self.data_dir / "executor.lock"

    @property
    def admin_token_file(self) -> Path:
        """Where the first start leaves the administrator's token."""
        return self.data_dir / "admin.token"

    @property
    def base_environment(self) -> dict[str, str]:
        """The environment of every job, which its own `env` is added to."""
        inherited = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
        return {"PATH": DEFAULT_PATH, **inherited, **self.confinement.environment, **self.config.environment}

    @cached_property
    def database(self) -> Database:
        """The database, which need not exist yet."""
        return Database(self.data_dir / "jobrunner.db", synchronous=self.config.database.synchronous)

    @cached_property
    def spool(self) -> Spool:
        """The directories of jobs."""
        return Spool(self.data_dir, keep_scratch=self.config.storage.keep_scratch, user=self.confinement.user)

    @cached_property
    def confinement(self) -> "Confinement":
        """As whom jobs run, and within which limits.

        Raises:
            ConfigError: that can't be done here.
        """
        from jobrunner.executor.confine import find_confinement

        return find_confinement(self.config.policy)

    @cached_property
    def hints(self) -> Hints:
        """Wake-ups between processes."""
        return Hints(self.data_dir / "run")

    @cached_property
    def drain(self) -> Drain:
        """Whether new jobs are refused."""
        return Drain(self.data_dir / "run" / "draining")

    @cached_property
    def access(self) -> "Access":
        """Who is asking, and what they may do."""
        from jobrunner.service.access import Access

        return Access(self.database, utc_now, self.data_dir / "stream.key")

    @cached_property
    def masks(self) -> MaskRules:
        """What is secret of what jobs are given."""
        return MaskRules(self.config.policy.mask_env, self.config.environment)

    @cached_property
    def audit(self) -> "Audit":
        """The lines of the log that tell who did what."""
        from jobrunner.service.audit import Audit

        return Audit(self.masks)

    @cached_property
    def tokens(self) -> "TokenService":
        """Making and revoking tokens."""
        from jobrunner.service.tokens import TokenService

        return TokenService(self.database, utc_now)

    @cached_property
    def catalogue(self) -> "Catalogue":
        """The scripts that may be run by name."""
        from jobrunner.service.catalogue import Catalogue

        return Catalogue(self.config.scripts_dir)

    @cached_property
    def waiters(self) -> "Waiters":
        """The threads of this process that wait for a job's end."""
        from jobrunner.service.waiting import Waiters

        return Waiters(self.hints, limit=self.config.server.waiters_per_worker, confirm=self.access.confirm)

    @cached_property
    def followers(self) -> "Waiters":
        """The threads of this process that follow a job's output."""
        from jobrunner.service.waiting import Waiters

        return Waiters(
            self.hints,
            limit=self.config.server.followers_per_worker,
            refusal="too many streams are open; ask without follow, or again later",
            confirm=self.access.confirm,
        )

    @cached_property
    def output(self) -> "OutputService":
        """What jobs write."""
        from jobrunner.service.output import OutputService

        return OutputService(self.database, self.spool, self.followers)

    @cached_property
    def health(self) -> "HealthService":
        """Readiness and figures."""
        from jobrunner.service.health import HealthService

        return HealthService(
            self.database,
            self.data_dir,
            self.executor_lock,
            self.drain,
            min_free_bytes=self.config.storage.min_free_bytes,
            slots=self.config.executor.max_running,
        )

    @cached_property
    def jobs(self) -> "JobService":
        """The use cases of jobs that are there."""
        return self.make_jobs()

    def make_jobs(self, *, only_api: str | None = None) -> "JobService":
        """Make the use cases of jobs that are there: of a dialect's only, or of all."""
        from jobrunner.service.jobs import JobService

        return JobService(
            self.database,
            self.spool,
            self.hints,
            self.access,
            self.waiters,
            self.time_limits,
            self.audit,
            only_api=only_api,
            now=utc_now,
        )

    @cached_property
    def time_limits(self) -> "TimeLimits":
        """How long jobs may run."""
        from jobrunner.service.timelimits import TimeLimits

        return TimeLimits(self.config.executor)

    @cached_property
    def submissions(self) -> "SubmissionService":
        """What makes jobs of ``/v1``."""
        return self.make_submissions("v1", self.jobs)

    def make_submissions(self, api: str, jobs: "JobService", *, scripts_dir: Path | None = None) -> "SubmissionService":
        """Make what makes the jobs of ``/v1``, or of a dialect.

        Args:
            api: what they come through.
            jobs: the use cases of those that are there.
            scripts_dir: a catalogue of its own; None: that of all.
        """
        from jobrunner.service.admission import Admission
        from jobrunner.service.catalogue import Catalogue
        from jobrunner.service.commands import CommandRules
        from jobrunner.service.submission import SpecMaker
        from jobrunner.service.submitting import SubmissionService

        return SubmissionService(
            self.database,
            self.hints,
            self.access,
            self.waiters,
            SpecMaker(
                self.time_limits,
                self.config.output,
                self.config.policy,
                CommandRules(self.config.policy.allow_commands, self.base_environment),
                Catalogue(scripts_dir.absolute()) if scripts_dir is not None else self.catalogue,
                self.config.callbacks.policy,
                others=[Catalogue(directory) for directory in self.config.catalogues[1:]],
            ),
            Admission(self.health.check_space, self.drain, max_queued=self.config.executor.max_queued),
            self.audit,
            jobs,
            api=api,
            now=utc_now,
        )

    @cached_property
    def files(self) -> "FileService":
        """The use cases of jobs' files."""
        from jobrunner.service.files import FileService

        return FileService(self.database, self.spool, self.access, utc_now)

    @cached_property
    def callbacks(self) -> "CallbackService":
        """What became of callbacks."""
        from jobrunner.service.callbacks import CallbackService

        return CallbackService(self.database, self.hints, self.access, self.submissions, self.audit, utc_now)

    @cached_property
    def gc(self) -> "GcService":
        """Retention."""
        from jobrunner.service.gc import GcService

        return GcService(self.database, self.spool, utc_now)

    def _make_store(self) -> None:
        store, user = self.config.store_dir, self.confinement.user
        if store is not None and not store.is_dir():
            store.mkdir(parents=True, exist_ok=True)
            if user is not None:
                os.chown(store, user.uid, user.gid)

    def prepare(self) -> None:
        """Make the data directory, bring the schema up to date, make the first token. Safe to call twice at once.

        Raises:
            StorageError, OSError: the data directory can't be used.
        """
        from jobrunner.store.migrate import upgrade

        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        self.spool.set_up()
        if self.config.storage.scripts_dir is None:
            self.config.scripts_dir.mkdir(mode=0o700, exist_ok=True)
        if self.confinement.user is not None:
            # Somebody else's jobs go through here, but can't see what is in it.
            let_through(self.data_dir)
            if self.config.storage.scripts_dir is None:
                let_through(self.config.scripts_dir)
        self._make_store()
        self.database.path.touch(mode=0o600)  # it holds what jobs were given
        upgrade(self.database)
        # A full disk can still take what goes into pages that the file has.
        self.database.checkpoint()
        if self.tokens.ensure_first(self.admin_token_file):
            logger.info("made the token 'admin', see %s", self.admin_token_file)
        self.database.close()  # nothing of it may cross a fork


def open_house(config: Config | None = None) -> House:
    """Read the configuration if it was not given, set up logging, and say what is odd.

    Raises:
        ConfigError: the configuration is wrong.
    """
    config = config or load_config()
    set_up_logging(config.logging.format, config.logging.level)
    for warning in config.warnings:
        logger.warning("%s", warning)
    return House(config)
