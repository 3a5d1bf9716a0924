"""How http-runner takes arguments apart, and names jobs."""

import subprocess
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.domain.ids import make_job_id
from jobrunner.web.dialects.http_runner_document import parse_id, render_id, split_arguments
from tests.service import clean_environment

# ECMAScript, 12.2 and 12.3: WhiteSpace and LineTerminator.
_NAMED = set("\t\n\v\f\r\u2028\u2029\ufeff")


def is_white_space(character: str) -> bool:
    return character in _NAMED or unicodedata.category(character) == "Zs"


@given(st.characters())
def test_white_space_is_that_of_javascript(character: str) -> None:
    assert (len(split_arguments(f"a{character}b")) == 2) == is_white_space(character)


@given(st.text(st.sampled_from("ab'\"\\ \t\n\u00a0\ufeff\u0085")))
def test_arguments_joined_are_the_text_again_but_for_white_space(text: str) -> None:
    arguments = split_arguments(text)

    assert "".join(arguments) == "".join(character for character in text if not is_white_space(character))
    assert all(arguments[1:-1]), "only the first and the last may be empty"
    assert (arguments[0] == "") == (text == "" or is_white_space(text[0]))
    assert (arguments[-1] == "") == (text == "" or is_white_space(text[-1]))


@given(st.integers(0, (1 << 48) - 1))
def test_an_id_can_be_turned_back(at: int) -> None:
    job_id = make_job_id(at)

    assert parse_id(render_id(job_id)) == job_id


@given(st.text(st.sampled_from("0123456789abcdefA-"), min_size=38, max_size=42))
def test_what_no_job_is_called_is_told_from_an_id(text: str) -> None:
    found = parse_id(text)

    assert found is None or render_id(found) == text


def test_who_sends_callbacks_needs_no_flask() -> None:
    """An executor would keep it in memory for nothing else."""
    script = "import sys, jobrunner.web.dialects.http_runner_document; sys.exit('flask' in sys.modules)"

    subprocess.run([sys.executable, "-c", script], env=clean_environment(), check=True, timeout=30)
