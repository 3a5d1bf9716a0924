"""Tokens: only their hashes are kept, and revoked ones are worth nothing soon."""

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from jobrunner.clock import utc_now
from jobrunner.domain.access import ADMINISTRATOR, Caller, Grant, Scope
from jobrunner.domain.errors import (
    InvalidRequest,
    JobNotFound,
    StorageError,
    TokenExists,
    TokenNotFound,
    Unauthenticated,
)
from jobrunner.house import House
from jobrunner.service.access import Access
from jobrunner.service.tokens import TokenService
from jobrunner.store.engine import Database
from tests.factories import CALLER, make_config, make_job
from tests.integration.stored import rows
from tests.integration.workers import run_crew
from tests.service import eventually


@pytest.fixture
def access(database: Database) -> Access:
    """The tokens of an empty database."""
    return Access(database, utc_now, database.path.with_name("stream.key"))


@pytest.fixture
def tokens(database: Database) -> TokenService:
    """Makes tokens in an empty database."""
    return TokenService(database, utc_now)


def is_known(access: Access, secret: str) -> bool:
    try:
        access.authenticate(secret)
    except Unauthenticated:
        return False
    return True


def test_a_token_names_its_caller(access: Access, tokens: TokenService) -> None:
    secrets = {name: tokens.create(name, ADMINISTRATOR) for name in ("ci", "ann", "ü b")}

    assert {name: access.authenticate(secret) for name, secret in secrets.items()} == {
        name: Caller(name, ADMINISTRATOR) for name in secrets
    }


def test_a_new_token_works_at_once_for_those_who_asked_before(access: Access, tokens: TokenService) -> None:
    first = tokens.create("first", ADMINISTRATOR)
    assert is_known(access, first)

    second = tokens.create("second", ADMINISTRATOR)

    assert is_known(access, second)


def test_nothing_of_a_token_s_text_is_stored(access: Access, tokens: TokenService, database: Database) -> None:
    secret = tokens.create("ci", ADMINISTRATOR)
    access.authenticate(secret)
    database.close()

    assert secret.startswith("jr_")
    assert len(secret) > 40
    for file in database.path.parent.iterdir():
        assert secret.encode() not in file.read_bytes()
        assert secret[3:].encode() not in file.read_bytes()


def test_two_tokens_are_never_the_same(tokens: TokenService) -> None:
    assert len({tokens.create(f"{n}", ADMINISTRATOR) for n in range(20)}) == 20


@pytest.mark.parametrize("text", ["", " ", "jr_", "x" * 100_000, "\0", "ü", "jr_\udcff"])
def test_what_is_no_token_is_refused(access: Access, tokens: TokenService, text: str) -> None:
    tokens.create("ci", ADMINISTRATOR)

    with pytest.raises(Unauthenticated):
        access.authenticate(text)


def test_a_token_that_is_nearly_right_is_refused(access: Access, tokens: TokenService, database: Database) -> None:
    secret = tokens.create("ci", ADMINISTRATOR)
    (stored,) = rows(database, "SELECT sha256 FROM token")

    for text in (secret[:-1], secret + "x", secret.swapcase(), f" {secret}", stored.sha256):
        with pytest.raises(Unauthenticated):
            access.authenticate(text)


def test_without_tokens_nobody_is_let_in(access: Access) -> None:
    with pytest.raises(Unauthenticated):
        access.authenticate("")


def test_a_revoked_token_is_soon_refused_by_those_who_knew_it(
    access: Access, tokens: TokenService, database: Database
) -> None:
    secret = tokens.create("ci", ADMINISTRATOR)
    other = Access(database, utc_now, database.path.with_name("stream.key"))  # as another worker has
    assert is_known(access, secret)
    assert is_known(other, secret)

    tokens.revoke("ci")

    assert eventually(lambda: not is_known(access, secret), within=4)
    assert eventually(lambda: not is_known(other, secret), within=4)


def test_a_revoked_token_is_refused_at_once_by_those_who_did_not_know_it(access: Access, tokens: TokenService) -> None:
    secret = tokens.create("ci", ADMINISTRATOR)
    tokens.revoke("ci")

    assert not is_known(access, secret)


def test_a_name_is_given_once_and_again_after_it_was_revoked(access: Access, tokens: TokenService) -> None:
    old = tokens.create("ci", ADMINISTRATOR)
    with pytest.raises(TokenExists, match="'ci'"):
        tokens.create("ci", ADMINISTRATOR)
    tokens.revoke("ci")

    new = tokens.create("ci", ADMINISTRATOR)

    assert is_known(access, new)
    assert eventually(lambda: not is_known(access, old), within=4)


def test_revoking_what_is_not_there_says_so(tokens: TokenService) -> None:
    with pytest.raises(TokenNotFound, match="'ci'"):
        tokens.revoke("ci")


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\0", "\x1b[31m"])
def test_a_name_that_can_not_be_printed_is_refused(tokens: TokenService, name: str) -> None:
    with pytest.raises(InvalidRequest):
        tokens.create(name, ADMINISTRATOR)
    assert tokens.list() == []


@pytest.mark.parametrize("name", ["service", "local"])
def test_a_name_that_the_service_uses_itself_is_refused(tokens: TokenService, name: str) -> None:
    """``cancel.by`` could not be told from it."""
    with pytest.raises(InvalidRequest, match="itself"):
        tokens.create(name, ADMINISTRATOR)
    assert tokens.list() == []


def test_tokens_are_listed_by_name(tokens: TokenService) -> None:
    for name in ("b", "a", "c"):
        tokens.create(name, ADMINISTRATOR)

    assert [token.name for token in tokens.list()] == ["a", "b", "c"]


def test_many_threads_of_a_worker_ask_at_once(access: Access, tokens: TokenService) -> None:
    secrets = {tokens.create(f"{n}", ADMINISTRATOR): f"{n}" for n in range(8)}

    with ThreadPoolExecutor(8) as pool:
        callers = list(pool.map(access.authenticate, list(secrets) * 20))

    assert [caller.name for caller in callers] == list(secrets.values()) * 20


# ── what is under way ──


def test_who_waits_is_told_when_their_token_is_worthless(access: Access, tokens: TokenService) -> None:
    callers = [access.authenticate(tokens.create(name, ADMINISTRATOR)) for name in ("revoked", "anew", "good")]
    for name in ("revoked", "anew"):
        tokens.revoke(name)
    tokens.create("anew", ADMINISTRATOR)

    revoked, anew, good = callers
    assert eventually(lambda: not is_confirmed(access, revoked) and not is_confirmed(access, anew), within=4)
    assert is_confirmed(access, good)


def test_who_waits_is_told_when_their_token_expires(database: Database, tokens: TokenService) -> None:
    now = utc_now()
    access = Access(database, lambda: now, database.path.with_name("stream.key"))
    caller = access.authenticate(tokens.create("brief", ADMINISTRATOR, valid_for=60))
    assert is_confirmed(access, caller)

    now += timedelta(seconds=61)

    assert not is_confirmed(access, caller)


def test_who_needs_no_token_may_wait_as_long_as_they_like(access: Access) -> None:
    assert is_confirmed(access, CALLER)


def is_confirmed(access: Access, caller: Caller) -> bool:
    try:
        access.confirm(caller)
    except Unauthenticated:
        return False
    return True


def test_a_signed_url_is_not_valid_for_a_new_token_of_the_same_name(access: Access, tokens: TokenService) -> None:
    signature, _ = access.sign_stream("job", access.authenticate(tokens.create("ci", ADMINISTRATOR)))
    assert access.authenticate_stream(signature, "job").name == "ci"
    tokens.revoke("ci")
    access.authenticate(tokens.create("ci", ADMINISTRATOR))

    with pytest.raises(Unauthenticated, match="revoked"):
        access.authenticate_stream(signature, "job")


# ── the first token ──


def test_the_first_start_leaves_a_token_that_only_the_owner_can_read(house: House) -> None:
    file = house.admin_token_file

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert house.access.authenticate(file.read_text().strip()) == Caller("admin", ADMINISTRATOR)


def test_the_next_start_makes_no_other_one(house: House) -> None:
    before = house.admin_token_file.read_text()

    house.prepare()

    assert house.admin_token_file.read_text() == before
    assert [token.name for token in house.tokens.list()] == ["admin"]


def test_a_start_with_a_token_of_another_name_makes_none(house: House) -> None:
    house.tokens.create("ci", ADMINISTRATOR)
    house.tokens.revoke("admin")
    house.admin_token_file.unlink()

    house.prepare()

    assert not house.admin_token_file.exists()


def test_a_token_whose_file_could_not_be_written_is_not_kept(tokens: TokenService, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        tokens.ensure_first(tmp_path / "absent" / "admin.token")

    assert tokens.list() == []
    assert tokens.ensure_first(tmp_path / "admin.token")


def test_an_old_file_is_replaced_and_not_written_through(tokens: TokenService, tmp_path: Path) -> None:
    """Whoever could put a link there must not get the token, nor have a file overwritten."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "admin.token").symlink_to("precious")

    assert tokens.ensure_first(tmp_path / "admin.token")

    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "admin.token").is_symlink()
    assert [path.name for path in tmp_path.glob("admin.token*")] == ["admin.token"]


def test_processes_that_start_at_once_on_an_empty_directory_agree_on_one_token(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"

    secrets = run_crew(4, "prepare", data_dir)

    assert len(set(secrets)) == 1
    assert stat.S_IMODE((data_dir / "admin.token").stat().st_mode) == 0o600
    assert [path.name for path in data_dir.glob("admin.token*")] == ["admin.token"]


# ── the data directory ──


def test_what_jobs_were_given_is_for_the_owner_s_eyes_only(tmp_path: Path) -> None:
    house = House(make_config(tmp_path / "data"))
    house.prepare()
    make_job(house)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [house.data_dir, *house.data_dir.iterdir()]}
    house.database.close()
    house.hints.close()

    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


def test_a_data_directory_that_is_a_file_is_refused_with_the_system_s_words(tmp_path: Path) -> None:
    (tmp_path / "data").touch()

    with pytest.raises((OSError, StorageError), match=r"File exists|Not a directory"):
        House(make_config(tmp_path / "data")).prepare()


# ── jobs ──


def test_a_job_is_found_by_uuid_and_number_and_nothing_else(house: House) -> None:
    job = make_job(house)

    for reference in (job.id, job.id.upper(), str(job.number)):
        assert house.jobs.get(reference, CALLER) == job
    for reference in ("", "0", "2", "-1", f"{job.number}.0", job.id[:-1], "१", "1" * 10_000):
        with pytest.raises(JobNotFound, match="no job has this id"):
            house.jobs.get(reference, CALLER)


def test_a_token_is_for_programs_by_their_paths(tokens: TokenService) -> None:
    for wrong in ("git", "none", ""):
        with pytest.raises(InvalidRequest, match="absolute path"):
            tokens.create("ci", Grant(frozenset({Scope.EXEC}), commands=("/usr/bin/git", wrong)))
    patterns = ("/usr/bin/git", "*/bin/[ab]*", "?opt*")
    tokens.create("ci", Grant(frozenset({Scope.EXEC}), commands=patterns))

    assert [token.grant.commands for token in tokens.list()] == [patterns]
