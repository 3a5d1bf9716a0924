"""The composition root: the parts become a web application, or the executor's process."""

import os
import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from jobrunner.config import Config
from jobrunner.house import House, open_house
from jobrunner.memory import settle
from jobrunner.parent import PARENT, READY, STANDBY, ask_to_stop, tell_parent

if TYPE_CHECKING:
    from flask import Flask

    from jobrunner.config_dialects import DialectSettings
    from jobrunner.web.dialects.dialect import Here
    from jobrunner.web.services import Services


def create_app(config: Config | None = None) -> "Flask":
    """Make the web application; the executor is another process's.

    Raises:
        ConfigError, StorageError, OSError: the service can't work like this.
    """
    return _make_app(open_house(config))


def create_standalone_app(config: Config | None = None) -> "Flask":
    """Make the web application with an executor inside: for a server that ``jobrunner serve`` has not started.

    Raises:
        ConfigError, StorageError, OSError: the service can't work like this.
    """
    from jobrunner.work import EmbeddedWork
    from jobrunner.workforce import make_work

    house = open_house(config)
    app = _make_app(house)
    embedded = app.extensions["jobrunner.executor"] = EmbeddedWork(partial(make_work, house))
    # gunicorn starts it with our settings when a worker is up. A server
    # without them has to wait for the first request, the first sign of being
    # a worker and not the parent of one.
    for each in (app, *app.extensions["jobrunner.dialects"].values()):
        each.before_request(embedded.ensure_started)
    return app


def _make_app(house: House) -> "Flask":
    from jobrunner.web.application import make_flask_app

    house.prepare()
    spoken = [make_dialect(house, name, settings) for name, settings in house.config.enabled_dialects.items()]
    return make_flask_app(make_services(house), spoken)


def make_services(house: House) -> "Services":
    """Return what the web layer works with."""
    from jobrunner.service.failures import Failures
    from jobrunner.web.services import Services

    return Services(
        jobs=house.jobs,
        submissions=house.submissions,
        output=house.output,
        files=house.files,
        callbacks=house.callbacks,
        access=house.access,
        audit=house.audit,
        failures=Failures(house.config.auth.max_failures, house.config.auth.failure_window),
        catalogue=house.catalogue,
        health=house.health,
        waiters=house.waiters,
        followers=house.followers,
        settings=house.config.server,
    )


def make_dialect(house: House, name: str, settings: "DialectSettings") -> "Here":
    """Return what a dialect works with."""
    from jobrunner.config_dialects import QmdSettings
    from jobrunner.service.dialects import DialectService
    from jobrunner.web.dialects.dialect import Here

    scripts_dir = settings.scripts_dir if isinstance(settings, QmdSettings) else None
    jobs = house.make_jobs(only_api=name)
    submissions = house.make_submissions(name, jobs, scripts_dir=scripts_dir)
    dialect = DialectService(name, jobs, house.database, house.spool, house.access, house.audit)
    stop = ask_to_stop if PARENT in os.environ else None
    return Here(
        name,
        settings,
        replace(make_services(house), jobs=jobs, submissions=submissions),
        dialect,
        house.data_dir,
        lambda: house.drain.is_on,
        house.config.work_dir,
        stop,
    )


def run_executor(house: House) -> bool:
    """Be the executor process: wait for the lock, work until SIGTERM, SIGINT, SIGHUP, or the end of a drain.

    SIGHUP leaves running jobs to the executor that takes over, whatever ``on_stop`` says.

    Returns:
        Whether it ended because it was drained.
    """
    from jobrunner.executor.spawning import heed_all_signals
    from jobrunner.workforce import make_work

    work = make_work(house)
    heed_all_signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: work.stop())
    signal.signal(signal.SIGHUP, lambda *_: work.stop(leave_jobs=True))
    settle()
    return work.run(on_standby=lambda: tell_parent(STANDBY), on_ready=lambda: tell_parent(READY), until_drained=True)
