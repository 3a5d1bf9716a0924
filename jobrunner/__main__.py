"""``jobrunner``, and ``python -m jobrunner``."""

import os
import signal


def main() -> None:
    """Run the command line and exit."""
    if os.getpid() == 1:
        # The kernel drops what process 1 of a container has no handler for. What
        # is blocked it keeps until there is one (see `Supervisor.run`), however
        # long the imports take.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})
    from jobrunner.cli import main as run

    run()


if __name__ == "__main__":
    main()
