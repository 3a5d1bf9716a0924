"""What docs/dialects.md shows is true: the settings are pasted, the lines are run, and say what stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobrunner.config_dialects import DIALECTS
from tests.conftest import StartService
from tests.service import ROOT, Service, free_port

DOCUMENT = (ROOT / "docs" / "dialects.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_every_dialect_has_a_section() -> None:
    assert set(SECTIONS) == set(DIALECTS)


def run(command: str, service: Service) -> str:
    """Run lines in a directory of their own; return what they print."""
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=service.data_dir.parent,
        env={**service.environment, "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_the_lines_of_a_section_do_what_it_says(name: str, start_service: StartService, tmp_path: Path) -> None:
    (pasted,) = blocks(SECTIONS[name], "ini")
    (script,) = blocks(SECTIONS[name], "sh")
    (written,) = re.findall(r"^port = (\d+)$", pasted, re.MULTILINE)
    assert f"localhost:{written}/" in script
    port = str(free_port())
    settings = tmp_path / "pasted.ini"
    settings.write_text(pasted.replace(written, port).replace("/srv/", f"{tmp_path}/srv/"))
    service = start_service(command=(sys.executable, "-m", "jobrunner", "--config", str(settings), "serve"))

    for command in blocks(SECTIONS[name], "bash"):
        run(command.replace("jobrunner ", f"{sys.executable} -m jobrunner --config {settings} "), service)
    for command, comments in re.findall(r"((?:^[^#\n].*\n)+)((?:^# .*\n)+)", script, re.MULTILINE):
        command = command.replace("/srv/", f"{tmp_path}/srv/")  # noqa: PLW2901
        output = run(command.replace(f"localhost:{written}/", f"127.0.0.1:{port}/"), service)
        expected = "\n".join(line.removeprefix("# ") for line in comments.splitlines())
        pattern = ".*".join(map(re.escape, expected.split("…")))
        assert re.fullmatch(pattern, output.rstrip("\n"), re.DOTALL), f"{command}{output}"
