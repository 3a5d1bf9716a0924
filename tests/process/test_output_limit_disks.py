"""Jobs that write more than is kept, on disks that can't drop or are full, and such as tamper with their own files."""

import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.service.jobs import CancelAsked
from tests.conftest import Mount
from tests.factories import CALLER, make_house, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import ExecutorProcess, get, pid_of, scratch, started, wait
from tests.process.writing import (
    BLOCK,
    MAX,
    MIB,
    check_accounted,
    check_kept,
    content,
    disk_bytes,
    hole_of,
    limit_error,
    size_of,
    stream_file,
    submit_writer,
)
from tests.service import eventually

# ── disks that can't, or are full ──


def test_where_the_disk_can_not_drop_the_job_ends(mount: Mount) -> None:
    house = make_house(mount("-t", "ramfs", "ramfs"), output={"max_bytes": MAX})
    job = submit_writer(house, 1 << 40, pause=0.02)
    try:
        with running_executor(house):
            ended = wait(house, job)

        detail = limit_error(ended)
        assert os.strerror(95) in detail
        assert "can be dropped" in detail
        assert ended.status == ExitStatus(signal=signal.SIGTERM)
        assert ended.holes == {}, "all of it is there"
        assert stream_file(house, job).read_bytes() == content(0, ended.stdout_bytes)
    finally:
        house.database.close()
        house.hints.close()


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "ext4"])
def test_other_disks_drop_as_well(mount: Mount, tmp_path: Path, kind: str) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    if os.system(f"mkfs.{kind} -q {image} >/dev/null 2>&1") != 0:
        pytest.skip(f"no mkfs.{kind}")
    house = make_house(mount("-o", "loop", str(image)), output={"max_bytes": MAX})
    job = submit_writer(house, 64 * MIB, pause=0.02)
    try:
        with running_executor(house):
            ended = wait(house, job)

        assert ended.state is JobState.SUCCEEDED
        check_kept(house, job, 64 * MIB)
        check_accounted(house, job)
    finally:
        house.database.close()
        house.hints.close()


INSISTS = """
import os, time
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        os.write(1, bytes(1 << 16))
    except OSError:
        pass
"""
"""Takes whatever becomes free on a full disk."""


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("head -c 64M /dev/zero; exit 7", 4 * MIB),
        ("for i in $(seq 16); do head -c 8M /dev/zero; sleep 0.15; done 2>/dev/null; exit 7", 32 * MIB),
        (f"head -c 64M /dev/zero & {sys.executable} -c '{INSISTS}'; exit 7", 4 * MIB),
    ],
    ids=["at once", "again and again", "all the time"],
)
def test_a_job_that_fills_the_disk_gives_it_back(mount: Mount, text: str, least: int) -> None:
    """Also to write that down takes space."""
    point = mount("-t", "tmpfs", "-o", "size=8m", "tmpfs")
    house = make_house(point, output={"max_bytes": MAX})
    job = make_job(house, shell(text))
    try:
        with running_executor(house):
            ended = wait(house, job)
            assert wait(house, make_job(house)).state is JobState.SUCCEEDED

        assert ended.status == ExitStatus(code=7)
        assert ended.stdout_bytes > least
        assert ended.stdout_bytes - ended.holes[Stream.STDOUT].size <= MAX
        assert disk_bytes(house, job) <= MAX + 2 * BLOCK
    finally:
        house.database.close()
        house.hints.close()


# ── jobs that do something to their own files ──


REPLACE = {
    "hard link": "ln -f {path} ../stdout",
    "symbolic link": "ln -sf {path} ../stdout",
    "FIFO": "rm ../stdout; mkfifo ../stdout",
    "directory": "rm ../stdout; mkdir ../stdout",
    "nothing": "rm ../stdout",
}
GATED = "echo > ready; while [ ! -e go ]; do sleep 0.05; done"


@pytest.mark.parametrize("what", list(REPLACE))
@pytest.mark.parametrize("adopted", [False, True], ids=["own", "adopted"])
def test_what_a_job_puts_in_the_place_of_its_output_is_left_alone(
    new_house: NewHouse, what: str, adopted: bool
) -> None:
    house = new_house(output={"max_bytes": MAX})
    place = Path(house.spool.path("0" * 36)).parent
    place.mkdir(parents=True)
    path = place / "precious"
    path.write_bytes(b"x" * 4 * MIB)
    replace = REPLACE[what].format(path=path)
    job = make_job(house, shell(f"{replace}; head -c {3 * MIB} /dev/zero; {GATED}; exit 3"))

    if adopted:
        with running_executor(new_house()):
            started(house, job)
            pid_of(house, job)
    with running_executor(house):
        started(house, job)
        assert adopted or eventually(lambda: hole_of(house, job).size > 0), "its own file is limited all the same"
        (scratch(house, job) / "go").touch()
        ended = wait(house, job)

    assert ended.status == ExitStatus(code=3)
    assert path.read_bytes() == b"x" * 4 * MIB
    assert path.stat().st_blocks * 512 >= 4 * MIB
    assert bool(ended.holes) != adopted


def test_a_job_that_empties_its_own_output_fills_no_disk(new_house: NewHouse) -> None:
    """What it writes anew comes where the hole is."""
    house = new_house(output={"max_bytes": MAX})
    text = f"head -c {16 * MIB} /dev/zero; {GATED}; while :; do head -c 65536 /dev/zero; sleep 0.02; done"
    job = make_job(house, shell(text))
    with running_executor(house):
        started(house, job)
        assert eventually(lambda: hole_of(house, job).size > 0)
        hole = hole_of(house, job)
        os.truncate(stream_file(house, job), 0)
        (scratch(house, job) / "go").touch()
        assert eventually(lambda: size_of(house, job) > 12 * MIB, within=20)
        assert disk_bytes(house, job) < 6 * MIB
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
        ended = wait(house, job)

    assert ended.holes[Stream.STDOUT].start == hole.start
    assert ended.holes[Stream.STDOUT].stop >= hole.stop
    assert disk_bytes(house, job) <= 3 * MAX


def test_what_was_dropped_of_a_stream_that_is_no_longer_watched_is_not_forgotten(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX})
    much = f"head -c {3 * MIB} /dev/zero"
    job = make_job(house, shell(f"{much}; {much} >&2; {GATED}; {much} >&2"))
    with running_executor(house):
        started(house, job)
        assert eventually(lambda: len(get(house, job).holes) == 2)
    before = get(house, job).holes
    stream_file(house, job).with_name("another name").hardlink_to(stream_file(house, job))

    with running_executor(house):
        (scratch(house, job) / "go").touch()
        ended = wait(house, job)

    assert ended.holes[Stream.STDOUT] == before[Stream.STDOUT]
    assert ended.holes[Stream.STDERR].stop == before[Stream.STDERR].stop + 3 * MIB


# ── a database that refuses ──


def test_what_can_not_be_written_down_is_not_dropped_until_it_can(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX})
    job = submit_writer(house, 1 << 40, pause=0.02)
    with ExecutorProcess(house) as executor:
        pid_of(house, job)
        executor.limit(resource.RLIMIT_FSIZE, 0)  # every write of a file fails; the job has a limit of its own
        before = hole_of(house, job)
        assert eventually(lambda: size_of(house, job) > before.stop + 24 * MIB)

        assert hole_of(house, job) == before
        with stream_file(house, job).open("rb") as file:
            assert os.pread(file.fileno(), 24 * MIB, before.stop) == content(before.stop, before.stop + 24 * MIB)
        assert get(house, job).state is JobState.RUNNING

        executor.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        assert eventually(lambda: hole_of(house, job).stop > before.stop + 16 * MIB)
        (scratch(house, job) / "stop").touch()
        wait(house, job)

    check_kept(house, job, int(started(house, job, "total")))
