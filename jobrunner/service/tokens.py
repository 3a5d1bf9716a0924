"""Making and revoking tokens."""

import hashlib
import os
import secrets
from datetime import timedelta
from pathlib import Path

from jobrunner.clock import Now
from jobrunner.domain.access import ADMINISTRATOR, TOKEN_PREFIX, Caller, Grant, Scope
from jobrunner.domain.errors import InvalidRequest, TokenExists, TokenNotFound
from jobrunner.domain.patterns import pattern_problem
from jobrunner.secretfile import write_secret
from jobrunner.service.audit import Audit
from jobrunner.store import tokens as store
from jobrunner.store.engine import Database
from jobrunner.store.tokens import Token

FIRST_NAME = "admin"

LOCAL_NAME = "local"
"""Who reads the data directory without asking the service."""

SERVICE_NAME = "service"
"""The service itself."""

RESERVED_NAMES = frozenset({LOCAL_NAME, SERVICE_NAME})
"""Who acts without a token, the service itself among them: ``cancel.by`` and ``owner`` must not be taken for one."""


class TokenService:
    """Keeps the tokens. Works with the server up or down."""

    def __init__(self, database: Database, now: Now) -> None:
        self._database = database
        self._now = now
        self._audit = Audit()

    def create(self, name: str, grant: Grant, *, valid_for: float | None = None) -> str:
        """Make a token; its text is returned now and never again.

        Args:
            name: whose it is; also the owner of the jobs that are submitted with it.
            grant: what it allows.
            valid_for: seconds; None: until it is revoked.

        Raises:
            TokenExists: the name is taken.
            InvalidRequest: the name can't be one, or it would allow nothing.
        """
        if name in RESERVED_NAMES:
            raise InvalidRequest.at("#/name", f"{name!r} is what the service calls itself; take another one")
        if not name or len(name) > 128 or not name.isprintable():
            raise InvalidRequest.at("#/name", "must have 1 to 128 printable characters")
        if not grant.scopes:
            raise InvalidRequest.at("#/scopes", f"must have at least one of {', '.join(Scope)}")
        if problems := [problem for pattern in grant.commands if (problem := pattern_problem(pattern))]:
            raise InvalidRequest.at("#/commands", "; ".join(problems))
        secret = _make_secret()
        now = self._now()
        expires_at = now + timedelta(seconds=valid_for) if valid_for is not None else None
        with self._database.write(durable=True) as connection:
            if store.has_token(connection, name):
                raise TokenExists(name)
            store.add_token(connection, Token(name, hash_secret(secret), now, grant, expires_at))
        self._audit.token("token-create", _by(LOCAL_NAME), name, grant, valid_for=valid_for)
        return secret

    def list(self) -> list[Token]:
        """Return all tokens by name, those too that have expired."""
        with self._database.read() as connection:
            return store.list_tokens(connection)

    def revoke(self, name: str) -> None:
        """Make a token worthless; running workers notice within seconds.

        Raises:
            TokenNotFound: there is none of this name.
        """
        with self._database.write(durable=True) as connection:
            if not store.remove_token(connection, name):
                raise TokenNotFound(name)
        self._audit.token("token-revoke", _by(LOCAL_NAME), name)

    def ensure_first(self, path: Path) -> bool:
        """When there is no token at all, make the administrator's and write it to this file (0600).

        Returns:
            Whether one was made.
        """
        with self._database.read() as connection:
            if store.list_tokens(connection):
                return False
        with self._database.write(durable=True) as connection:
            if store.list_tokens(connection):
                return False  # another process was faster
            secret = _make_secret()
            store.add_token(connection, Token(FIRST_NAME, hash_secret(secret), self._now(), ADMINISTRATOR))
            # Inside the transaction: a token whose file could not be written is never stored.
            write_secret(path, secret)
        self._audit.token("token-create", _by(SERVICE_NAME), FIRST_NAME, ADMINISTRATOR)
        return True


def _by(name: str) -> Caller:
    """Return who works on the database itself: which user of this machine."""
    return Caller(name, address=f"uid:{os.getuid()}")


def hash_secret(secret: str) -> str:
    """Return what is stored of a token's text."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def _make_secret() -> str:
    return f"{TOKEN_PREFIX}{secrets.token_urlsafe(32)}"
