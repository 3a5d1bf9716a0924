"""What is told of a job whose output is followed, and in which order."""

import os

from jobrunner.domain.states import JobState
from jobrunner.domain.streams import Stream
from jobrunner.house import House
from jobrunner.service.output import Moved, Quiet, Written
from jobrunner.store import execution
from tests.factories import CALLER, make_job, running_executor, shell
from tests.integration.stored import at
from tests.service import eventually


def test_that_a_job_runs_is_told_before_its_output(house: House) -> None:
    """It begins between two looks of its follower."""
    job = make_job(house)
    with house.output.following(job, CALLER) as listener:
        happenings = house.output.follow(job, {Stream.STDOUT: 0}, listener)
        told = (happening for happening in happenings if not isinstance(happening, Quiet))
        assert next(told) == Moved(JobState.QUEUED)

        with house.database.write() as connection:
            execution.claim_jobs(connection, "me", 1, at(0))
        house.spool.prepare(job.id, ())
        with house.spool.open_streams(job.id, stdin=False, merge_stderr=False) as streams:
            os.write(streams.stdout, b"begun")

        assert [next(told), next(told)] == [Moved(JobState.RUNNING), Written(Stream.STDOUT, 0, b"begun")]


def test_a_job_that_was_seen_in_the_queue_has_written_nothing(house: House) -> None:
    """It may have ended before the answer to its submission is made, which must not tell half of that."""
    queued = make_job(house, shell("echo out; echo err >&2"))
    with running_executor(house):
        assert eventually(lambda: house.jobs.get(queued.id, CALLER).state.is_ended, within=30)
    ended = house.jobs.get(queued.id, CALLER)

    assert [b"".join(house.output.whole(ended, stream)) for stream in Stream] == [b"out\n", b"err\n"]
    assert [b"".join(house.output.whole(queued, stream)) for stream in Stream] == [b"", b""]
    assert [house.output.size(queued, stream) for stream in Stream] == [0, 0]
