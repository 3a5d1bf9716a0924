"""Processes of the tests' own: ``python -m tests.integration.workers TASK ARGUMENT…``.

A worker says ``ready`` when it has done what takes long, waits for ``go``, so
that all of a crew begin at once, and prints what it has found as one line of JSON.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobrunner.clock import utc_now
from jobrunner.house import House
from jobrunner.store import execution
from jobrunner.store.engine import Database
from jobrunner.store.migrate import upgrade
from tests.factories import make_config
from tests.service import ROOT, clean_environment


def run_crew(size: int, task: str, *arguments: object, within: float = 60.0) -> list[Any]:
    """Have this many processes do a task at the same time; return what each has found."""
    command = [sys.executable, "-m", __name__, task, *map(str, arguments)]
    crew = [
        subprocess.Popen(
            [*command, str(place)],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for place in range(size)
    ]
    try:
        for worker in crew:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", "a worker has died"
        for worker in crew:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        found = [worker.communicate(timeout=within)[0] for worker in crew]
        assert [worker.returncode for worker in crew] == [0] * size
        return [json.loads(text) for text in found]
    finally:
        for worker in crew:
            if worker.poll() is None:
                worker.kill()
            worker.communicate()


def wait_for_go() -> None:
    """Begin together with the others."""
    print("ready", flush=True)
    assert sys.stdin.readline() == "go\n"


def claim(database: Path, batch: str, place: str) -> list[list[int]]:
    """Claim jobs in batches until the queue is empty; return rank and number of each, in order."""
    opened = Database(database)
    found: list[list[int]] = []
    wait_for_go()
    while True:
        with opened.write() as connection:
            jobs = execution.claim_jobs(connection, f"worker {place}", int(batch), utc_now())
        if not jobs:
            return found
        found.extend([job.spec.priority.rank, job.number] for job in jobs)


def commit(database: Path, threads: str, seconds: str, place: str) -> dict[str, float]:
    """Commit as often as can be, durably; return the number of commits and the longest wait for one."""
    del place
    opened = Database(database, synchronous="full")
    counts, worst = [0] * int(threads), [0.0] * int(threads)

    def work(index: int, end: float) -> None:
        while (begun := time.monotonic()) < end:
            with opened.write(durable=True) as connection:
                connection.exec_driver_sql("UPDATE token SET created_at = created_at || ''")
            counts[index] += 1
            worst[index] = max(worst[index], time.monotonic() - begun)

    wait_for_go()
    end = time.monotonic() + float(seconds)
    crew = [threading.Thread(target=work, args=(index, end)) for index in range(int(threads))]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    opened.close()
    return {"commits": sum(counts), "least": min(counts), "worst": max(worst)}


def prepare(data_dir: Path, place: str) -> str:
    """Start a service in a data directory, as far as `House.prepare` goes; return the token that is there then."""
    del place
    house = House(make_config(data_dir))
    wait_for_go()
    house.prepare()
    return house.admin_token_file.read_text()


def migrate(database: Path, place: str) -> str:
    """Bring a database up to date."""
    del place
    opened = Database(database)
    wait_for_go()
    upgrade(opened)
    opened.close()
    return "done"


TASKS: dict[str, Callable[..., Any]] = {"claim": claim, "commit": commit, "prepare": prepare, "migrate": migrate}


if __name__ == "__main__":
    name, path, *rest = sys.argv[1:]
    print(json.dumps(TASKS[name](Path(path), *rest)))
