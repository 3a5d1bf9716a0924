"""Which file a command line would execute, found out without executing it."""

import os
import re
import stat


def find_program(name: str, path: str | None, cwd: str | None) -> str | None:
    """Look a program up as execvp(3) does, and follow its symbolic links: what is returned is the very file.

    The first regular file that anybody may execute is taken. Whether the user
    of the job may is for the system to say when it is executed.

    Args:
        name: as in ``argv[0]``; one without a slash is looked for in ``path``.
        path: ``PATH`` of the process; None: it has none, and gets what the system looks through then.
        cwd: where the process starts; an empty entry of ``path`` is this directory. None: a directory that is not
            there yet, in which nothing can be found.

    Returns:
        An absolute path without symbolic links; None: there is no such program.
    """
    directories = [""] if "/" in name else (os.defpath if path is None else path).split(os.pathsep)
    for directory in directories:
        candidate = os.path.join(cwd or "", directory, name)
        if candidate.startswith("/") and (found := _resolve(candidate)) is not None:
            return found
    return None


def is_itself(program: str) -> bool:
    """Tell whether what `find_program` has found is still there, and no link has come into its path."""
    return _resolve(program) == program


def pattern_warning(pattern: str) -> str | None:
    """Say that a pattern of programs leads through symbolic links, so that no program is found where it says.

    Args:
        pattern: as `fnmatch` takes it; what comes before the first of its special characters is looked at.
    """
    plain = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    if plain != pattern:
        plain = os.path.dirname(plain)
    real = os.path.realpath(plain)
    if not plain or real == os.path.normpath(plain):
        return None
    return f"{pattern}: {plain} is {real}, and that is what patterns of programs are held against"


def _resolve(candidate: str) -> str | None:
    try:
        found = os.path.realpath(candidate, strict=True)
        status = os.lstat(found)  # a link that was put there meanwhile is none that was followed
    except (OSError, ValueError):
        return None
    return found if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111 else None
