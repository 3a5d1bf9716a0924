"""What every run of an executor shares."""

from collections.abc import Mapping
from dataclasses import dataclass

from jobrunner.clock import Now
from jobrunner.config import Output
from jobrunner.ends import EndsFile
from jobrunner.executor.cgroup import ControlGroups
from jobrunner.executor.confine import Confinement
from jobrunner.executor.ledger import Ledger
from jobrunner.executor.tree import Orphans
from jobrunner.spool import Spool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every run of an executor shares.

    Attributes:
        environment: the base environment of jobs.
        kill_leftovers: whether to end what an ended job has left behind.
        output: how much is kept of what jobs write.
        orphans: what jobs may have left behind; None: to be searched for each time.
        ends: what the supervisor has written down of orphans.
        groups: control groups for jobs; None: there are none.
        confinement: as whom jobs run, within which limits, and in what.
    """

    spool: Spool
    ledger: Ledger
    environment: Mapping[str, str]
    kill_leftovers: bool
    output: Output
    orphans: Orphans | None
    ends: EndsFile
    groups: ControlGroups | None
    confinement: Confinement
    now: Now
