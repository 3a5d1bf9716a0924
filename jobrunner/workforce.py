"""Who does the work of a data directory, made of the parts of its house: an executor, and who sends callbacks."""

import os
import secrets
from collections.abc import Mapping

from jobrunner.callbacks.delivery import Deliverer
from jobrunner.callbacks.sending import Sender
from jobrunner.clock import utc_now
from jobrunner.domain.callback import Message, Teller
from jobrunner.domain.errors import ConfigError
from jobrunner.domain.job import Job
from jobrunner.ends import EndsFile
from jobrunner.executor.cgroup import ControlGroups
from jobrunner.executor.confine import add_sandbox, check_places
from jobrunner.executor.pool import Executor
from jobrunner.executor.tree import Orphans
from jobrunner.house import House
from jobrunner.work import Work


def make_executor(house: House, *, owns_process: bool = False) -> Executor:
    """Make an executor, with an identity of its own.

    Args:
        house: its parts.
        owns_process: nobody else in this process has children, or cares for orphans.

    Raises:
        ConfigError: there are no control groups where the settings say, or jobs can't be confined as they say.
    """
    settings = house.config.executor
    try:
        groups = ControlGroups.find(settings.cgroup)
    except OSError as error:
        raise ConfigError([f"[executor] cgroup = {settings.cgroup}: {error.strerror}: {error.filename}"]) from error
    house.confinement.try_out(str(house.data_dir / "jobs"))
    check_places(house.config, house.confinement)
    return Executor(
        f"{os.getpid()}-{secrets.token_hex(8)}",
        house.database,
        house.spool,
        house.hints,
        max_running=settings.max_running,
        stop_grace=settings.grace if settings.on_stop == "kill" else None,
        environment=house.base_environment,
        kill_leftovers=settings.kill_leftovers,
        output=house.config.output,
        orphans=Orphans() if owns_process else None,
        ends=EndsFile(house.data_dir / "run" / "ends"),
        groups=groups,
        confinement=add_sandbox(house.config, house.confinement),
        drain=house.drain,
        masks=house.masks,
        now=utc_now,
    )


def make_deliverer(house: House) -> Deliverer:
    """Make one who sends callbacks, with an identity of its own."""
    settings = house.config.callbacks
    identity = f"{os.getpid()}-{secrets.token_hex(8)}"
    sender = Sender(settings.policy, utc_now)
    return Deliverer(
        identity,
        house.database,
        house.hints,
        sender,
        make_tellers(house),
        settings,
        house.data_dir / "run",
        now=utc_now,
    )


def make_work(house: House) -> Work:
    """Make an executor and a deliverer for a process of which they are the purpose."""
    return Work(make_executor(house, owns_process=True), make_deliverer(house), house.executor_lock)


def make_tellers(house: House) -> Mapping[str, Teller]:
    """Make what tells of an ended job, by the API that it came through (`Job.api`)."""

    def tell_v1(job: Job) -> Message:
        # Here, since it loads much that an executor needs for nothing else.
        from jobrunner.service.callbacks import render_message

        return render_message(job, house.output)

    def tell_http_runner(job: Job) -> Message:
        from jobrunner.web.dialects.http_runner_document import render_message

        return render_message(job, house.output, utc_now())

    def tell_qmd(job: Job) -> Message:
        from jobrunner.web.dialects.qmd_document import render_message

        return render_message(job, house.output)

    return {"v1": tell_v1, "qmd": tell_qmd, "http-runner": tell_http_runner}
