"""Settings as typed, frozen values; `jobrunner.config_loading` reads them.

``config.example.ini`` is the manual of the settings; a test proves that it
names every one of them with its real default. Each setting is described once,
by a field of the dataclasses below, which is what makes this long.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from jobrunner import config_values as read
from jobrunner.config_dialects import DIALECTS, SECTION_PREFIX, DialectSettings, QmdSettings
from jobrunner.config_values import Secret
from jobrunner.config_values import setting as _setting
from jobrunner.domain.access import EVERYTHING
from jobrunner.domain.addresses import AddressPolicy, Rule

_DENY = (
    "169.254.0.0/16, fe80::/10, 0.0.0.0/8, ::, 224.0.0.0/4, ff00::/8,"
    " fd00:ec2::/32, fd20:ce::254, 100.100.100.200, 168.63.129.16, 192.0.0.192"
)
"""Link-local, unspecified and multicast addresses; and where clouds tell a machine its secrets besides."""


_MASK = "*TOKEN*, *SECRET*, *PASSW*, *PASSPHRASE*, *KEY*, *CREDENTIAL*, *COOKIE*, *DSN*, *DATABASE_URL*"
"""Names of variables that mostly have a secret in them."""


@dataclass(frozen=True)
class Server:
    """``[server]``: HTTP."""

    host: str = _setting("127.0.0.1", read.host, "address to listen on")
    port: int = _setting(8080, read.whole(0, 65535), "0 takes a free one")
    unix_socket: Path | None = _setting(None, read.path, "listen on this socket instead")
    workers: int = _setting(2, read.whole(1, 256), "processes that answer requests")
    threads: int = _setting(8, read.whole(1, 1024), "for ordinary requests, in each worker")
    pin_workers: bool = _setting(True, read.yes_no, "each worker on a CPU of its own, if there are enough")
    max_followers: int = _setting(64, read.whole(0, 4096), "streams of output that are followed, over all workers")
    max_waiters: int = _setting(64, read.whole(0, 4096), "requests that wait for a job's end, over all workers")
    max_wait: float = _setting(60.0, read.seconds(), "ceiling of Prefer: wait")
    max_body_bytes: int = _setting(16777216, read.size(1), "largest request body")
    allowed_hosts: tuple[str, ...] = _setting((), read.names, "names of this service besides loopback and bind")
    trusted_proxies: int = _setting(0, read.whole(0, 16), "proxies in front whose X-Forwarded-* are believed")

    @property
    def waiters_per_worker(self) -> int:
        """Each worker's share of `max_waiters`."""
        return -(-self.max_waiters // self.workers)

    @property
    def followers_per_worker(self) -> int:
        """Each worker's share of `max_followers`."""
        return -(-self.max_followers // self.workers)


@dataclass(frozen=True)
class Database:
    """``[database]``."""

    synchronous: str = _setting("full", read.one_of("full", "normal"), "for the commit that acknowledges a submission")


@dataclass(frozen=True)
class Storage:
    """``[storage]``: where things are kept."""

    data_dir: Path = _setting(Path("./data"), read.path, "relative to the current directory")
    scripts_dir: Path | None = _setting(None, read.path, "the catalogue; default DATA/scripts")
    work_dir: Path | None = _setting(None, read.path, "where rexec's relative cwd begin; default data_dir")
    keep_scratch: bool = _setting(True, read.yes_no, "until the job is purged; no: only until it has ended")
    min_free_bytes: int = _setting(104857600, read.size(), "below this, nothing is accepted")


@dataclass(frozen=True)
class Executor:
    """``[executor]``: how jobs run."""

    max_running: int = _setting(16, read.whole(1, 1024), "jobs at a time")
    max_queued: int = _setting(10000, read.whole(1), "jobs that may wait; beyond, a submission is answered with 503")
    default_timeout: float = _setting(3600.0, read.seconds(0.001), "seconds a job may run if it does not say")
    max_timeout: float = _setting(86400.0, read.seconds(0.001), "most seconds a job may ask for")
    grace: float = _setting(10.0, read.seconds(), "seconds between SIGTERM and SIGKILL if a job does not say")
    max_grace: float = _setting(3600.0, read.seconds(), "most seconds of these that a job may ask for")
    on_stop: str = _setting("keep", read.one_of("keep", "kill"), "what SIGTERM of the service does to running jobs")
    cgroup: str = _setting(
        "auto", read.cgroup, "where each job gets a control group of its own: auto, no, or a directory"
    )
    kill_leftovers: bool = _setting(
        True, read.yes_no, "end what an ended job has left behind, in whatever group or session"
    )


@dataclass(frozen=True)
class Output:
    """``[output]``: how much of what a job writes is kept."""

    max_bytes: int = _setting(67108864, read.size(16384), "most that is kept of each stream of a job")
    on_limit: str = _setting(
        "drop-middle", read.one_of("drop-middle", "kill"), "what happens to a job that writes more"
    )


@dataclass(frozen=True)
class Auth:
    """``[auth]``: what becomes of those who send wrong tokens."""

    max_failures: int = _setting(10, read.whole(1), "wrong tokens of one address in a window, in each worker")
    failure_window: float = _setting(60.0, read.seconds(1), "seconds")


@dataclass(frozen=True)
class Policy:
    """``[policy]``: what jobs may be."""

    allow_shell: bool = _setting(True, read.yes_no, "accept command and source")
    allow_commands: tuple[str, ...] = _setting(EVERYTHING, read.commands, "patterns of the programs that may be run")
    mask_env: tuple[str, ...] = _setting(
        read.patterns(_MASK), read.patterns, "variables of jobs whose values are hidden in the log"
    )
    sandbox: str = _setting("none", read.one_of("none", "bwrap"), "what each job runs in")
    sandbox_network: bool = _setting(True, read.yes_no, "whether sandboxes have the machine's network")
    run_as: str | None = _setting(None, read.user, "user[:group] of the jobs; needs a service that runs as root")
    rlimit_as: int | None = _setting(None, read.size(1), "address space of each process of a job")
    rlimit_cpu: float | None = _setting(None, read.seconds(1), "CPU time of each process of a job")
    rlimit_nofile: int | None = _setting(None, read.whole(16), "open files of each process of a job")
    rlimit_nproc: int | None = _setting(None, read.whole(1), "processes and threads of the jobs' user")
    rlimit_fsize: int | None = _setting(None, read.size(1), "longest file that a job can write")

    @property
    def confines(self) -> bool:
        """Whether jobs run in another way than as the service itself does."""
        limits = (self.rlimit_as, self.rlimit_cpu, self.rlimit_nofile, self.rlimit_nproc, self.rlimit_fsize)
        return self.sandbox != "none" or self.run_as is not None or any(limit is not None for limit in limits)


@dataclass(frozen=True)
class Callbacks:
    """``[callbacks]``: who is told of the end of jobs, and how."""

    secret: tuple[Secret, ...] = _setting(
        (), read.secrets, "signs (Standard Webhooks); several while one replaces another"
    )
    schedule: tuple[float, ...] = _setting(
        (0.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21600.0, 86400.0), read.schedule, "seconds before each attempt"
    )
    timeout: float = _setting(15.0, read.seconds(0.1), "seconds for an attempt, all in all")
    max_sending: int = _setting(32, read.whole(1, 1024), "attempts at a time")
    max_per_receiver: int = _setting(8, read.whole(1, 1024), "attempts at a time to one host and port")
    allow: tuple[Rule, ...] = _setting((), read.rules, "hosts and networks; only these")
    deny: tuple[Rule, ...] = _setting(read.rules(_DENY), read.rules, "hosts and networks; not these, though allowed")

    @property
    def policy(self) -> AddressPolicy:
        """Where callbacks may go."""
        return AddressPolicy(self.allow, self.deny)


@dataclass(frozen=True)
class Gc:
    """``[gc]``: how long ended jobs are kept."""

    keep: int = _setting(10000, read.whole(0), "ended jobs")
    max_age: float = _setting(2592000.0, read.seconds(), "seconds since the end")
    max_bytes: int = _setting(10737418240, read.size(), "disk blocks of all ended jobs")


@dataclass(frozen=True)
class Logging:
    """``[logging]``."""

    format: str = _setting("text", read.one_of("text", "json"), "one line a record either way")
    level: str = _setting("info", read.one_of("debug", "info", "warning", "error"), "least level that is written")


@dataclass(frozen=True)
class Config:
    """All settings.

    Attributes:
        environment: the ``[environment]`` section: added to every job's base environment.
        dialects: the ``[dialect:NAME]`` sections by name, also of those that are not enabled.
        warnings: what is odd but harmless, for the log.
    """

    server: Server = field(default_factory=Server)
    database: Database = field(default_factory=Database)
    storage: Storage = field(default_factory=Storage)
    executor: Executor = field(default_factory=Executor)
    output: Output = field(default_factory=Output)
    environment: Mapping[str, str] = field(default_factory=dict)
    auth: Auth = field(default_factory=Auth)
    policy: Policy = field(default_factory=Policy)
    callbacks: Callbacks = field(default_factory=Callbacks)
    gc: Gc = field(default_factory=Gc)
    logging: Logging = field(default_factory=Logging)
    dialects: Mapping[str, DialectSettings] = field(
        default_factory=lambda: {name: kind() for name, kind in DIALECTS.items()}
    )
    warnings: tuple[str, ...] = ()

    @cached_property
    def data_dir(self) -> Path:
        """The data directory as an absolute path."""
        return self.storage.data_dir.absolute()

    @cached_property
    def scripts_dir(self) -> Path:
        """The script catalogue as an absolute path."""
        return (self.storage.scripts_dir or self.data_dir / "scripts").absolute()

    @property
    def qmd(self) -> QmdSettings | None:
        """The settings of QMD; None: that dialect is not spoken."""
        found = self.dialects["qmd"]
        return found if found.enabled and isinstance(found, QmdSettings) else None

    @property
    def catalogues(self) -> tuple[Path, ...]:
        """Every directory with scripts that can be run by name: the catalogue first, then a dialect's own."""
        own = self.qmd.scripts_dir if self.qmd is not None else None
        return (self.scripts_dir, own.absolute()) if own is not None else (self.scripts_dir,)

    @property
    def store_dir(self) -> Path | None:
        """What scripts of QMD write to, besides their own directories; None: there are none."""
        return self.qmd.store(self.data_dir) if self.qmd is not None else None

    @cached_property
    def work_dir(self) -> Path:
        """Where relative working directories begin that clients of a dialect name, as an absolute path."""
        return (self.storage.work_dir or self.storage.data_dir).absolute()

    @property
    def bind(self) -> str:
        """Where to listen, as gunicorn writes it."""
        if self.server.unix_socket:
            return f"unix:{self.server.unix_socket.absolute()}"
        return f"{_url_host(self.server.host)}:{self.server.port}"

    @property
    def enabled_dialects(self) -> Mapping[str, DialectSettings]:
        """The dialects that are spoken, by name."""
        return {name: dialect for name, dialect in self.dialects.items() if dialect.enabled}

    @property
    def dialect_binds(self) -> Mapping[str, tuple[str, int]]:
        """Where a dialect is at the root: address and port, by how gunicorn writes them."""
        found = ((dialect.host or self.server.host, dialect.port) for dialect in self.enabled_dialects.values())
        return {f"{_url_host(host)}:{port}": (host, port) for host, port in found if port is not None}

    @property
    def binds(self) -> list[str]:
        """Where to listen at all."""
        return [self.bind, *self.dialect_binds]

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the service over TCP."""
        unspecified = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 compared, not bound
        return f"http://{unspecified.get(self.server.host, _url_host(self.server.host))}:{self.server.port}"

    def section(self, name: str) -> Any:
        """Return the values of a section of `SECTIONS`."""
        if name.startswith(SECTION_PREFIX):
            return self.dialects[name.removeprefix(SECTION_PREFIX)]
        return getattr(self, name)


def _url_host(host: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(host)}]"
    except ValueError:
        return host


SECTIONS: dict[str, type[Any]] = {
    "server": Server,
    "database": Database,
    "storage": Storage,
    "executor": Executor,
    "output": Output,
    "auth": Auth,
    "policy": Policy,
    "callbacks": Callbacks,
    "gc": Gc,
    "logging": Logging,
    **{f"{SECTION_PREFIX}{name}": kind for name, kind in DIALECTS.items()},
}


def environment_name(section: str, key: str) -> str:
    """Return the environment variable that sets this key."""
    return "JOBRUNNER_" + re.sub(r"[^A-Z0-9]", "_", f"{section}_{key}".upper())


def settings() -> Iterator[tuple[str, Field[Any]]]:
    """Name every setting that there is: its section and its field."""
    for section, kind in SECTIONS.items():
        for setting in fields(kind):
            yield section, setting
