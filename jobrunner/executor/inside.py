"""The job's parent inside a sandbox, a program of its own: it writes down how the job's process has ended.

bubblewrap tells the end by a signal as an exit code, and whoever asks for it
must live until then. So this writes what the kernel says into a file, which
was opened outside.

It is started for each job, so it takes only what the interpreter has built in:
``signal`` itself takes half as long as all else.
"""

import _signal as signals  # type: ignore[import-not-found]
import errno
import os
import sys
from contextlib import suppress

BEGUN = b"begun\n"


def run(outcome: int, task: int) -> None:
    """Start a process and wait for its end.

    Args:
        outcome: a descriptor to write to: that this has begun, and then the wait status, or why nothing was started.
        task: one to read from: where to start, what to execute (empty: the first word of the command line, to be looked
            for), how many variables there are, these, and the words of the command line, each with a NUL behind it.
    """
    os.set_inheritable(outcome, False)
    os.write(outcome, BEGUN)
    with open(task, "rb") as file:
        cwd, executable, count, *words = file.read().split(b"\0")[:-1]
    variables, argv = words[: int(count)], words[int(count) :]
    env = dict(variable.split(b"=", 1) for variable in variables)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(parent, outcome, cwd, executable, argv, env)
        finally:
            os._exit(127)
    _, status = os.waitpid(pid, 0)
    if os.fstat(outcome).st_size == len(BEGUN):  # else it was never executed
        os.write(outcome, b"status %d" % status)


def _become(
    parent: int, outcome: int, cwd: bytes, executable: bytes, argv: list[bytes], env: dict[bytes, bytes]
) -> None:
    """Execute a program in the place of this process; returns when that is not possible, with the reason written."""
    try:
        os.chdir(cwd)
    except OSError as error:
        os.write(outcome, b"cwd %d %s" % (error.errno or 0, cwd))
        return
    for number in (signals.SIGINT, signals.SIGPIPE, signals.SIGXFSZ):
        signals.signal(number, signals.SIG_DFL)  # Python has its own ideas of these
    _take_signals(parent)
    try:
        _execute(executable, argv, env)
    except OSError as error:
        program = executable or argv[0]
        is_there = error.errno == errno.ENOENT and b"/" in program and os.access(program, os.F_OK)
        os.write(outcome, b"%s %d %s" % (b"interpreter" if is_there else b"program", error.errno or 0, program))


def _take_signals(parent: int) -> None:
    """Take the signals that were sent to the job before there was this process, and let all come.

    They were for the whole group, and wait with all that is blocked in the parent. Those that have come since wait here
    as well: what is here is looked at second, so none is missed, and none taken twice.
    """
    waiting = _waiting(parent)
    for number in waiting - signals.sigpending():
        os.kill(os.getpid(), number)
    signals.pthread_sigmask(signals.SIG_SETMASK, ())


def _waiting(pid: int) -> set[int]:
    """Return the signals that wait for a process as a whole."""
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"ShdPnd:"):
                mask = int(line.split()[1], 16)
                return {number for number in range(1, 65) if mask >> (number - 1) & 1} - {signals.SIGCHLD}
    return set()


def _execute(executable: bytes, argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """Execute a program; one without a slash is looked for in the ``PATH`` of its environment, as execvp(3) does.

    Raises:
        OSError: that is not possible.
    """
    program = executable or argv[0]
    paths = (
        [b""] if b"/" in program else [path + b"/" for path in env.get(b"PATH", os.fsencode(os.defpath)).split(b":")]
    )
    refusal: OSError | None = None
    for path in paths:
        try:
            os.execve(path + program, argv, env)  # noqa: S606 what a job is
        except OSError as error:
            if refusal is None or refusal.errno in {errno.ENOENT, errno.ENOTDIR}:
                refusal = error
    assert refusal is not None
    raise refusal


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
