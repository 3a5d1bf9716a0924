"""Processes of the service are killed at random, and every job still runs once and ends exactly."""

from pathlib import Path

import pytest

from benchmarks.chaos import Chaos


@pytest.mark.timeout(180)
@pytest.mark.parametrize("workers", [2, 4])
def test_whatever_is_killed_no_job_is_lost_or_run_twice(tmp_path: Path, workers: int) -> None:
    report = Chaos(tmp_path, workers=workers, seed=workers, pace=0.03).run(seconds=12, least=250)

    assert not report.wrong, "\n".join(report.wrong)
    assert report.jobs >= 250
    assert sum(report.kills.values()) >= 5
