"""What systemd, or whoever started us as it would, is told: sd_notify(3)."""

import logging
import os
import socket
import time

logger = logging.getLogger("jobrunner.supervisor")


class Notifier:
    """Sends messages to ``NOTIFY_SOCKET``; without one, to nobody."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        usec = os.environ.get("WATCHDOG_USEC", "")
        is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_seconds = int(usec) / 2_000_000 if usec.isdecimal() and is_ours and self._address else None
        """How often to say `watchdog`; None: nobody listens for it."""

    def ready(self, status: str = "serving") -> None:
        """We serve, again or still; what we do in a line."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """We try to take new settings and new code; `ready` follows, whatever comes of it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """We are about to end."""
        self._send("STOPPING=1", "STATUS=stopping")

    def status(self, text: str) -> None:
        """Say in a line what we do."""
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """We are alive."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # A leading @ is how an abstract address is written.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.sendto("\n".join(lines).encode(), address)
            except OSError as error:
                logger.warning("can't tell %s: %s", self._address, error)
