"""``jobrunner serve``: the parent of the executor and of gunicorn.

Keeps both running, replaces both on SIGHUP, ends both on SIGTERM. Reaps the
orphans of dead executors and writes down how they ended. It knows neither
Flask nor the database, so that it stays small and has little to fail with.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping

from jobrunner.children import DRAINED, EXECUTOR, WEB, Child, Restarts, command_line, peek, start_child
from jobrunner.config import Config
from jobrunner.domain.errors import ConfigError
from jobrunner.drain import Drain
from jobrunner.ends import EndsFile, Registrar
from jobrunner.handover import Handover
from jobrunner.listener import open_listeners
from jobrunner.notify import Notifier
from jobrunner.parent import become_subreaper

logger = logging.getLogger("jobrunner.supervisor")

_STOP = {signal.SIGTERM, signal.SIGINT}
_LISTENED_TO = (*_STOP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)

LISTEN_PATIENCE = 5.0
"""Seconds that the processes of a service before us, which was killed, may take to give the address back."""

BOOT_SECONDS = 60.0
"""How long new processes may take to get ready when the service is reloaded."""


class Supervisor:
    """Runs the service until it is told to stop, or drained, or can't be started.

    Args:
        config: the settings.
        load: reads them again, when the service is reloaded.
        environ: the environment of the children.
    """

    def __init__(self, config: Config, load: Callable[[], Config], environ: Mapping[str, str]) -> None:
        self._load = load
        self._config = config
        self._environ = environ
        self._notifier = Notifier()
        self._children: dict[int, Child] = {}
        self._restarts = Restarts()
        self._kill_at: float | None = None
        self._reload_until: float | None = None
        self._watchdog_at = 0.0
        self._reload_again = False
        self._was_up = False
        self._code = 0
        run = self._config.data_dir / "run"
        for made in (self._config.data_dir, run):  # one by one: the mode is not for parents
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._registrar = Registrar(EndsFile(run / "ends"))
        self._drain = Drain(run / "draining")
        if handover := Handover.take():
            self._reload_again = handover.reload_again
            for name, pid in handover.children.items():
                self._children[pid] = Child(name, pid, time.monotonic(), is_up=True)
        self._listeners = handover.listeners if handover else open_listeners(self._config, patience=LISTEN_PATIENCE)
        self._before = (self._config, self._listeners)
        """What counted before a reload, and does again if it fails."""

    # ── the loop ──

    def run(self) -> int:
        """Run to the end; return the exit code of the service: 0 when it was told to stop."""
        become_subreaper()
        inbox, outbox = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A handler must be there for a signal to be written to the descriptor;
        # all it means is decided in the loop.
        signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
        for number in _LISTENED_TO:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LISTENED_TO)  # see _execute_anew
        if self._children:
            self._was_up = True
            logger.info("the new supervisor took over")
            self._notifier.ready()
            if self._reload_again:
                self._reload()
        else:
            if os.getpid() == 1 and self._config.executor.on_stop == "keep":
                logger.warning(
                    "process 1 of a container takes its jobs along when it ends;"
                    " [executor] on_stop = kill gives them the time to end themselves"
                )
            self._drain.end()
            for name in (EXECUTOR, WEB):
                self._start(name)
        self._reap()  # who ended while there was no handler
        while self._children or self._restarts:
            self._turn(self._wait(inbox))
        # Python gives handlers back to the default while it shuts down: one
        # more SIGTERM must not change the exit code then.
        for number in _LISTENED_TO:
            signal.signal(number, signal.SIG_IGN)
        self._listeners.close()
        return self._code

    def _turn(self, signals: set[int]) -> None:
        if signals & _STOP:
            self._stop("stopping")
        if signal.SIGUSR2 in signals and self._kill_at is None:
            self._code = 1
            self._stop("stopping: a client has asked for it")
        if signal.SIGHUP in signals:
            self._reload()
        if signal.SIGUSR1 in signals:
            self._begin_to_drain()
        self._reap()
        self._go_on_reloading()
        now = time.monotonic()
        for name in self._restarts.take_due(now):
            self._start(name)
        if self._kill_at is not None and now >= self._kill_at:
            logger.warning("killing what has not ended in time")
            self._send(signal.SIGKILL, list(self._children.values()))
            self._kill_at = float("inf")
        if self._notifier.watchdog_seconds and now >= self._watchdog_at:
            self._watchdog_at = now + self._notifier.watchdog_seconds
            self._notifier.watchdog()

    def _wait(self, inbox: int) -> set[int]:
        """Wait for signals, for children that tell something, or until something is due."""
        due = [*self._restarts.times]
        due += [at for at in (self._kill_at, self._reload_until) if at not in {None, float("inf")}]
        if self._notifier.watchdog_seconds:
            due.append(self._watchdog_at)
        telling = {child.ready_fd: child for child in self._children.values() if child.ready_fd is not None}
        pause = max(min(due) - time.monotonic(), 0) if due else None
        readable, _, _ = select.select([inbox, *telling], [], [], pause)
        for fd in readable:
            if fd != inbox:
                self._hear(telling[fd])
        try:
            return set(os.read(inbox, 4096))
        except BlockingIOError:
            return set()

    # ── children ──

    def _start(self, name: str) -> None:
        try:
            child = start_child(name, self._environ, self._listeners)
        except OSError as error:  # no descriptor, no memory, no process is to be had: not for ever
            logger.error("can't start the %s process, trying again: %s", name, error)  # noqa: TRY400
            self._restarts.add_refused(name)
        else:
            self._children[child.pid] = child

    def _hear(self, child: Child) -> None:
        child.hear()
        if child.is_up and not self._was_up and all(each.is_up for each in self._children.values()):
            self._was_up = True
            self._notifier.ready()

    def _reap(self) -> None:
        """Reap whoever has ended; write down who was nobody's child any more."""
        while info := peek():
            child = self._children.pop(info.si_pid, None)
            if child is None:
                self._registrar.record_end(info)
            os.waitpid(info.si_pid, 0)
            if child is not None:
                self._ended(child, info)

    def _ended(self, child: Child, info: os.waitid_result) -> None:
        child.close()
        how = f"exit code {info.si_status}" if info.si_code == os.CLD_EXITED else f"signal {info.si_status}"
        if child.name == EXECUTOR:
            self._registrar.record_orphans(but=self._children, executor=command_line(EXECUTOR))
        if child.is_leaving:
            return
        if child.name == EXECUTOR and info.si_code == os.CLD_EXITED and info.si_status == DRAINED:
            self._stop("drained: the last job has ended")
        elif not self._was_up:
            # It would not get better: the settings, the port, the disk. The child has said what it is.
            logger.error("the %s process has ended with %s before the service was up", child.name, how)
            self._code = 1
            self._stop("stopping")
        elif self._reload_until is not None and any(
            other.name == child.name and not other.is_leaving for other in self._children.values()
        ):
            self._abandon_reload(f"the new {child.name} process has ended with {how}")
        else:
            delay = self._restarts.add_dead(child)
            logger.error("the %s process has ended with %s; starting it again in %g s", child.name, how, delay)

    def _send(self, number: int, children: list[Child]) -> None:
        for child in children:
            child.is_leaving = True
            os.kill(child.pid, number)  # not reaped, so its pid is its own

    # ── the end ──

    def _stop(self, why: str) -> None:
        if self._kill_at is not None:
            return
        logger.info("%s", why)
        self._notifier.stopping()
        self._restarts.clear()
        self._reload_until = None
        self._kill_at = time.monotonic() + self._config.executor.grace + 4
        self._send(signal.SIGTERM, list(self._children.values()))

    def _begin_to_drain(self) -> None:
        try:
            self._drain.begin()
        except OSError as error:
            logger.error("can't drain: %s", error)  # noqa: TRY400
            return
        logger.info("draining: no new jobs; the service ends with the last one")
        self._notifier.status("draining")

    # ── new code and new settings ──

    def _reload(self) -> None:
        if self._kill_at is not None:
            return
        if self._reload_until is not None:
            self._reload_again = True
            return
        self._reload_again = False
        logger.info("reloading")
        self._notifier.reloading()
        try:
            config = self._load()
            if config.data_dir != self._config.data_dir:
                raise ConfigError(["[storage] data_dir can't be changed by a reload; stop the service"])
            listeners = open_listeners(config, before=(self._config, self._listeners))
        except (ConfigError, OSError) as error:
            self._not_reloaded(str(error))
            return
        self._before = (self._config, self._listeners)
        self._config, self._listeners = config, listeners
        self._restarts.clear()
        self._reload_until = time.monotonic() + BOOT_SECONDS
        for name in (EXECUTOR, WEB):
            self._start(name)

    def _go_on_reloading(self) -> None:
        """When all new processes are up, tell the old ones to leave; when they have, execute ourselves anew."""
        if self._reload_until is None:
            return
        if time.monotonic() >= self._reload_until:
            self._abandon_reload("the new processes do not get ready")
            return
        staying = [child for child in self._children.values() if not child.is_leaving]
        newest = {child.name: child for child in staying}  # in the order they were started
        old = [child for child in staying if child is not newest[child.name]]
        if len(newest) < 2 or not all(child.is_up for child in newest.values()):
            return
        self._reload_until = float("inf")
        if old:
            # SIGHUP has an executor leave its jobs to the next one, whatever on_stop says.
            self._send(signal.SIGHUP, [child for child in old if child.name == EXECUTOR])
            self._send(signal.SIGTERM, [child for child in old if child.name == WEB])
        if not any(child.is_leaving or child.ready_fd is not None for child in self._children.values()):
            self._execute_anew()

    def _not_reloaded(self, why: str) -> None:
        logger.error("not reloaded, all goes on as before: %s", why)
        if self._was_up:
            self._notifier.ready("serving; not reloaded, the log says why")

    def _abandon_reload(self, why: str) -> None:
        self._not_reloaded(why)
        self._reload_until = None
        staying = [child for child in self._children.values() if not child.is_leaving]
        oldest = {child.name: child for child in reversed(staying)}
        self._send(signal.SIGTERM, [child for child in staying if child is not oldest[child.name]])
        failed = self._listeners
        self._config, self._listeners = self._before
        failed.close(but=self._listeners)

    def _execute_anew(self) -> None:
        """Go on as the program that is on the disk now, with the same pid and the same children: execve(2)."""
        self._before[1].close(but=self._listeners)
        # Until there are handlers again a signal would end us, as is its default.
        signal.pthread_sigmask(signal.SIG_BLOCK, _LISTENED_TO)
        children = {child.name: child.pid for child in self._children.values()}
        Handover(self._listeners, children, self._reload_again).execute_anew()
