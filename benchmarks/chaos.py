"""Kill processes of the service at random while jobs run, and see whether anything is lost, run twice or wrong.

python -m benchmarks.chaos --minutes 30 [--workers 4] [--seed 1]
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from jobrunner.proc import list_pids, read_stat
from tests.service import Service, eventually

SCRIPT = """\
step=$JOBRUNNER_JOB_STEP
echo "begin {index} $step" >> {ledger}
sleep {seconds}
printf 'out {index}\\n'
printf 'err {index}\\n' >&2
echo "end {index} $step $(date +%s.%N)" >> {ledger}
exit {code}
"""

_STEPS = 3
"""Of every third job; the others have one."""

_EXECUTOR_AWAY = 5.0
"""Seconds that a killed executor may take to be there again, on a machine with much to do."""

_SPAWNING = 0.1
"""Seconds that may pass between the begin of a step and the record of its process."""

_STARTING = 1.0
"""Seconds around the begin of a step in which a killed executor may have been about to make its process."""


@dataclass
class Report:
    """What was done, and what was wrong; without `wrong` all is well.

    Attributes:
        jobs: acknowledged submissions.
        unanswered: submissions whose connection broke before the answer.
        kills: how often which process was killed.
        lost: jobs of which nobody saw how a step ended, or whether it began.
        presumed: those of them that are put down to a kill at about the time of their start, by the clock alone: many
            of them would be a fault.
    """

    jobs: int = 0
    unanswered: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    presumed: int = 0
    wrong: list[str] = field(default_factory=list)


class Chaos:
    """A service, clients that submit, and somebody who kills."""

    def __init__(self, directory: Path, *, workers: int, seed: int, pace: float) -> None:
        self._random = random.Random(seed)
        self._pace = pace
        self._ledger = directory / "ledger"
        self._ledger.touch()
        self._service = Service(directory / "data", {"server": {"workers": workers}, "executor": {"max_running": 8}})
        self._acknowledged: dict[str, int] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._down: list[tuple[float, float]] = []
        self._executor_killed: list[float] = []
        self.report = Report()

    def run(self, seconds: float, least: int) -> Report:
        """Go on for so long, and until so many jobs are acknowledged; then check all of them."""
        self._service.start()
        headers = {"Authorization": f"Bearer {self._service.token}"}
        deadline = time.monotonic() + seconds
        with ThreadPoolExecutor(3) as pool:
            clients = [pool.submit(self._submit, headers) for _ in range(3)]
            try:
                while time.monotonic() < deadline or len(self._acknowledged) < least:
                    time.sleep(self._random.uniform(0.3, 1.2))
                    self._kill(self._random.choice(["worker", "worker", "web", "executor", "executor", "serve", "all"]))
            finally:
                self._stop.set()
            for client in clients:
                client.result()
        try:
            self._check()
        finally:
            self._service.stop()
        return self.report

    def _submit(self, headers: dict[str, str]) -> None:
        while not self._stop.is_set():
            with self._lock:
                index = self._next
                self._next += 1
            code = index % 7
            seconds = (index % 5) * 0.1
            count = _count_steps(index)
            steps = [
                {"argv": ["/bin/sh", "-c", SCRIPT.format(index=index, ledger=self._ledger, seconds=seconds, code=end)]}
                for end in [*[0] * (count - 1), code]
            ]
            try:
                answer = requests.post(
                    f"{self._service.url}/v1/jobs",
                    json={"steps": steps} if count > 1 else steps[0],
                    headers=headers,
                    timeout=30,
                )
            except requests.RequestException:
                self.report.unanswered += 1
                time.sleep(0.05)
                continue
            if answer.status_code == 202:
                self._acknowledged[answer.json()["id"]] = index
            else:
                self.report.wrong.append(f"submission {index}: {answer.status_code} {answer.text[:200]}")
            time.sleep(self._pace)

    def _kill(self, whom: str) -> None:
        own = self._own()
        chosen = [pid for pid, name in own.items() if whom in {name, "all"}]
        if not chosen:
            return
        if whom == "worker":
            chosen = [self._random.choice(chosen)]
        self.report.kills[whom] += 1
        began = time.time()
        if whom == "executor":
            self._executor_killed.append(began)
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if whom in {"serve", "all"}:
            assert self._service.process is not None
            self._service.process.wait()
            # What is left of it still answers for a moment, and must not be taken for the next one: an executor that is
            # killed before its supervisor is up ends that, too.
            assert eventually(lambda: not self._is_ready(), within=60), "the workers outlive their supervisor"
            self._service.start()
            self._down.append((began, time.time()))

    def _own(self) -> dict[int, str]:
        """Return the service's processes, without those of its jobs, and what they are."""
        stats = {pid: stat for pid in list_pids() if (stat := read_stat(pid))}
        found = {self._service.pid: "serve"}
        for pid, stat in stats.items():
            word = (_command_line(pid) or [""])[-1]
            if stat.parent == self._service.pid and stat.session != pid and word in {"executor", "web"}:
                found[pid] = word
        webs = [pid for pid, name in found.items() if name == "web"]
        found.update((pid, "worker") for pid, stat in stats.items() if stat.parent in webs)
        return found

    def _check(self) -> None:
        self._service.http.close()
        assert eventually(self._is_ready, within=60), "the service does not come back"
        documents = {job: self._wait(job) for job in self._acknowledged}
        begun: Counter[tuple[int, int]] = Counter()
        ended: dict[tuple[int, int], float] = {}
        for line in self._ledger.read_text().splitlines():
            words = line.split()
            which = int(words[1]), int(words[2])
            if words[0] == "begin":
                begun[which] += 1
            else:
                ended[which] = float(words[3])
        wrong = self.report.wrong
        self.report.jobs = len(documents)
        wrong += [f"submission {index}: step {step} ran {n} times" for (index, step), n in begun.items() if n > 1]
        for job, index in self._acknowledged.items():
            document, count = documents[job], _count_steps(index)
            ran = [begun[index, step] for step in range(count)]
            if document["state"] == "lost":
                self._judge_lost(index, document, ran, ended)
            elif document["finished_at"] is None:
                wrong.append(f"submission {index} has not ended: {document['state']}")
            elif ran != [1] * count:
                wrong.append(f"submission {index}: its steps ran {ran} times: {document['state']}")
            elif document["exit_code"] != index % 7:
                wrong.append(f"submission {index}: exit code {document['exit_code']}, not {index % 7}: {document}")
            elif (self._output(job, "stdout"), self._output(job, "stderr")) != (
                f"out {index}\n" * count,
                f"err {index}\n" * count,
            ):
                wrong.append(f"submission {index}: its output is not complete")

    def _is_ready(self) -> bool:
        try:
            return self._service.get("/readyz").ok
        except requests.RequestException:
            return False

    def _judge_lost(
        self, index: int, document: dict[str, Any], ran: list[int], ended: dict[tuple[int, int], float]
    ) -> None:
        """Judge one of which nobody knows how a step ended.

        Nobody can know the status of a process that has ended while none of its parents was there to reap it; nor
        whether there was one, if the executor was killed when it was about to make it.
        """
        self.report.lost += 1
        step = next(step for step in document["steps"] if step["state"] == "lost")
        number, started = step["index"], datetime.fromisoformat(step["started_at"]).timestamp()
        if ran[:number] != [1] * number or any(ran[number + 1 :]):
            self.report.wrong.append(f"submission {index} is lost in step {number}, and its steps ran {ran} times")
        at = ended.get((index, number))
        if at is not None and self._went_unseen(started, at):
            return
        if ran[number] == (at is not None) and self._was_struck(started, at):
            self.report.presumed += 1
        else:
            self.report.wrong.append(
                f"submission {index} is lost, though somebody was there: step {number} ran {ran[number]} times, "
                f"from {started:.2f} to {at}; {self._kills_around(started, at or started)}"
            )

    def _was_struck(self, started: float, ended: float | None) -> bool:
        """Tell whether an executor was killed that may have been about to make it, or to write down who it is."""
        if ended is not None:
            return self._was_nobodys(started, ended)
        return any(abs(killed - started) <= _STARTING for killed in self._killed())

    def _was_nobodys(self, started: float, ended: float) -> bool:
        """Tell whether it may have ended between its start and its record: a zombie does not say whose it was."""
        return any(
            killed - _SPAWNING <= started and killed <= ended <= killed + _SPAWNING for killed in self._executor_killed
        )

    def _kills_around(self, begin: float, end: float) -> str:
        """Say who was killed, and was away, not long before or after these times."""
        alone = [f"{killed:.2f}" for killed in self._executor_killed if begin - 10 <= killed <= end + 10]
        down = [f"{gone:.2f} to {back:.2f}" for gone, back in self._down if begin - 10 <= back and gone <= end + 10]
        return f"executor killed at {', '.join(alone) or '-'}; supervisor away from {', '.join(down) or '-'}"

    def _killed(self) -> list[float]:
        """Return when an executor was killed, alone or with everything."""
        return [*self._executor_killed, *(begin for begin, _ in self._down)]

    def _went_unseen(self, started: float, ended: float) -> bool:
        # A job writes its line a moment before it ends, and the next executor takes a moment to adopt all of them.
        if any(begin - 1.0 <= ended <= end + 1.0 for begin, end in self._down):
            return True
        # It has outlived its supervisor, so it is nobody's child, and there was no executor when it ended.
        outlived = any(started < begin < ended for begin, _ in self._down)
        return outlived and any(-1.0 <= ended - killed <= _EXECUTOR_AWAY for killed in self._executor_killed)

    def _wait(self, job: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            document: dict[str, Any] = self._service.get(f"/v1/jobs/{job}").json()
            if document.get("finished_at") or time.monotonic() > deadline:
                return document
            time.sleep(0.1)

    def _output(self, job: str, stream: str) -> str:
        return self._service.get(f"/v1/jobs/{job}/{stream}").text


def _count_steps(index: int) -> int:
    return _STEPS if index % 3 == 0 else 1


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace").split("\0")
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        chaos = Chaos(Path(directory), workers=arguments.workers, seed=arguments.seed, pace=0.05)
        report = chaos.run(arguments.minutes * 60, 500)
    print(f"{report.jobs} jobs acknowledged, {report.unanswered} submissions without an answer")
    print("killed: " + ", ".join(f"{name} {count} times" for name, count in sorted(report.kills.items())))
    print(f"{report.lost} lost, which ended, or were about to begin, while nobody was there")
    print(f"{report.presumed} of these only by the clock: a kill came at about the time of their start")
    for line in report.wrong:
        print(line)
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
