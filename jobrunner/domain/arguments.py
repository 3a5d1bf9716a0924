"""What a process can be given: its arguments, and the variables of its environment (execve(2))."""

from collections.abc import Iterable, Mapping

ARGUMENT_MAX = 131071
"""Most bytes of an argument, and of a variable with its name: MAX_ARG_STRLEN, without the NUL at the end."""

TOGETHER_MAX = 1048576
"""Most bytes of all arguments and variables of a job: half of what Linux allows by default, beside the base
environment."""

VARIABLES_MAX = 1000

PATH_MAX = 4095
"""Most bytes of a path, without the NUL at the end."""

RESERVED_ENV_PREFIX = "JOBRUNNER_JOB_"
"""Names the service itself puts into a job's environment."""

_OVERHEAD = 9
"""What a text takes besides its bytes: the NUL at the end, and a pointer."""


def count_bytes(text: str) -> int:
    """Return how long a text is for the system, also if it is none that can be given."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def argument_problem(text: str) -> str | None:
    """Say why this can't be an argument, or return None."""
    if "\0" in text:
        return "must not hold the NUL character: no program can be given one"
    if count_bytes(text) > ARGUMENT_MAX:
        return f"must have at most {ARGUMENT_MAX:,} bytes: the system gives no program more in one argument"
    return None


def variable_problem(name: str, value: str) -> str | None:
    """Say why this can't be a variable of a job's environment, or return None."""
    if not name or "=" in name or "\0" in name:
        return "a name must not be empty and must not hold = or NUL"
    if name.startswith(RESERVED_ENV_PREFIX):
        return f"names that begin with {RESERVED_ENV_PREFIX} are the service's own"
    if "\0" in value:
        return "must not hold the NUL character"
    if count_bytes(name) + 1 + count_bytes(value) > ARGUMENT_MAX:
        return f"must have at most {ARGUMENT_MAX:,} bytes, name included: the system gives no program more in one"
    return None


def together_problem(argv: Iterable[str], env: Mapping[str, str]) -> str | None:
    """Say that it is too much for one process, or return None."""
    size = sum(count_bytes(argument) + _OVERHEAD for argument in argv)
    size += sum(count_bytes(name) + count_bytes(value) + 1 + _OVERHEAD for name, value in env.items())
    if size <= TOGETHER_MAX:
        return None
    return (
        f"arguments and env must have at most {TOGETHER_MAX:,} bytes together, have {size:,} "
        f"({_OVERHEAD} for each of them included); give more by stdin or files"
    )
