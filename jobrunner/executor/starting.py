"""The process of a step: how it is made, and how it is found again by another executor.

Made in this order, so that after a crash at any moment the row and the job's
directory tell whether it may have been made:

1. what tells that it is about to be made: for the first step the stream files,
   for the others (the end of the step before is in the row by then) a mark in
   ``process.json``;
2. the process, with the job's cookie and the step's index in its environment;
3. the record of the process, in ``process.json``.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from jobrunner.domain.job import ErrorCode, Job, JobError
from jobrunner.domain.spec import COOKIE, STEP_COOKIE, Input, InputKind, Step
from jobrunner.executor.adopting import find_by_cookie
from jobrunner.executor.limits import OutputLimit
from jobrunner.executor.process import Process
from jobrunner.executor.sandbox import start_process
from jobrunner.executor.spawning import SpawnError, explain_os_error
from jobrunner.executor.surroundings import Surroundings
from jobrunner.proc import boot_id
from jobrunner.programs import find_program
from jobrunner.scratch import find_inside, make_directories
from jobrunner.spool import JobStreams, ProcessRecord, StepMark, share_streams

logger = logging.getLogger("jobrunner.executor")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpawnError(explain_os_error(error)) from error


class Starter:
    """Makes the processes of one job, one step after the other."""

    def __init__(self, job: Job, around: Surroundings, output: OutputLimit) -> None:
        self._job = job
        self._around = around
        self._spool = around.spool
        self._output = output

    def start_first(self) -> Process:
        """Make the job's directory, and the process of its first step.

        Raises:
            SpawnError: there is no process.
            MayHaveRun: there was one already.
        """
        job, spec = self._job, self._job.spec
        if spec.doom is not None:
            raise SpawnError(JobError(ErrorCode.SPAWN_FAILED, spec.doom))
        inputs = self._around.ledger.load_inputs(job.number) if spec.inputs else ()
        if spec.result is not None and not any(given.name == spec.result for given in inputs):
            inputs = (*inputs, Input(InputKind.FILE, spec.result, b""))
        has_stdin = bool(spec.input_info(InputKind.STDIN))
        with _explained():
            self._spool.prepare(job.id, inputs)
            spawn = self._make_ready(0)
            with self._spool.open_streams(job.id, stdin=has_stdin, merge_stderr=spec.merge_stderr) as streams:
                child = spawn(streams)
                self._output.watch(streams.take_outputs(), {})
        return child

    def start_next(self, index: int) -> Process:
        """Make the process of a later step, which writes to where the others did.

        Raises:
            SpawnError: there is no process.
        """
        job = self._job
        with _explained():
            spawn = self._make_ready(index)
            streams = share_streams(self._output.descriptors(), merge_stderr=job.spec.merge_stderr)
            if streams is None:
                words = "stdout or stderr can't go on: a step before has put something else in its place"
                raise SpawnError(JobError(ErrorCode.SPAWN_FAILED, words))
            with streams:
                self._spool.mark_step(job.id, StepMark(index, boot_id()))
                return spawn(streams)

    def _make_ready(self, index: int) -> Callable[[JobStreams], Process]:
        """Return what makes the process of a step, and does little else.

        When the executor is killed between 1 and 2 of the module's list nobody can tell whether there was a process.
        """
        job, step = self._job, self._job.spec.steps[index]
        argv = step.command_line(self._spool.source(job.id, index))
        start = partial(
            start_process,
            self._around.confinement,
            self._spool,
            job.id,
            index,
            argv,
            executable=self._executable(step, argv[0]),
            cwd=self._cwd(step),
            env={
                **job.spec.environment_of(step, self._around.environment),
                **self._paths(),
                COOKIE: job.id,
                STEP_COOKIE: str(index),
                "JOBRUNNER_JOB_NUMBER": str(job.number),
            },
            shared=[path for path in job.spec.paths.values() if path.startswith("/")],
        )

        def spawn(streams: JobStreams) -> Process:
            groups = self._around.groups
            with groups.entrance(job.id) if groups is not None else nullcontext() as enter:
                return start(streams=streams, before=enter)

        return spawn

    def _paths(self) -> dict[str, str]:
        scratch = self._spool.scratch(self._job.id)
        return {name: os.path.join(scratch, path) if path else scratch for name, path in self._job.spec.paths.items()}

    def _executable(self, step: Step, program: str) -> str | None:
        """Return the file that is executed; None: what the process's own ``PATH`` leads to."""
        if step.executable is not None or not self._job.spec.bare_env or "/" in program:
            return step.executable
        return find_program(program, self._job.spec.search_path_of(step, self._around.environment), None)

    def _cwd(self, step: Step) -> str:
        """Return where a step starts.

        Raises:
            SpawnError: a link leads a relative path out of the job's directory, or it can't be made.
        """
        scratch, cwd = self._spool.scratch(self._job.id), self._job.spec.cwd_of(step)
        if cwd is None or cwd.startswith("/"):
            return cwd or scratch
        found = find_inside(scratch, cwd)
        if found is None:
            words = f"{cwd} leads out of the job's directory by a symbolic link"
            raise SpawnError(JobError(ErrorCode.BAD_CWD, words))
        if self._job.spec.make_cwd:
            try:
                make_directories(scratch, found)
            except OSError as error:
                raise SpawnError(JobError(ErrorCode.BAD_CWD, f"{error.strerror}: {cwd}")) from error
        return os.path.join(scratch, found)

    def record(self, record: ProcessRecord) -> None:
        """Write down who the process is."""
        try:
            self._spool.record_process(self._job.id, record)
        except OSError as error:
            # A full disk must not end a job that runs; after a crash its cookie tells who it is.
            logger.warning("can't write down the process: %s", error)

    def find(self, index: int) -> ProcessRecord | None:
        """Return the process of a step that may have been made; None when nothing of it is found."""
        record = self._spool.load_process(self._job.id)
        if record is not None and record.step == index:
            return record
        # Its executor died before it could write it down.
        if (orphan := self._around.ends.find_orphan(self._job.id, index)) is not None:
            record = ProcessRecord(orphan.pid, orphan.start_ticks, boot_id(), index)
        else:
            record = find_by_cookie(self._job.id, index)
        if record is not None:
            # Once it has ended it can't be found like this any more.
            self.record(record)
        return record
