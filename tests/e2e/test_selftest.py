"""``jobrunner selftest``: what an operator proves on a machine of theirs."""

import json
import subprocess
import sys

import pytest

from tests.service import ROOT, clean_environment


@pytest.mark.timeout(240)
def test_the_selftest_passes_here_and_says_what_it_has_looked_at() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobrunner", "selftest", "--json"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )

    findings = json.loads(done.stdout)
    assert [found for found in findings if not found["ok"]] == []
    assert done.returncode == 0, done.stderr
    assert len(findings) == 4 * 7
    assert {"undisturbed", "executor killed", "web server killed", "all killed and started again"} == {
        found["check"].partition(":")[0] for found in findings
    }
