"""The directories of jobs: see `jobrunner.spool.directories`."""

from jobrunner.spool.directories import MayHaveRun, Spool, let_through
from jobrunner.spool.records import ProcessRecord, StepMark
from jobrunner.spool.streams import JobStreams, share_streams

__all__ = ["JobStreams", "MayHaveRun", "ProcessRecord", "Spool", "StepMark", "let_through", "share_streams"]
