"""Processes and threads: takes queued jobs and runs them to their end. Knows no HTTP."""
