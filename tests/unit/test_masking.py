"""Secrets that jobs are given do not show where they stand in what is logged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.config import Policy
from jobrunner.domain.masking import ARGV_MOST, MASK, SHORTEST, Mask, MaskRules

DEFAULT = MaskRules(Policy().mask_env, {})


@pytest.mark.parametrize(
    "name",
    [
        "TOKEN",
        "GITHUB_TOKEN",
        "github_token",
        "AWS_SECRET_ACCESS_KEY",
        "API_KEY",
        "DB_PASSWORD",
        "PGPASSFILE_PASSWD",
        "DATABASE_URL",
        "SENTRY_DSN",
        "SSH_PASSPHRASE",
        "CREDENTIALS",
        "SESSION_COOKIE",
    ],
)
def test_variables_that_mostly_are_secret_are_by_default(name: str) -> None:
    assert DEFAULT.mask({name: "hunter2"}).hide("curl -u me:hunter2 x") == "curl -u me:*** x"


@pytest.mark.parametrize("name", ["PATH", "LANG", "GIT_AUTHOR_NAME", "CI"])
def test_others_are_not(name: str) -> None:
    assert DEFAULT.mask({name: "hunter2"}).hide("x hunter2") == "x hunter2"


def test_what_all_jobs_are_given_is_hidden_in_each() -> None:
    assert MaskRules(["*KEY"], {"A_KEY": "hunter2"}).mask({"B_KEY": "swordfish"}).hide("hunter2 swordfish") == "*** ***"


def test_the_longest_goes_first_and_what_overlaps_is_one() -> None:
    assert Mask(["abcd", "abcdef"]).hide("x abcdef abcd y") == "x *** *** y"
    assert Mask(["abcdef", "defghi"]).hide("xabcdefghiy") == "x***y"
    assert Mask(["aaaa"]).hide("aaaaaaaa") == MASK


@pytest.mark.parametrize("value", ["", " ", "1", "yes", "  on "])
def test_what_is_in_every_other_word_is_not_hidden(value: str) -> None:
    assert len(value.strip()) < SHORTEST
    assert Mask([value]).hide("1 yes on ") == "1 yes on "


def test_a_value_is_hidden_without_the_white_space_around_it() -> None:
    assert Mask(["hunter2\n"]).hide("-phunter2 -x") == "-p*** -x"


def test_a_secret_at_the_cut_is_hidden_whole() -> None:
    mask = Mask(["hunter2"])

    for most in range(20):
        assert not set("hunter2") & set(mask.hide("abc hunter2 xyz", most))


@given(st.lists(st.text(st.sampled_from("ab c"), min_size=SHORTEST, max_size=8), max_size=4), st.data())
def test_nothing_of_a_secret_is_left_whatever_is_around_it(secrets: list[str], data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.sampled_from([*secrets, "a", "b", " ", "xyz"]), max_size=12))
    most = data.draw(st.integers(0, 40))

    hidden = Mask(secrets).hide("".join(parts), most)

    assert not any(secret.strip() in hidden for secret in secrets if len(secret.strip()) >= SHORTEST)


def test_a_command_line_is_shown_word_by_word_as_far_as_it_fits() -> None:
    mask = Mask(["hunter2"])

    assert mask.hide_words([]) == []
    assert mask.hide_words(["", "a b", "--p=hunter2"]) == ["", "a b", "--p=***"]
    shown = mask.hide_words(["echo", "x" * 100_000])
    assert len(" ".join(shown)) <= ARGV_MOST + 1
    assert shown[-1].endswith("…")
