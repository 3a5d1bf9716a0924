"""Who asks, and what they may do."""

from dataclasses import dataclass, field
from enum import StrEnum

from jobrunner.domain.patterns import matches

TOKEN_PREFIX = "jr_"  # noqa: S105 of all tokens
"""What the text of every token begins with, so that it is known for one wherever it turns up."""


class Scope(StrEnum):
    """What a token is for."""

    READ = "read"
    """Look."""

    RUN = "run"
    """Submit catalogued scripts."""

    EXEC = "exec"
    """Submit anything."""

    CANCEL = "cancel"
    """End jobs, signal and forget them."""

    ADMIN = "admin"
    """Everything, with the jobs of all owners."""


_IMPLIED = {Scope.ADMIN: frozenset(Scope), Scope.EXEC: frozenset({Scope.EXEC, Scope.RUN})}

EVERYTHING = ("*",)

NO_COMMANDS = ("none",)
"""Matches no path, for all paths begin with a slash."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows.

    Attributes:
        scopes: as they were given; `allows` knows what they imply.
        all_jobs: whether the jobs of others are shown and touched as well.
        scripts: patterns (fnmatch) of the catalogued scripts that may be submitted.
        commands: patterns of the programs that may be run, by the absolute paths of their files.
        images: patterns (fnmatch) of the container images that jobs may run in.
    """

    scopes: frozenset[Scope]
    all_jobs: bool = False
    scripts: tuple[str, ...] = EVERYTHING
    commands: tuple[str, ...] = EVERYTHING
    images: tuple[str, ...] = EVERYTHING

    def allows(self, scope: Scope) -> bool:
        """Tell whether something that needs this scope may be done."""
        return any(scope in _IMPLIED.get(given, {given}) for given in self.scopes)

    def allows_script(self, name: str) -> bool:
        """Tell whether this script may be submitted."""
        return matches(name, self.scripts)

    def allows_image(self, name: str) -> bool:
        """Tell whether jobs may run in this container image."""
        return matches(name, self.images)

    @property
    def allows_all_commands(self) -> bool:
        """Whether any program may be run, as far as that depends on the token."""
        return "*" in self.commands

    @property
    def sees_all(self) -> bool:
        """Whether the jobs of others are shown and touched as well."""
        return self.all_jobs or Scope.ADMIN in self.scopes

    def describe(self) -> dict[str, object]:
        """Say what it allows, by the names that lists of tokens and the audit have for it."""
        return {
            "scopes": sorted(self.scopes),
            "all_jobs": self.sees_all,
            "scripts": list(self.scripts),
            "commands": list(self.commands),
            "images": list(self.images),
        }


ADMINISTRATOR = Grant(frozenset({Scope.ADMIN}))

NOTHING = Grant(frozenset())


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking.

    Attributes:
        name: of their token; owner of what they submit.
        grant: what the token allows.
        connection: the descriptor of the socket they ask by, which tells when they have gone; None: there is none.
        credential: the SHA-256 of the token; None: they need none.
        address: where they ask from, as far as that is known.
        route: method and route of their request; None: it is none.
    """

    name: str
    grant: Grant = NOTHING
    connection: int | None = field(default=None, compare=False)
    credential: str | None = field(default=None, compare=False, repr=False)
    address: str | None = field(default=None, compare=False)
    route: str | None = field(default=None, compare=False)

    def sees(self, owner: str) -> bool:
        """Tell whether jobs of this owner are shown to them."""
        return owner == self.name or self.grant.sees_all
