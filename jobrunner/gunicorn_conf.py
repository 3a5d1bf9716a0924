"""gunicorn's settings, from ours: ``gunicorn -c python:jobrunner.gunicorn_conf wsgi:app``.

``jobrunner serve`` uses them; a ``gunicorn.conf.py`` beside ``wsgi.py`` imports
them, so that a plain ``gunicorn wsgi:app`` there has them too. What is given on
gunicorn's command line wins.
"""

import os
from contextlib import suppress
from typing import Any

from jobrunner.config_loading import load_config
from jobrunner.gunicorn_connection import MOST_TAKERS, ClientSocket
from jobrunner.gunicorn_worker import MOST_READERS, PatientWorker
from jobrunner.log import logging_config
from jobrunner.memory import settle
from jobrunner.parent import READY, READY_FD, die_with_parent, tell_parent
from jobrunner.web.refusal import EXTENSION as REFUSER

_config = load_config()
_server = _config.server

bind = _config.binds
workers = _server.workers
worker_class = "jobrunner.gunicorn_worker.PatientWorker"
logger_class = "jobrunner.gunicorn_errors.QuietLogger"
# Those that wait for jobs, follow them, wait for the rest of large bodies, or for clients that
# take files slowly, come on top, so that they never take the place of ordinary requests.
threads = _server.threads + _server.waiters_per_worker + _server.followers_per_worker + MOST_READERS + MOST_TAKERS
worker_connections = 1000
keepalive = 15
# Under a supervisor less than its patience, which is the grace period and four
# seconds; without one a worker may have to end jobs first (on_stop = kill).
graceful_timeout = int(
    min(_config.executor.grace + 2, 10) if READY_FD in os.environ else max(_config.executor.grace, 10) + 5
)
# gunicorn would open one in the home directory, the same for two instances,
# through which anybody of this user can change the number of workers.
control_socket_disable = True
# The heartbeat of a worker is a file it touches: not on a disk, if that can be
# helped. In a container the data directory may be all that can be written to.
worker_tmp_dir = next(
    (place for place in ("/dev/shm", "/tmp", str(_config.data_dir / "run")) if os.access(place, os.W_OK | os.X_OK)),  # noqa: S108
    None,
)
limit_request_line = 8190
# Else gunicorn believes anybody on this machine, and everybody on a unix socket,
# what they say of the scheme and of SCRIPT_NAME: [server] trusted_proxies decides.
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
logconfig_dict = logging_config(_config.logging.format, _config.logging.level)


def when_ready(server: Any) -> None:  # noqa: ARG001 gunicorn's signature
    """Fork workers that share the memory of the application, if it was preloaded."""
    settle()


def pre_fork(server: Any, worker: Any) -> None:
    """Choose a CPU for the new worker: one that the fewest others have."""
    cpus = sorted(os.sched_getaffinity(0))
    if not _server.pin_workers or server.num_workers > len(cpus):
        worker.cpu = None
        return
    # Not the same ones as the next instance on this machine.
    cpus = [cpus[(os.getpid() + index) % len(cpus)] for index in range(len(cpus))]
    taken = [getattr(other, "cpu", None) for other in server.WORKERS.values()]
    worker.cpu = min(cpus, key=taken.count)


def post_fork(_server: Any, worker: Any) -> None:
    """Have a worker end with its parent, however that dies: gunicorn would only notice after a while."""
    die_with_parent(worker.ppid)


def post_worker_init(worker: Any) -> None:
    """Start in a worker what does not survive a fork, and tell it how to stop."""
    parts = worker.wsgi.extensions["jobrunner"]
    if worker.cfg.threads < threads:
        # gunicorn's command line has set fewer; those who wait must not take all of them.
        spare = max(worker.cfg.threads - _server.threads, worker.cfg.threads // 2)
        parts.waiters.limit_to(spare - spare // 2)
        parts.followers.limit_to(spare // 2)
        if isinstance(worker, PatientWorker):
            worker.readers.most = max(1, min(spare // 4, MOST_READERS))
            ClientSocket.takers.most = max(1, min(spare // 4, MOST_TAKERS))
    worker.on_stop = parts.close
    worker.refuser = worker.wsgi.extensions[REFUSER]
    embedded = worker.wsgi.extensions.get("jobrunner.executor")
    if embedded is not None:
        embedded.ensure_started()
    elif worker.cpu is not None:
        # Only one thread of a Python process runs at a time. On several CPUs
        # they pass its lock around, which costs more than the work of a
        # request. Jobs would inherit this, so not where they are started.
        with suppress(OSError):  # the CPU may have been taken away meanwhile
            os.sched_setaffinity(0, {worker.cpu})
    tell_parent(READY)


def worker_exit(_server: Any, worker: Any) -> None:
    """Give running jobs to the worker that takes over."""
    embedded = getattr(worker, "wsgi", None) and worker.wsgi.extensions.get("jobrunner.executor")
    if embedded:
        embedded.stop()
