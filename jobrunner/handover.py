"""What a supervisor leaves to itself when it executes itself anew, with its pid, its children and its sockets."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import NamedTuple, NoReturn, Self

from jobrunner.listener import Listeners

HANDED_OVER = "_JOBRUNNER_HANDED_OVER"
"""Tells a supervisor that has executed itself anew what it had."""


class Handover(NamedTuple):
    """What goes on after execve(2).

    Attributes:
        children: their pids, by name.
        reload_again: it was told to reload once more meanwhile.
    """

    listeners: Listeners
    children: Mapping[str, int]
    reload_again: bool

    def execute_anew(self) -> NoReturn:
        """Go on as the program that is on the disk now.

        Raises:
            OSError: that can't be executed.
        """
        # It may be read by a program that is newer or older than this one.
        state = {
            "listener": self.listeners.main.fileno(),
            "others": {bind: listener.fileno() for bind, listener in self.listeners.others.items()},
            "children": dict(self.children),
            "reload_again": self.reload_again,
        }
        for listener in self.listeners.sockets:
            listener.set_inheritable(True)
        environ = {**os.environ, HANDED_OVER: json.dumps(state)}
        os.execve(sys.executable, [sys.executable, "-m", "jobrunner", *sys.argv[1:]], environ)  # noqa: S606

    @classmethod
    def take(cls) -> Self | None:
        """Return what the program before this one has left; None when there was none."""
        left = os.environ.pop(HANDED_OVER, None)
        if left is None:
            return None
        state = json.loads(left)
        others = {bind: socket.socket(fileno=fd) for bind, fd in state.get("others", {}).items()}
        listeners = Listeners(socket.socket(fileno=state["listener"]), others)
        for listener in listeners.sockets:
            listener.set_inheritable(False)
        return cls(listeners, state["children"], bool(state["reload_again"]))
