"""What a process can be given."""

import subprocess

import pytest

from jobrunner.domain.arguments import (
    ARGUMENT_MAX,
    TOGETHER_MAX,
    argument_problem,
    count_bytes,
    together_problem,
    variable_problem,
)


@pytest.mark.parametrize(("text", "size"), [("", 0), ("abc", 3), ("ä", 2), ("💥", 4), ("\ud800", 3)])
def test_bytes_are_counted(text: str, size: int) -> None:
    assert count_bytes(text) == size


def test_the_longest_argument_is_the_longest_that_the_system_takes() -> None:
    longest = "x" * ARGUMENT_MAX

    assert argument_problem(longest) is None
    subprocess.run(["true", longest], check=True)
    assert "131,071 bytes" in str(argument_problem(longest + "x"))
    with pytest.raises(OSError, match="too long"):
        subprocess.run(["true", longest + "x"], check=True)
    assert argument_problem("ä" * (ARGUMENT_MAX // 2)) is None
    assert argument_problem("ä" * (ARGUMENT_MAX // 2 + 1))


def test_the_longest_variable_is_the_longest_that_the_system_takes() -> None:
    name, longest = "NAME", "x" * (ARGUMENT_MAX - 5)

    assert variable_problem(name, longest) is None
    subprocess.run(["true"], env={name: longest}, check=True)
    assert "131,071 bytes" in str(variable_problem(name, longest + "x"))
    with pytest.raises(OSError, match="too long"):
        subprocess.run(["true"], env={name: longest + "x"}, check=True)


@pytest.mark.parametrize("size", [0, 1, 91, 1000, ARGUMENT_MAX])
def test_as_much_as_may_be_together_can_be_executed(size: int) -> None:
    """Also if it is a great number of very short ones: each takes a pointer, too."""
    number = (TOGETHER_MAX - len("true") - 9) // (size + 9)
    argv = ["true", *["x" * size] * number]

    assert together_problem(argv, {}) is None
    subprocess.run(argv, check=True)
    assert together_problem([*argv, "x" * size], {})


def test_arguments_and_variables_count_together() -> None:
    half = ["x" * 1000] * (TOGETHER_MAX // 2 // 1009)
    env = {f"{number:04}": "x" * 1000 for number in range(TOGETHER_MAX // 2 // 1014)}

    assert together_problem(half, env) is None
    assert "1,048,576 bytes together" in str(together_problem([*half, "x" * 2000], env))
