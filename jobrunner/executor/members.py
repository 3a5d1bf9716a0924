"""The processes of one job: the one that runs its step, those of the steps before, and what they have started."""

import signal
from collections.abc import Iterable

from jobrunner.executor.process import Process
from jobrunner.executor.sandbox import without_reaper
from jobrunner.executor.surroundings import Surroundings
from jobrunner.executor.tree import Member, list_members, send


class Members:
    """All processes of a job.

    Attributes:
        process: of the step that runs, or has ended and was not reaped yet; None: there is none.
        is_adopted: the job was begun by another executor: what it has left behind may be anybody's child.
    """

    def __init__(self, job_id: str, around: Surroundings) -> None:
        self._job_id = job_id
        self._orphans = around.orphans
        self._groups = around.groups
        self.process: Process | None = None
        self.is_adopted = False
        self._retired: list[Process] = []

    def replace(self, process: Process) -> None:
        """Go on with the process of the next step.

        The one before has ended, and that is written down. It is reaped only at the job's end if it has left anything
        behind: until then its pid, which is the id of its group and session, can't become another's.
        """
        before, self.process = self.process, process
        if before is not None and before.is_child and (self._orphans is None or self._orphans.may_exist()):
            before.close()
            self._retired.append(before)
        elif before is not None:
            before.release()

    def may_be_left(self) -> bool:
        """Tell whether there may be anything besides the step's process. Much cheaper than a search."""
        return self.is_adopted or self._orphans is None or self._orphans.may_exist()

    def look(self) -> list[Member]:
        """Search for all that lives, besides the step's process."""
        current = self.process
        leaders = {process.pid for process in self._retired}
        if current is not None and current.is_child:
            leaders.add(current.pid)
        group = frozenset(self._groups.list_pids(self._job_id)) if self._groups is not None else ()
        return without_reaper(
            list_members(self._job_id, besides=current.pid if current else None, leaders=leaders, group=group)
        )

    def signal_group(self, number: int) -> bool:
        """Send a signal to the group of the step's process. False when nobody was there."""
        return self.process is not None and self.process.signal_group(number)

    def signal_all(self, number: int) -> bool:
        """Send a signal to everything. False when nobody was there."""
        found = self.signal_group(number)
        pgid = self.process.pid if self.process is not None else None
        return self.send([member for member in self.look() if not found or member.pgid != pgid], number) or found

    def send(self, members: Iterable[Member], number: int) -> bool:
        """Signal those that were found. False when nobody was there."""
        if number == signal.SIGKILL and self._groups is not None:
            self._groups.kill(self._job_id)  # however fast it makes new ones
        return send(members, number)

    def release(self) -> None:
        """Reap what is ours: the job's end is written down."""
        self._reap_retired()
        if self.process is not None:
            self.process.release()
        if self._groups is not None:
            self._groups.remove(self._job_id)

    def leave(self) -> None:
        """Leave the step's process to whoever comes next."""
        self._reap_retired()
        if self.process is not None:
            self.process.leave()

    def _reap_retired(self) -> None:
        for process in self._retired:
            process.release()
