"""Real work, from several clients at once, with gc beside it."""

import hashlib
import json
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.service import ROOT, Service

JOBS = 60
CLIENTS = 6

Check = Callable[[Service, dict[str, Any]], None]

SCRIPT = """#!/usr/bin/env python3
# Counts the words of the files it is given.
import pathlib, sys
for name in sys.argv[1:]:
    print(name, len(pathlib.Path(name).read_text().split()))
sys.exit(len(sys.argv) - 1)
"""


def stdout_of(service: Service, job: dict[str, Any]) -> bytes:
    response = requests.get(
        f"{service.url}/v1/jobs/{job['id']}/stdout", headers={"Authorization": f"Bearer {service.token}"}, timeout=60
    )
    assert response.status_code == 200
    assert len(response.content) == job["stdout"]["bytes"]
    return response.content


def archive(number: int) -> tuple[dict[str, Any], Check]:
    """Pack the project's sources, and hold every file in the archive against the original."""

    def check(service: Service, job: dict[str, Any]) -> None:
        assert (job["state"], job["exit_code"]) == ("succeeded", 0), job
        with tarfile.open(fileobj=BytesIO(stdout_of(service, job)), mode="r:gz") as packed:
            names = {member.name for member in packed if member.isfile()}
            for name in names:
                content = packed.extractfile(name)
                assert content is not None
                assert content.read() == (ROOT / name).read_bytes()
        assert names == {str(path.relative_to(ROOT)) for path in (ROOT / "jobrunner").rglob("*.py") if path.is_file()}

    return {"command": 'tar c --exclude="*.pyc" --exclude=py.typed jobrunner | gzip -1', "cwd": str(ROOT)}, check


def compile_tree(number: int) -> tuple[dict[str, Any], Check]:
    """Compile a Python tree, of which one module has a syntax error in every other job."""
    broken = number % 2
    files = {"good.py": "x = 1\n", "other.py": f"y = {number}\n", **({"bad.py": "def\n"} if broken else {})}

    def check(service: Service, job: dict[str, Any]) -> None:
        assert job["exit_code"] == broken, job
        assert ("SyntaxError" in job["stdout"]["text"]) == bool(broken)
        scratch = service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch"
        compiled = {path.name.split(".")[0] for path in (scratch / "__pycache__").iterdir()}
        assert compiled == {"good", "other"}

    return {"argv": [sys.executable, "-m", "compileall", "."], "files": files}, check


def sum_of(number: int, path: Path, digest: str) -> tuple[dict[str, Any], Check]:
    def check(service: Service, job: dict[str, Any]) -> None:
        assert stdout_of(service, job) == f"{digest}  {path}\n".encode()
        assert (job["exit_code"], job["stderr"]["text"]) == (0, "")

    return {"argv": ["sha256sum", str(path)]}, check


def count_words(number: int) -> tuple[dict[str, Any], Check]:
    files = {f"file {index}": "word " * (number + index) for index in range(number % 4)}

    def check(service: Service, job: dict[str, Any]) -> None:
        expected = "".join(f"{name} {number + index}\n" for index, name in enumerate(files))
        assert stdout_of(service, job) == expected.encode()
        assert job["exit_code"] == len(files)

    return {"script": "count-words", "args": list(files), "files": files}, check


@pytest.mark.timeout(180)
def test_sixty_jobs_of_real_work_from_several_clients_with_gc_beside_them(
    start_service: StartService, tmp_path: Path
) -> None:
    service = start_service({"executor": {"max_running": 4}})
    script = service.data_dir / "scripts" / "count-words"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    big = tmp_path / "big"
    digest = hashlib.sha256()
    with big.open("wb") as file:
        for number in range(64):
            block = hashlib.shake_256(bytes([number])).digest(1 << 20)
            digest.update(block)
            file.write(block)
    kinds: list[Callable[[int], tuple[dict[str, Any], Check]]] = [
        archive,
        compile_tree,
        lambda number: sum_of(number, big, digest.hexdigest()),
        count_words,
    ]
    work = [kinds[number % len(kinds)](number) for number in range(JOBS)]

    def client(number: int) -> list[dict[str, Any]]:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {service.token}"
            ended = []
            for body, check in work[number::CLIENTS]:
                response = session.post(f"{service.url}/v1/jobs", json=body, headers={"Prefer": "wait=60"}, timeout=90)
                assert response.status_code == 200, response.text
                job = check_job(response.json())
                check(service, job)
                ended.append(job)
            return ended

    with ThreadPoolExecutor(CLIENTS) as pool:
        busy = [pool.submit(client, number) for number in range(CLIENTS)]
        reports = [gc(service, "--keep", "1000") for _ in range(3)]
        jobs = [job for future in busy for job in future.result()]

    assert [report["purged"] for report in reports] == [0, 0, 0]
    assert len({job["id"] for job in jobs}) == JOBS
    rows_agree_with_files(service, jobs)

    running = service.submit(command="echo $$; exec sleep 60")
    report = gc(service, "--keep", "10")
    left = {path.name for path in service.data_dir.glob("jobs/*/*")}
    newest = sorted(jobs, key=lambda job: int(job["number"]))[-10:]
    assert (report["purged"], report["kept"]) == (JOBS - 10, 10)
    assert left == {job["id"] for job in newest} | {running["id"]}
    assert {job["id"] for job in service.get("/v1/jobs").json()["jobs"]} == left
    rows_agree_with_files(service, newest)
    service.request("DELETE", f"/v1/jobs/{running['id']}?force=true")
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def gc(service: Service, *arguments: str) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-m", "jobrunner", "gc", "--json", *arguments],
        cwd=ROOT,
        env=service.environment,
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert ended.stderr == b""
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


def rows_agree_with_files(service: Service, jobs: list[dict[str, Any]]) -> None:
    """Read the database as anybody can, and hold each row against the files of its job."""
    with closing(sqlite3.connect(f"file:{service.data_dir}/jobrunner.db?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        rows = {row["id"]: row for row in database.execute("SELECT * FROM job")}
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    for job in jobs:
        row, directory = rows[job["id"]], service.data_dir / "jobs" / job["id"][-2:] / job["id"]
        assert (row["state"], row["exit_code"]) == (job["state"], job["exit_code"])
        for stream in ("stdout", "stderr"):
            assert row[f"{stream}_bytes"] == (directory / stream).stat().st_size == job[stream]["bytes"]
        on_disk = sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))
        assert row["disk_bytes"] == on_disk
