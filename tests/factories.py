"""Makes what tests need: configurations, houses, jobs. Real files, real databases."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobrunner.config import Config, Storage
from jobrunner.domain.access import ADMINISTRATOR, Caller
from jobrunner.domain.job import Job
from jobrunner.domain.spec import StepKind
from jobrunner.house import House
from jobrunner.locks import FileLock
from jobrunner.service.submission import StepAsked, Submission
from jobrunner.workforce import make_executor

CALLER = Caller("tester", ADMINISTRATOR)


def make_config(data_dir: Path, **sections: dict[str, Any]) -> Config:
    """Make a configuration: ``make_config(path, executor={"max_running": 2})``."""
    config = Config(storage=Storage(data_dir=data_dir, min_free_bytes=0))
    for section, values in sections.items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    return config


def make_house(data_dir: Path, **sections: dict[str, Any]) -> House:
    """Make a prepared house over this data directory."""
    house = House(make_config(data_dir, **sections))
    house.prepare()
    return house


def shell(text: str, **members: Any) -> Submission:
    """Ask for a shell command."""
    return Submission((StepAsked(StepKind.COMMAND, (text,)),), **members)


def argv(*words: str, **members: Any) -> Submission:
    """Ask for a program."""
    return Submission((StepAsked(StepKind.ARGV, words),), **members)


def sequence(*texts: str | StepAsked, **members: Any) -> Submission:
    """Ask for several steps: shell commands, or what they are said to be."""
    steps = (text if isinstance(text, StepAsked) else StepAsked(StepKind.COMMAND, (text,)) for text in texts)
    return Submission(tuple(steps), is_sequence=True, **members)


def make_job(house: House, asked: Submission | None = None, **members: Any) -> Job:
    """Queue a job in this house, ``true`` if nothing else is asked for."""
    return house.submissions.submit(asked or argv("true", **members), CALLER).job


@contextmanager
def running_executor(house: House) -> Iterator[None]:
    """Run the house's executor on a thread meanwhile; at the end it gives its jobs up, or ends them by ``on_stop``."""
    executor = make_executor(house)
    thread = threading.Thread(target=executor.run, args=(FileLock(house.executor_lock),), name="test-executor")
    thread.start()
    try:
        yield
    finally:
        executor.stop()
        thread.join(timeout=30)
        assert not thread.is_alive(), "the executor does not stop"


def is_dead(pid: int) -> bool:
    """Tell whether a process has ended: a zombie that nobody has reaped yet counts as dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def children_of(pid: int) -> list[int]:
    """Return the children of a process that are not zombies."""
    tasks = Path(f"/proc/{pid}/task")
    found = [
        int(child)
        for task in (os.listdir(tasks) if tasks.exists() else [])
        for child in (tasks / task / "children").read_text().split()
    ]
    return [child for child in found if not is_dead(child)]
