"""Who is asking, and the one place that decides what they may do."""

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from itsdangerous import BadData, URLSafeSerializer

from jobrunner.clock import Now
from jobrunner.domain.access import Caller, Grant, Scope
from jobrunner.domain.errors import Forbidden, JobNotFound, StorageError, Unauthenticated
from jobrunner.domain.ids import parse_job_reference
from jobrunner.domain.job import DialectNumber, Job
from jobrunner.secretfile import load_secret
from jobrunner.service.tokens import hash_secret
from jobrunner.store import jobs as job_store
from jobrunner.store import tokens as store
from jobrunner.store.dialects import find_numbered
from jobrunner.store.engine import Connection, Database
from jobrunner.store.tokens import Token

__all__ = ["Access", "Caller", "Scope"]

logger = logging.getLogger("jobrunner.access")

CACHE_SECONDS = 2.0
"""How long a revoked token may still be taken by a worker that knew it."""

USE_SECONDS = 60
"""How exactly is written down when a token was used: to write takes the writers' lock."""

STREAM_SECONDS = 600.0
"""How long a URL of a job's events is valid."""


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
        self._used: dict[str, datetime] = {}
        self._lock = threading.Lock()

    # ── who it is ──

    def authenticate(self, secret: str, *, sparingly: bool = False) -> Caller:
        """Find out whose token this is.

        Args:
            secret: the token.
            sparingly: do not look into the database for one that is not known, if that was done lately.

        Raises:
            Unauthenticated: nobody's, or it has expired.
        """
        sha256 = hash_secret(secret)

        def match() -> Token | None:
            # All of them are compared, each in constant time, so that the time
            # taken tells nothing about the token that was nearly right.
            found = None
            for token in self._known:
                if hmac.compare_digest(token.sha256, sha256):
                    found = token
            return found

        return self._caller(self._find(match, sparingly=sparingly), "this token is not known")

    def authenticate_shared(self, given: str, secret: str, name: str) -> Caller:
        """Find out whether somebody knows the one secret that all clients of a dialect share.

        Args:
            given: what they say.
            secret: what they should.
            name: the owner of what they submit; a token of this name sees it too, but says nothing about them.

        Raises:
            Unauthenticated: they do not.
        """
        # Hashed first: to compare takes as long, however long the secret is.
        if not hmac.compare_digest(hash_secret(given), hash_secret(secret)):
            raise Unauthenticated("this is not the secret")
        return Caller(name, Grant(frozenset({Scope.READ, Scope.EXEC, Scope.CANCEL})))

    def stand_in(self, name: str) -> Caller:
        """Return who somebody is that needs no token: the bearer of the token of this name.

        Raises:
            Unauthenticated: there is no such token, or it has expired.
        """
        token = self._find(lambda: next((token for token in self._known if token.name == name), None))
        return self._caller(token, f"there is no token {name!r} (run_as); make it: jobrunner token create")

    def sign_stream(self, job_id: str, caller: Caller) -> tuple[str, datetime]:
        """Make a signature that stands for the caller's token, for the events of one job, and until this time."""
        expires_at = self._now() + timedelta(seconds=STREAM_SECONDS)
        signature = self._stream_signer().dumps([job_id, _fingerprint(caller.credential), expires_at.timestamp()])
        assert isinstance(signature, str)
        return signature, expires_at

    def authenticate_stream(self, signature: str, job_id: str) -> Caller:
        """Find out who has signed for the events of this job.

        Raises:
            Unauthenticated: nobody, somebody for another job or too long ago, or their token is worthless by now.
        """
        try:
            signed_id, fingerprint, expires_at = self._stream_signer().loads(signature)
        except BadData:
            raise Unauthenticated("this URL is not signed by this service; ask for a new one: stream-url") from None
        if signed_id != job_id:
            raise Unauthenticated("this URL is signed for the events of another job")
        if self._now().timestamp() >= expires_at:
            raise Unauthenticated("this URL was valid for some minutes only; ask for a new one: stream-url")
        # Not by its name: a new token may have that by now, and its owner has not signed this.
        token = self._find(lambda: self._first(lambda token: _fingerprint(token.sha256) == fingerprint))
        return self._caller(token, "the token behind this URL was revoked")

    def confirm(self, caller: Caller) -> None:
        """Let those pass whose token is still worth what it was: who waits or follows is asked for it again and again.

        Costs next to nothing, but for a look into the database every `CACHE_SECONDS`.

        Raises:
            Unauthenticated: it was revoked, or has expired.
        """
        if caller.credential is not None:
            token = self._find(lambda: self._first(lambda token: token.sha256 == caller.credential))
            self._require_valid(token, "this token was revoked")

    def _stream_signer(self) -> URLSafeSerializer:
        key = load_secret(self._key_file)
        return URLSafeSerializer(key, salt="events", signer_kwargs={"digest_method": hashlib.sha256})

    def _find(self, match: Callable[[], Token | None], *, sparingly: bool = False) -> Token | None:
        """Look among the tokens that are known, and among those of the database when that is long ago or in vain."""
        if time.monotonic() - self._known_at < CACHE_SECONDS and ((token := match()) or sparingly):
            return token
        with self._lock, self._database.read() as connection:
            self._known = store.list_tokens(connection)
            self._known_at = time.monotonic()
        return match()

    def _first(self, is_it: Callable[[Token], bool]) -> Token | None:
        return next(filter(is_it, self._known), None)

    def _caller(self, token: Token | None, words: str) -> Caller:
        token, now = self._require_valid(token, words)
        self._note_use(token, now)
        return Caller(token.name, token.grant, credential=token.sha256)

    def _require_valid(self, token: Token | None, words: str) -> tuple[Token, datetime]:
        if token is None:
            raise Unauthenticated(words)
        now = self._now()
        if token.expires_at is not None and now >= token.expires_at:
            raise Unauthenticated("this token has expired")
        return token, now

    def _note_use(self, token: Token, now: datetime) -> None:
        last = max(filter(None, (token.last_used_at, self._used.get(token.name))), default=None)
        if last is not None and (now - last).total_seconds() < USE_SECONDS:
            return
        self._used[token.name] = now
        try:
            self._database.write_together(lambda connection: store.record_use(connection, token.name, now))
        except StorageError as error:
            # What was asked may need no storage, or tells that better.
            logger.debug("can't write down when a token was used: %s", error)

    # ── what they may do ──

    def require(self, caller: Caller, scope: Scope) -> None:
        """Let those pass whose token has this scope.

        Raises:
            Forbidden: it has not.
        """
        if not caller.grant.allows(scope):
            raise Forbidden(f"the token {caller.name!r} has not the scope {scope.value}")

    def job_for(
        self,
        connection: Connection,
        reference: str | DialectNumber,
        caller: Caller,
        scope: Scope,
        *,
        api: str | None = None,
    ) -> Job:
        """Return a job that the caller may do this with. Every path to a job goes through here.

        Args:
            connection: where to look.
            reference: the job's uuid or number, as the client wrote it; or what its dialect calls it.
            caller: who is asking.
            scope: what is to be done with it.
            api: only jobs that came through this API; None: all.

        Raises:
            Forbidden: the token has not this scope, whatever the job.
            JobNotFound: no job has this id, or it is not the caller's: the same for both.
        """
        self.require(caller, scope)
        job = _find_job(connection, reference)
        if job is None or not caller.sees(job.owner) or api not in {None, job.api}:
            raise JobNotFound
        return job

    def require_submission(self, caller: Caller, script: str | None, *, changes_surroundings: bool) -> None:
        """Let those pass who may submit this.

        Args:
            caller: who is asking.
            script: the name of a catalogued one; None: anything else.
            changes_surroundings: it sets variables of the environment, or the working directory: with these a script
                or a program can be made to run anything (``LD_PRELOAD``, ``PATH``, ``BASH_ENV``).

        Raises:
            Forbidden: it needs another scope, or the token is for other scripts, or not for all programs.
        """
        if script is None:
            self.require(caller, Scope.EXEC)
        else:
            self.require(caller, Scope.RUN)
            if not caller.grant.allows_script(script):
                raise Forbidden(f"the token {caller.name!r} is not for the script {script!r}")
        if not changes_surroundings:
            return
        if not caller.grant.allows(Scope.EXEC):
            raise Forbidden(
                f"to give a script env or cwd needs the scope exec, which the token {caller.name!r} has not"
            )
        if not caller.grant.allows_all_commands:
            raise Forbidden(f"env and cwd are for tokens that may run any program, which {caller.name!r} may not")

    def require_image(self, caller: Caller, image: str) -> None:
        """Let those pass whose jobs may run in this container image.

        Raises:
            Forbidden: the token has not the scope `exec`, or is for other images.
        """
        self.require(caller, Scope.EXEC)
        if not caller.grant.allows_image(image):
            raise Forbidden(f"the token {caller.name!r} is not for the image {image!r}")

    def owner_for(self, caller: Caller, owner: str | None) -> str | None:
        """Return whose jobs a list or a sum may be of; None: everyone's.

        Args:
            caller: who is asking.
            owner: whose they ask for; None: all that they may see.

        Raises:
            Forbidden: the token has not the scope `read`, or they ask for another's.
        """
        self.require(caller, Scope.READ)
        if owner is not None and not caller.sees(owner):
            raise Forbidden(f"the token {caller.name!r} sees its own jobs only")
        return owner if owner is not None or caller.grant.sees_all else caller.name


def _find_job(connection: Connection, reference: str | DialectNumber) -> Job | None:
    if isinstance(reference, DialectNumber):
        return find_numbered(connection, reference)
    key = parse_job_reference(reference)
    return job_store.find_job(connection, key) if key is not None else None


def _fingerprint(credential: str | None) -> str | None:
    """Return what stands in a URL for a token: of no use to whoever reads it."""
    return credential and hashlib.sha256(credential.encode()).hexdigest()[:32]
