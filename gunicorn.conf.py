"""What a plain ``gunicorn wsgi:app`` in this directory reads by itself."""

from jobrunner.gunicorn_conf import *  # noqa: F403 gunicorn takes every name for a setting
