"""What ``/proc`` tells about processes (proc(5)).

A pid alone is no identity: the kernel gives it again. A pid with its start
ticks, within one boot, is one.
"""

import os
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from jobrunner.domain.spec import Holder


class Stat(NamedTuple):
    """Some of ``/proc/PID/stat``; all but ``exit_code`` can be read by anyone.

    Attributes:
        parent: pid of its parent.
        pgid: process group.
        session: session; of its leader, the pid.
        start_ticks: when it started, in clock ticks since boot.
        exit_code: wait status of a zombie; 0 for whom the kernel does not let look.
        is_zombie: it has ended and was not reaped.
    """

    parent: int
    pgid: int
    session: int
    start_ticks: int
    exit_code: int
    is_zombie: bool


def read_stat(pid: int) -> Stat | None:
    """Return what is known of a process; None when there is none."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        line = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    # The second field is the program's name, in parentheses, and may hold anything.
    fields = line[line.rindex(b")") + 2 :].split()
    return Stat(
        parent=int(fields[1]),
        pgid=int(fields[2]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        exit_code=int(fields[49]),
        is_zombie=fields[0] in {b"Z", b"X"},
    )


@cache
def boot_id() -> str:
    """Return what tells one boot of this machine from another."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def identify_self() -> Holder:
    """Return who this process is."""
    stat = read_stat(os.getpid())
    assert stat is not None
    return Holder(os.getpid(), stat.start_ticks, boot_id())


def is_alive(holder: Holder) -> bool:
    """Tell whether a process is still there."""
    stat = read_stat(holder.pid)
    is_it = stat is not None and stat.start_ticks == holder.start_ticks and not stat.is_zombie
    return is_it and holder.boot_id == boot_id()


def list_pids() -> list[int]:
    """Return all processes that we can see."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def read_environ(pid: int) -> frozenset[bytes]:
    """Return the environment that a process was started with, as ``NAME=value``; empty when we may not look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return frozenset(file.read().split(b"\0"))
    except OSError:
        return frozenset()


def read_command_line(pid: int) -> list[str]:
    """Return the arguments that a process was started with, or has put in their place; empty when it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words[:-1]]


def list_children(pid: int) -> list[int] | None:
    """Return the children of the first thread of a process, zombies too; None when this kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return None


def leads_namespace(pid: int) -> bool:
    """Tell whether a process is process 1 of a namespace right below ours."""
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"NSpid:"):
                return line.split()[2:] == [b"1"]
    return False
