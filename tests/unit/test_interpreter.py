"""The ``#!`` line of a script."""

import pytest

from jobrunner.domain.interpreter import LINE_MAX, read_interpreter


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#!/bin/sh", ("/bin/sh",)),
        ("#! /bin/sh ", ("/bin/sh",)),
        ("#!\t/bin/sh\t", ("/bin/sh",)),
        ("#!/bin/sh -e", ("/bin/sh", "-e")),
        ("#!/usr/bin/awk  -f", ("/usr/bin/awk", "-f")),
        ("#!/bin/x one\ttwo  three ", ("/bin/x", "one\ttwo  three")),
        ("#!relative/python", ("relative/python",)),
        ("#!/bin/sh\r", ("/bin/sh\r",)),
    ],
)
def test_the_line_has_an_interpreter_and_at_most_one_argument(line: str, words: tuple[str, ...]) -> None:
    assert read_interpreter(line.encode()) == words
    assert read_interpreter(f"{line}\necho hello\n".encode()) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("#!/usr/bin/env python3", ("python3",)),
        ("#! /bin/env\tperl ", ("perl",)),
        ("#!/usr/bin/env", ("/usr/bin/env",)),
        ("#!/usr/bin/env -S python3 -u", ("/usr/bin/env", "-S python3 -u")),
        ("#!/usr/bin/env -i", ("/usr/bin/env", "-i")),
        ("#!/usr/bin/env A=b", ("/usr/bin/env", "A=b")),
        ("#!/usr/bin/env python3 -u", ("/usr/bin/env", "python3 -u")),
        ("#!/opt/env python3", ("/opt/env", "python3")),
    ],
)
def test_what_env_only_looks_up_is_the_interpreter(line: str, words: tuple[str, ...]) -> None:
    assert read_interpreter(line.encode()) == words


@pytest.mark.parametrize("source", [b"#!", b"#!\n/bin/sh", b"#! \t \n", b"#!/bin/\xff\n", b"#!/bin/sh\0x\n"])
def test_a_line_without_interpreter_is_none(source: bytes) -> None:
    with pytest.raises(ValueError, match="#! line"):
        read_interpreter(source)


def test_a_line_that_the_kernel_would_cut_is_none() -> None:
    longest = b"#!/" + b"x" * (LINE_MAX - 3)

    assert read_interpreter(longest + b"\n") == (longest[2:].decode(),)
    assert read_interpreter(longest) == (longest[2:].decode(),)
    with pytest.raises(ValueError, match="255 bytes"):
        read_interpreter(longest + b"x\n")
