"""``jobrunner serve``, and the two commands that it starts."""

import fcntl
import os
import signal
import sys
import time

import click

from jobrunner.children import DRAINED, LISTEN_FDS
from jobrunner.cli.common import read_config
from jobrunner.config import Config
from jobrunner.domain.errors import ConfigError
from jobrunner.handover import HANDED_OVER
from jobrunner.log import set_up_logging
from jobrunner.parent import PARENT, READY_FD, die_with_parent
from jobrunner.supervisor import Supervisor


@click.command()
@click.pass_context
def serve(ctx: click.Context) -> None:
    """Run the service: HTTP and jobs.

    SIGTERM and Ctrl-C end it, SIGHUP has it go on with new settings and new
    code, SIGUSR1 drains it: no new jobs, and the end with the last one.
    """
    config = _read_config(ctx)
    set_up_logging(config.logging.format, config.logging.level)
    environ = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_CHILDREN}
    if ctx.find_root().obj:
        environ["JOBRUNNER_CONFIG"] = str(ctx.find_root().obj.absolute())
    sys.exit(Supervisor(config, lambda: _read_what_works(ctx), environ).run())


def _read_what_works(ctx: click.Context) -> Config:
    """Read the settings, and see that jobs can be started by them here.

    Raises:
        ConfigError: they are wrong, or not for this machine or user.
    """
    config = read_config(ctx)
    if config.policy.confines:
        # Here, because the supervisor has no other use for what it needs.
        from jobrunner.executor.confine import check_confinement

        check_confinement(config)
    return config


def _read_config(ctx: click.Context) -> Config:
    """Read the settings; a supervisor that runs already does not end for a file that was broken a moment ago."""
    while True:
        try:
            return _read_what_works(ctx)
        except ConfigError as error:
            if HANDED_OVER not in os.environ:
                raise
            click.echo(f"jobrunner: waiting for settings that can be read: {error}", err=True)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
            time.sleep(1)


_NOT_FOR_CHILDREN = {
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", HANDED_OVER)
}


@click.command(hidden=True)
def executor() -> None:
    """Run jobs; ``serve`` starts this."""
    die_with_parent(int(os.environ.get(PARENT, os.getppid())))
    from jobrunner.app import run_executor
    from jobrunner.house import open_house

    house = open_house()
    house.prepare()
    if run_executor(house):
        sys.exit(DRAINED)


@click.command(hidden=True)
def web() -> None:
    """Answer HTTP; ``serve`` starts this."""
    die_with_parent(int(os.environ.get(PARENT, os.getppid())))
    from gunicorn.app.wsgiapp import run

    _pass_listeners()
    # Loaded once, before the fork: workers share the memory of the code.
    sys.argv = ["gunicorn", "--config", "python:jobrunner.gunicorn_conf", "--preload", "jobrunner.app:create_app()"]
    run()


def _pass_listeners() -> None:
    """Give gunicorn the supervisor's sockets as systemd would: as descriptors from 3 on (sd_listen_fds(3))."""
    listeners = [int(fd) for fd in os.environ.pop(LISTEN_FDS).split(",")]
    beyond = _FIRST_FD + len(listeners)

    def move(fd: int) -> int:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD, beyond)
        os.close(fd)
        return moved

    os.environ[READY_FD] = str(move(int(os.environ[READY_FD])))
    for place, listener in enumerate([move(fd) for fd in listeners], _FIRST_FD):
        os.dup2(listener, place)
        os.close(listener)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(listeners)))


_FIRST_FD = 3


COMMANDS = {"serve": serve, "executor": executor, "web": web}
