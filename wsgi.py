"""For any WSGI server: ``gunicorn wsgi:app``. The worker that is first runs the jobs as well."""

from jobrunner.app import create_standalone_app

app = create_standalone_app()
