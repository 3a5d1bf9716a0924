"""Who is asking, and what they may do: tokens, and the one function that decides about jobs."""

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from itsdangerous import BadData, URLSafeSerializer

from jobrunner.clock import Now
from jobrunner.domain.errors import InvalidRequest, JobNotFound, TokenExists, TokenNotFound, Unauthenticated
from jobrunner.domain.ids import parse_job_reference
from jobrunner.domain.job import Job
from jobrunner.secretfile import load_secret, write_secret
from jobrunner.store import jobs as job_store
from jobrunner.store import tokens as store
from jobrunner.store.engine import Connection, Database
from jobrunner.store.tokens import Token

CACHE_SECONDS = 2.0
"""How long a revoked token may still be taken by a worker that knew it."""

STREAM_SECONDS = 600.0
"""How long a URL of a job's events is valid."""

FIRST_NAME = "admin"

LOCAL_NAME = "local"
"""Who reads the data directory without asking the service."""

RESERVED_NAMES = frozenset({LOCAL_NAME, "service"})
"""Who acts without a token, the service itself among them: ``cancel.by`` and ``owner`` must not be taken for one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking. Every token is an administrator's: it sees and touches all jobs.

    Attributes:
        name: of their token.
        connection: the descriptor of the socket they ask by, which tells when they have gone; None: there is none.
    """

    name: str
    connection: int | None = field(default=None, compare=False)


class Access:
    """Decides about callers. One object serves all threads of a process.

    Args:
        database: has the tokens.
        now: the clock.
        key_file: has the key that URLs are signed with; made when it is first needed.
    """

    def __init__(self, database: Database, now: Now, key_file: Path) -> None:
        self._database = database
        self._key_file = key_file
        self._now = now
        self._known: list[Token] = []
        self._known_at = float("-inf")
        self._lock = threading.Lock()

    def authenticate(self, secret: str) -> Caller:
        """Find out whose token this is.

        Raises:
            Unauthenticated: nobody's.
        """
        sha256 = _hash(secret)
        if time.monotonic() - self._known_at < CACHE_SECONDS and (caller := self._match(sha256)):
            return caller
        self._load()
        if caller := self._match(sha256):
            return caller
        raise Unauthenticated("this token is not known")

    def sign_stream(self, job_id: str, caller: Caller) -> tuple[str, datetime]:
        """Make a signature that stands for the caller's token, for the events of one job, and until this time."""
        expires_at = self._now() + timedelta(seconds=STREAM_SECONDS)
        signature = self._stream_signer().dumps([job_id, caller.name, expires_at.timestamp()])
        assert isinstance(signature, str)
        return signature, expires_at

    def authenticate_stream(self, signature: str, job_id: str) -> Caller:
        """Find out who has signed for the events of this job.

        Raises:
            Unauthenticated: nobody, somebody for another job or too long ago, or their token was revoked.
        """
        try:
            signed_id, name, expires_at = self._stream_signer().loads(signature)
        except BadData:
            raise Unauthenticated("this URL is not signed by this service; ask for a new one: stream-url") from None
        if signed_id != job_id:
            raise Unauthenticated("this URL is signed for the events of another job")
        if self._now().timestamp() >= expires_at:
            raise Unauthenticated("this URL was valid for some minutes only; ask for a new one: stream-url")
        if time.monotonic() - self._known_at >= CACHE_SECONDS:
            self._load()
        if all(token.name != name for token in self._known):
            raise Unauthenticated("the token behind this URL was revoked")
        return Caller(name)

    def _stream_signer(self) -> URLSafeSerializer:
        return URLSafeSerializer(
            load_secret(self._key_file), salt="events", signer_kwargs={"digest_method": hashlib.sha256}
        )

    def _load(self) -> None:
        with self._lock, self._database.read() as connection:
            self._known = store.list_tokens(connection)
            self._known_at = time.monotonic()

    def job_for(self, connection: Connection, reference: str, caller: Caller) -> Job:
        """Return a job that the caller may see and touch. Every path to a job goes through here.

        Args:
            connection: where to look.
            reference: the job's uuid or number, as the client wrote it.
            caller: who is asking.

        Raises:
            JobNotFound: no job has this id, or it is not the caller's.
        """
        del caller  # every token is an administrator's
        key = parse_job_reference(reference)
        job = job_store.find_job(connection, key) if key is not None else None
        if job is None:
            raise JobNotFound
        return job

    def _match(self, sha256: str) -> Caller | None:
        # All of them are compared, each in constant time, so that the time
        # taken tells nothing about the token that was nearly right.
        found = None
        for token in self._known:
            if hmac.compare_digest(token.sha256, sha256):
                found = Caller(token.name)
        return found

    # ── tokens ──

    def create_token(self, name: str) -> str:
        """Make a token; its text is returned now and never again.

        Raises:
            TokenExists: the name is taken.
            InvalidRequest: the name can't be one.
        """
        if name in RESERVED_NAMES:
            raise InvalidRequest.at("#/name", f"{name!r} is what the service calls itself; take another one")
        if not name or len(name) > 128 or not name.isprintable():
            raise InvalidRequest.at("#/name", "must have 1 to 128 printable characters")
        secret = _make_secret()
        with self._database.write(durable=True) as connection:
            if store.has_token(connection, name):
                raise TokenExists(name)
            store.add_token(connection, Token(name, _hash(secret), self._now()))
        return secret

    def list_tokens(self) -> list[Token]:
        """Return all tokens by name."""
        with self._database.read() as connection:
            return store.list_tokens(connection)

    def revoke_token(self, name: str) -> None:
        """Make a token worthless; running workers notice within `CACHE_SECONDS`.

        Raises:
            TokenNotFound: there is none of this name.
        """
        with self._database.write(durable=True) as connection:
            if not store.remove_token(connection, name):
                raise TokenNotFound(name)

    def ensure_first_token(self, path: Path) -> bool:
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
            store.add_token(connection, Token(FIRST_NAME, _hash(secret), self._now()))
            # Inside the transaction: a token whose file could not be written is never stored.
            write_secret(path, secret)
        return True


def _make_secret() -> str:
    return f"jr_{secrets.token_urlsafe(32)}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
