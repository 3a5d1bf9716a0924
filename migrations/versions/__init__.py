"""The history of the schema; run by ``jobrunner serve`` and ``jobrunner db upgrade``."""
