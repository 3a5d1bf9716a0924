"""The service does what ``/openapi.json`` says, and refuses what it does not say."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import Service, clean_environment

CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of its own: other tests' jobs would be canceled and deleted."""
    # Programs have names that somebody makes up; no shell may make anything of them.
    settings = {
        "policy": {"allow_shell": "no"},
        "executor": {"grace": "1"},
        "server": {"max_wait": "1"},
        "auth": {"max_failures": "1000000"},  # many tokens will be wrong
    }
    started = Service(tmp_path_factory.mktemp("conformance") / "data", settings).start()
    yield started
    assert started.stop() == 0
    assert "Traceback" not in started.log.read_text()


def test_the_service_is_as_its_description_says(described: Service, tmp_path: Path) -> None:
    """Schemathesis makes requests of the description, right ones and wrong ones, and holds all answers against it."""
    job = described.run(argv=["touch", "file"])
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(CONFIG)]
    done = subprocess.run(
        [*command, "run", f"{described.url}/openapi.json", "--header", f"Authorization: Bearer {described.token}"],
        cwd=tmp_path,
        env=clean_environment(JOB=job["id"], FILE="file"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=110,
    )

    assert done.returncode == 0, done.stdout[-10_000:]
    assert all(f"✅  {phase}" in done.stdout for phase in ("Coverage", "Fuzzing", "Stateful")), done.stdout
