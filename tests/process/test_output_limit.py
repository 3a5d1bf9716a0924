"""Jobs that write more than is kept: the middle is dropped, or the job ends."""

import os
import signal

import pytest

from jobrunner.domain.exitstatus import ExitStatus
from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Hole, Stream
from jobrunner.service.jobs import CancelAsked
from jobrunner.store import execution
from tests.factories import CALLER, is_dead, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import ExecutorProcess, get, pid_of, scratch, started, wait
from tests.process.writing import (
    BLOCK,
    HEAD,
    MAX,
    MIB,
    Sampler,
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

WRITES_TOO_MUCH = f"head -c {MAX + 1} /dev/zero; echo > ready"


# ── the middle is dropped ──


def test_of_a_job_that_writes_without_end_its_begin_and_its_newest_bytes_are_kept(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX})
    total = 400 * MIB
    job = submit_writer(house, total)

    with Sampler(house, job) as sampler, running_executor(house):
        ended = wait(house, job, 60)

    assert (ended.state, ended.status, ended.stdout_bytes) == (JobState.SUCCEEDED, ExitStatus(code=0), total)
    check_kept(house, job, total)
    # What it writes in a quarter of a second, which depends on the machine, and not all of it.
    assert MAX < sampler.most < total * 3 // 4
    check_accounted(house, job)


@pytest.mark.parametrize(("over", "dropped"), [(0, 0), (8, BLOCK), (BLOCK, BLOCK), (BLOCK + 8, 2 * BLOCK)])
def test_nothing_is_dropped_that_need_not_be(new_house: NewHouse, over: int, dropped: int) -> None:
    house = new_house(output={"max_bytes": MAX})
    job = submit_writer(house, MAX + over)

    with running_executor(house):
        wait(house, job)

    assert hole_of(house, job).size == dropped
    if dropped:
        check_kept(house, job, MAX + over)
    else:
        assert get(house, job).holes == {}
        assert stream_file(house, job).read_bytes() == content(0, MAX)


def test_each_stream_has_a_limit_of_its_own(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX})
    job = submit_writer(house, 3 * MIB, fd=2)

    with running_executor(house):
        ended = wait(house, job)

    assert set(ended.holes) == {Stream.STDERR}
    check_kept(house, job, 3 * MIB, Stream.STDERR)


def test_merged_streams_have_one_limit(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX})
    job = submit_writer(house, 3 * MIB, fd=2, merge_stderr=True)

    with running_executor(house):
        ended = wait(house, job)

    assert set(ended.holes) == {Stream.STDOUT}
    check_kept(house, job, 3 * MIB)


def test_a_reader_that_looks_at_the_row_after_it_has_read_never_takes_a_hole_for_data(new_house: NewHouse) -> None:
    """The hole is in the row before it is in the file, and only grows."""
    house = new_house(output={"max_bytes": MAX})
    job = submit_writer(house, 1 << 40, pause=0.002)
    holes, checked = [Hole(0, 0)], 0

    with running_executor(house):
        assert eventually(lambda: size_of(house, job) > 2 * MAX)
        with stream_file(house, job).open("rb") as file:
            while len(holes) < 8:
                at = os.fstat(file.fileno()).st_size * checked // (checked + 7)
                data = os.pread(file.fileno(), 64 * 1024, at)
                hole = hole_of(house, job)
                if hole != holes[-1]:
                    holes.append(hole)
                expected = content(at, at + len(data))
                for index in {0, len(data) // 2, len(data) - 1}:
                    assert hole.start <= at + index < hole.stop or data[index] == expected[index]
                checked += 1
        (scratch(house, job) / "stop").touch()
        wait(house, job)

    assert len({hole.start for hole in holes[1:]}) == 1
    assert [hole.stop for hole in holes] == sorted({hole.stop for hole in holes})
    assert checked > len(holes)


def test_an_adopted_job_goes_on_being_limited(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX})
    job = submit_writer(house, 1 << 40, pause=0.02)
    with ExecutorProcess(house) as executor:
        assert eventually(lambda: hole_of(house, job).size > 0)
        executor.crash()
    before = hole_of(house, job)
    grown = size_of(house, job) + 8 * MIB
    assert eventually(lambda: size_of(house, job) > grown), "it writes on without an executor"

    with ExecutorProcess(house) as executor:
        assert eventually(lambda: hole_of(house, job).stop > grown)
        assert eventually(lambda: disk_bytes(house, job) < 6 * MIB)
        (scratch(house, job) / "stop").touch()
        ended = wait(house, job)
        assert "Traceback" not in executor.log.read_text()

    hole = check_kept(house, job, int(started(house, job, "total")))
    assert hole.start == before.start
    assert ended.state is JobState.SUCCEEDED


def test_what_was_written_down_but_not_dropped_is_dropped_by_the_next_executor(new_house: NewHouse) -> None:
    """An executor died between the two."""
    house = new_house(output={"max_bytes": 64 * MIB})
    job = make_job(house, shell(f"head -c {8 * MIB} /dev/zero; echo > ready; while [ ! -e go ]; do sleep 0.05; done"))
    with running_executor(house):
        started(house, job)
        pid_of(house, job)
    left = get(house, job)
    assert left.executor is not None
    with house.database.write() as connection:
        hole = Hole(HEAD, 8 * MIB - 3 * HEAD)
        assert execution.record_holes(connection, job.number, left.executor, {Stream.STDOUT: hole})

    with running_executor(new_house(output={"max_bytes": MAX})):
        assert eventually(lambda: disk_bytes(house, job) <= MAX + BLOCK)
        (scratch(house, job) / "go").touch()
        wait(house, job)

    assert hole_of(house, job) == hole


def test_what_a_job_leaves_behind_is_limited_too(new_house: NewHouse) -> None:
    """It ignores SIGTERM and writes on, though the job has ended."""
    house = new_house(output={"max_bytes": MAX})
    text = "(trap '' TERM; while :; do head -c 65536 /dev/zero; done) & exit 5"
    job = make_job(house, shell(text, grace=60))

    with Sampler(house, job) as sampler, running_executor(house):
        assert eventually(lambda: house.output.size(get(house, job), Stream.STDOUT) > 8 * MAX, within=30)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
        ended = wait(house, job)

    assert ended.status == ExitStatus(code=5)
    assert ended.stdout_bytes - ended.holes[Stream.STDOUT].size <= MAX
    assert disk_bytes(house, job) <= MAX + 2 * BLOCK
    assert sampler.most < ended.stdout_bytes * 3 // 4, "only at the end"


def test_a_job_that_is_ended_by_the_service_is_limited_to_its_end(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX}, executor={"on_stop": "kill", "grace": 2.0})
    text = "trap '' TERM; echo > ready; while :; do head -c 65536 /dev/zero; done"
    job = make_job(house, shell(text, grace=2.0))

    with Sampler(house, job) as sampler, running_executor(house):
        started(house, job)

    ended = get(house, job)
    assert ended.state is JobState.CANCELED
    assert ended.stdout_bytes - ended.holes[Stream.STDOUT].size <= MAX
    assert sampler.most < ended.stdout_bytes * 3 // 4, "only at the end"


# ── the job ends ──


def test_a_job_that_writes_too_much_may_be_told_to_end_and_says_how(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX, "on_limit": "kill"})
    text = "trap 'exit 7' TERM; sleep 60 & echo $! > pid; while :; do head -c 65536 /dev/zero; sleep 0.02; done"
    job = make_job(house, shell(text, grace=60))

    with running_executor(house):
        ended = wait(house, job)

    assert "stdout has more than 1048576 bytes" in limit_error(ended)
    assert ended.status == ExitStatus(code=7)
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM]
    assert ended.holes == {}
    assert ended.stdout_bytes > MAX
    assert is_dead(int(started(house, job, "pid")))


def test_who_ignores_that_is_killed_after_the_grace_period(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX, "on_limit": "kill"})
    job = make_job(house, shell(f"trap '' TERM; {WRITES_TOO_MUCH}; while :; do sleep 0.05; done", grace=0.7))

    with running_executor(house):
        ended = wait(house, job)

    limit_error(ended)
    assert ended.status == ExitStatus(signal=signal.SIGKILL)
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]
    assert 0.7 <= (ended.signals[1].at - ended.signals[0].at).total_seconds() < 2


def test_who_writes_as_much_again_instead_is_killed_at_once(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX, "on_limit": "kill"})
    job = make_job(house, shell("trap '' TERM; while :; do head -c 65536 /dev/zero; sleep 0.01; done", grace=60))

    with running_executor(house):
        ended = wait(house, job, 10)

    limit_error(ended)
    assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]


def test_a_job_that_has_written_too_much_and_ended_by_itself_is_over_the_limit_all_the_same(
    new_house: NewHouse,
) -> None:
    """Whether anybody looked in time must not make a difference."""
    house = new_house(output={"max_bytes": MAX, "on_limit": "kill"})
    jobs = [make_job(house, shell(f"head -c {MAX + more} /dev/zero; exit {more}")) for more in (0, 1)]

    with running_executor(house):
        enough, too_much = (wait(house, job) for job in jobs)

    assert (enough.state, enough.error) == (JobState.SUCCEEDED, None)
    limit_error(too_much)
    assert (too_much.status, too_much.signals) == (ExitStatus(code=1), ())


def test_a_cancel_during_the_grace_period_hurries_the_end_and_does_not_change_it(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX, "on_limit": "kill"})
    job = make_job(house, shell(f"trap '' TERM; {WRITES_TOO_MUCH}; while :; do sleep 0.05; done", grace=60))

    with running_executor(house):
        assert eventually(lambda: get(house, job).signals)
        house.jobs.cancel(job.id, CALLER, CancelAsked(grace=0))
        ended = wait(house, job)

    limit_error(ended)
    assert ended.cancel is not None


def test_a_timeout_that_came_first_stays_the_reason(new_house: NewHouse) -> None:
    house = new_house(output={"max_bytes": MAX, "on_limit": "kill"})
    text = f"trap 'head -c {2 * MAX} /dev/zero; exit 7' TERM; while :; do sleep 0.05; done"
    job = make_job(house, shell(text, timeout=0.5, grace=60))

    with running_executor(house):
        ended = wait(house, job)

    assert (ended.state, ended.error) == (JobState.TIMED_OUT, None)


@pytest.mark.parametrize("leaves", [True, False], ids=["ends by itself", "ignores it"])
def test_a_crash_of_the_executor_in_the_grace_period_changes_nothing(new_house: NewHouse, leaves: bool) -> None:
    house = new_house(output={"max_bytes": MAX, "on_limit": "kill"})
    text = f"trap '' TERM; {WRITES_TOO_MUCH}; while [ ! -e go ]; do sleep 0.05; done; exit 7"
    job = make_job(house, shell(text, grace=60 if leaves else 3))
    with ExecutorProcess(house) as executor:
        assert eventually(lambda: get(house, job).signals)
        pid_of(house, job)
        executor.crash()
    told = get(house, job)
    assert (told.state, told.ending) == (JobState.RUNNING, JobState.OUTPUT_LIMIT)
    assert told.error is not None

    with ExecutorProcess(house) as executor:
        assert eventually(lambda: "adopted process" in executor.log.read_text())
        if leaves:
            (scratch(house, job) / "go").touch()
        ended = wait(house, job)

    assert limit_error(ended) == told.error.detail
    if leaves:
        assert ended.status == ExitStatus(code=7)
        assert ended.signals == told.signals
    else:
        assert ended.status == ExitStatus(signal=signal.SIGKILL)
        assert [sent.signal for sent in ended.signals] == [signal.SIGTERM, signal.SIGKILL]
        assert (ended.signals[1].at - ended.signals[0].at).total_seconds() >= 3
