"""Packaging: everything is declared in setup.cfg, but for the migrations.

They live at the top of the checkout, where Alembic users look for them, and
travel in the wheel as ``jobrunner.migrations``, where an installed service
finds them.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["jobrunner", "jobrunner.*"]),
        "jobrunner.migrations",
        "jobrunner.migrations.versions",
    ],
    package_dir={
        "jobrunner.migrations": "migrations",
        "jobrunner.migrations.versions": "migrations/versions",
    },
)
