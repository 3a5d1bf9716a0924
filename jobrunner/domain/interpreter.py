"""The ``#!`` line of a script, as the kernel reads it (execve(2), fs/binfmt_script.c)."""

import re

LINE_MAX = 255
"""Most bytes of the line: what comes after them is cut off by the kernel, or makes it refuse the script."""

_ENV = ("/usr/bin/env", "/bin/env")


def read_interpreter(source: bytes) -> tuple[str, ...]:
    """Return what is executed with the path of the script behind it: the interpreter, and the one argument of the line.

    What ``#!/usr/bin/env NAME`` executes is ``NAME``, found in the ``PATH``; other uses of env(1) are env's own.

    Raises:
        ValueError: the line names no interpreter.
    """
    line, newline, _ = source[: LINE_MAX + 1].partition(b"\n")
    if not newline and len(source) > LINE_MAX:
        raise ValueError(f"the #! line has more than {LINE_MAX} bytes")
    try:
        text = line.removeprefix(b"#!").decode().strip(" \t")
    except UnicodeDecodeError:
        raise ValueError("the #! line is not UTF-8") from None
    if not text or "\0" in text:
        raise ValueError("the #! line names no interpreter")
    name, *rest = re.split(r"[ \t]+", text, maxsplit=1)
    if name in _ENV and rest and re.fullmatch(r"[^-\s=][^\s=]*", rest[0]):
        return (rest[0],)
    return (name, *rest)
