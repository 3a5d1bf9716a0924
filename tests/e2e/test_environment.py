"""The environment of jobs: what they are given, and nothing of the service's besides."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobrunner.house import DEFAULT_PATH
from tests.service import Service

SECRETS = {"AWS_SECRET_ACCESS_KEY": "secret", "PYTHONPATH_OF_OURS": "secret", "LC_ALL": "C.UTF-8", "JOBRUNNER_ZZZ": "x"}
NO_TEXT = os.fsdecode(b"/home/\xff\xfe")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with secrets, with a home directory that is no text, and with variables for its jobs."""
    place = tmp_path_factory.mktemp("environment")
    settings = place / "config.ini"
    settings.write_text("[environment]\nEDITOR = cat\nTZ = Europe/Vienna\nEMPTY =\nGREETING = Grüße, 100 %\n")
    started = Service(place / "data")
    for name in ("USER", "LANG", "TZ"):
        started.environment.pop(name, None)
    started.environment.update(SECRETS, JOBRUNNER_CONFIG=str(settings), HOME=NO_TEXT, LANG="C", TZ="UTC")
    started.start()
    yield started
    assert started.stop() == 0
    assert "Traceback" not in started.log.read_text()


def environment_of(service: Service, **body: object) -> tuple[dict[bytes, bytes], dict[str, object]]:
    """Return what a job has in its environment, and its document."""
    job = service.run(argv=["env", "-0"], **body)
    output = service.get(f"/v1/jobs/{job['id']}/stdout").content
    pairs = (entry.partition(b"=") for entry in output.split(b"\0")[:-1])
    return {name: value for name, _, value in pairs}, job


def test_a_job_has_what_is_documented_and_nothing_else(service: Service) -> None:
    found, job = environment_of(service)

    assert found == {
        b"PATH": os.fsencode(service.environment["PATH"]),
        b"HOME": b"/home/\xff\xfe",
        b"LANG": b"C",
        b"TZ": b"Europe/Vienna",
        b"EDITOR": b"cat",
        b"EMPTY": b"",
        b"GREETING": "Grüße, 100 %".encode(),
        b"JOBRUNNER_JOB_ID": str(job["id"]).encode(),
        b"JOBRUNNER_JOB_NUMBER": str(job["number"]).encode(),
        b"JOBRUNNER_JOB_STEP": b"0",
    }


def test_what_a_job_asks_for_is_added_and_wins(service: Service) -> None:
    base, _ = environment_of(service)
    env = {"EDITOR": "ed", "PATH": "/usr/bin:/bin", "Weird name": "a=b\nc", "ü": "", "JOBRUNNER_TOKEN": "of the job"}
    found, job = environment_of(service, env=env)

    own = {name.encode(): value.encode() for name, value in env.items()}
    of_the_job = {b"JOBRUNNER_JOB_ID", b"JOBRUNNER_JOB_NUMBER", b"JOBRUNNER_JOB_STEP"}
    assert {name: found[name] for name in found if name not in of_the_job} == {
        **{name: value for name, value in base.items() if name not in of_the_job},
        **own,
    }
    assert job["env_names"] == sorted(env)


def test_without_a_path_of_the_service_s_jobs_have_one(tmp_path: Path) -> None:
    """It is looked through by the system when there is none, and what a shell takes then is something else."""
    service = Service(
        tmp_path / "data", command=("/usr/bin/env", "-u", "PATH", sys.executable, "-m", "jobrunner", "serve")
    )
    service.start()
    try:
        found, _ = environment_of(service)
        assert found[b"PATH"] == DEFAULT_PATH.encode()
    finally:
        service.stop()
