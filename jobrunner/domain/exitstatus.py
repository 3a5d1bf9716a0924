"""How a process ended: a code or a signal, never the shell's mixture of both (128+n)."""

import os
import re
import signal
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The exit status of a process as the kernel reports it.

    Attributes:
        code: 0..255, or None when a signal ended the process.
        signal: the signal's number, or None when the process exited by itself.
    """

    code: int | None = None
    signal: int | None = None

    @classmethod
    def from_wait_status(cls, status: int) -> Self:
        """Read the 16-bit status of ``wait(2)``."""
        if os.WIFSIGNALED(status):
            return cls(signal=os.WTERMSIG(status))
        return cls(code=os.WEXITSTATUS(status))

    @classmethod
    def from_siginfo(cls, si_code: int, si_status: int) -> Self:
        """Read ``si_code`` and ``si_status`` of ``waitid(2)``."""
        if si_code == os.CLD_EXITED:
            return cls(code=si_status)
        return cls(signal=si_status)

    @property
    def ok(self) -> bool:
        """Whether the process exited with 0."""
        return self.code == 0


def signal_name(number: int) -> str:
    """Name a signal: ``SIGKILL``; real-time signals as ``SIGRTMIN+n``, those without a name as ``SIG32``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        beyond = number - signal.SIGRTMIN
        return f"SIGRTMIN+{beyond}" if beyond > 0 else f"SIG{number}"


_NAMES = "|".join(name.removeprefix("SIG").replace("+", r"\+") for name in sorted(signal.Signals.__members__))

SIGNAL_PATTERN = rf"^(SIG)?({_NAMES}|RTMIN\+(0?[0-9]|[12][0-9]|30))$"
"""What `parse_signal` takes, for people and programs who read a description."""


def parse_signal(name: str) -> int:
    """Turn ``SIGTERM``, ``TERM`` or ``SIGRTMIN+3`` into its number.

    Raises:
        ValueError: there is no such signal, or its name is not one of this system's.
    """
    full = name if name.startswith("SIG") else f"SIG{name}"
    beyond = re.fullmatch(r"SIGRTMIN\+([0-9]{1,2})", full, re.ASCII)
    if beyond and signal.SIGRTMIN + int(beyond[1]) <= signal.SIGRTMAX:
        return signal.SIGRTMIN + int(beyond[1])
    try:
        return signal.Signals[full].value
    except KeyError:
        raise ValueError(f"{name!r} is not the name of a signal; use one like SIGTERM") from None
