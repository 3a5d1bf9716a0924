"""The settings of the dialects: ``[dialect:NAME]``, one section for each HTTP dialect that the service can speak."""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobrunner import config_values as read
from jobrunner.config_values import Network, Secret, setting

_LOOPBACK = "127.0.0.0/8, ::1/128"


@dataclass(frozen=True)
class DialectSettings:
    """What every dialect has; those with settings of their own derive from this."""

    enabled: bool = setting(False, read.yes_no, "answer in this dialect, below /NAME")
    port: int | None = setting(None, read.whole(1, 65535), "listen here too, where the dialect is at the root")
    host: str | None = setting(None, read.host, "address for the port; default: that of [server]")
    auth: str = setting("token", read.one_of("token", "none"), "none: whoever asks from allow_from is run_as")
    run_as: str | None = setting(None, read.text, "name of the token that requests without one have")
    allow_from: tuple[Network, ...] = setting(
        read.networks(_LOOPBACK), read.networks, "networks that may ask without a token"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        """Name the keys whose values do not go together with others, and what would be right."""
        if self.auth == "none" and self.run_as is None:
            yield "run_as", "must name a token when auth = none"

    def takes_from(self, address: str | None) -> bool:
        """Tell whether a client at this address may ask without a token; None: nobody knows where it is."""
        if address is None:
            return False
        found = ipaddress.ip_address(address)
        return any(found.version == network.version and found in network for network in self.allow_from)


@dataclass(frozen=True)
class RtotSettings(DialectSettings):
    """``[dialect:rtot]``."""

    secret: Secret | None = setting(None, read.secret, "what clients send: Authorization: rtot SECRET")
    allow_shutdown: bool = setting(False, read.yes_no, "DELETE / stops the service")

    def problems(self) -> Iterator[tuple[str, str]]:
        """See `DialectSettings`."""
        yield from super().problems()
        if self.auth == "token" and self.secret is None:
            yield "secret", "must be set: it is what clients send as their token"


@dataclass(frozen=True)
class HttpRunnerSettings(DialectSettings):
    """``[dialect:http-runner]``."""

    whitelist: tuple[str, ...] = setting((), read.word_list, "the only commands that are run; default: all")
    max_jobs: int = setting(100, read.whole(1), "the newest jobs, which alone are found")


@dataclass(frozen=True)
class QmdSettings(DialectSettings):
    """``[dialect:qmd]``."""

    scripts_dir: Path | None = setting(None, read.path, "what clients can run; default: the catalogue")
    store_dir: Path | None = setting(None, read.path, "QMD_STORE of all scripts; default DATA/store")
    max_exec_time: float = setting(60.0, read.seconds(0.001), "seconds that a script may run")
    keep_temp: bool = setting(False, read.yes_no, "QMD_TMP of an ended script stays, as scratch directories do")

    def store(self, data_dir: Path) -> Path:
        """Return QMD_STORE as an absolute path."""
        return (self.store_dir or data_dir / "store").absolute()


DIALECTS: Mapping[str, type[DialectSettings]] = {
    "go-jobrunner": DialectSettings,
    "http-runner": HttpRunnerSettings,
    "qmd": QmdSettings,
    "rexec": DialectSettings,
    "rtot": RtotSettings,
}
"""By name, which is also the first segment of the path and the `api` of jobs."""

SECTION_PREFIX = "dialect:"

SHORT_NAMES = {"RTOT_SECRET": (f"{SECTION_PREFIX}rtot", "secret")}
"""Names that the environment of an original has, and the setting that each is."""


def contradictions(dialects: Mapping[str, DialectSettings], port: int | None) -> Iterator[tuple[str, str, str]]:
    """Name values that do not go together: section, key, and what would be right.

    Args:
        dialects: those that are enabled.
        port: the service's own; None: it has none.
    """
    taken = {port: "[server]"}
    for name, dialect in dialects.items():
        section = f"{SECTION_PREFIX}{name}"
        for key, problem in dialect.problems():
            yield section, key, problem
        # Which dialect is meant is told by the port alone, whatever the address.
        if dialect.port is not None and (other := taken.setdefault(dialect.port, f"[{section}]")) != f"[{section}]":
            yield section, "port", f"must be another than that of {other}"
