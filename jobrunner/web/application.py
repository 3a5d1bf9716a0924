"""The Flask application."""

from flask import Flask
from flask_openapi3 import Info, OpenAPI

import jobrunner
from jobrunner.web.api import catalogue, control, events, jobs, output, service
from jobrunner.web.api.documents import ProblemDocument
from jobrunner.web.errors import register_error_handlers
from jobrunner.web.guard import register_guard
from jobrunner.web.services import EXTENSION, Services


def make_flask_app(parts: Services) -> Flask:
    """Put the web layer together over these services."""
    app = OpenAPI(
        "jobrunner",
        info=Info(
            title="jobrunner",
            version=jobrunner.__version__,
            description="Runs commands and scripts, and remembers them.",
        ),
        security_schemes={
            "token": {"type": "http", "scheme": "bearer"},
            "basic": {"type": "http", "scheme": "basic", "description": "the token is the password"},
        },
        validation_error_model=ProblemDocument,
        openapi_extensions={"security": [{"token": []}, {"basic": []}]},
        doc_ui=False,
        static_folder=None,
    )
    app.config["MAX_CONTENT_LENGTH"] = parts.settings.max_body_bytes
    app.extensions[EXTENSION] = parts
    app.url_map.strict_slashes = False
    register_error_handlers(app)
    with app.app_context():
        register_guard(app)
    for module in (jobs, control, output, events, catalogue, service):
        app.register_api(module.bp)
    return app
