"""The Flask application."""

from collections.abc import Callable, Sequence
from typing import Any

from flask import Flask
from flask_openapi3 import Info, OpenAPI
from werkzeug.routing import PathConverter

import jobrunner
from jobrunner.web.api import callbacks, catalogue, control, events, files, jobs, output, service
from jobrunner.web.api.documents import ProblemDocument
from jobrunner.web.dialects.dialect import Here, make_dialect_app, unread_refusal
from jobrunner.web.dialects.registry import DIALECTS
from jobrunner.web.doors import Doors
from jobrunner.web.errors import register_error_handlers
from jobrunner.web.guard import register_guard
from jobrunner.web.peer import trust_proxies
from jobrunner.web.protection import register_protection
from jobrunner.web.refusal import EXTENSION as REFUSER
from jobrunner.web.refusal import Refuser
from jobrunner.web.services import EXTENSION, Services


class _App(OpenAPI):
    """Takes no view or hook for a coroutine, which Flask finds out anew for each request."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return it as it is."""
        return func


class _Anything(PathConverter):
    """The rest of a path, whatever is in it: Werkzeug's own takes no line feeds, which names of files may have."""

    regex = "(?s:.+)"
    part_isolating = False  # it has slashes


def make_flask_app(parts: Services, dialects: Sequence[Here] = ()) -> Flask:
    """Put the web layer together over these services, with these dialects."""
    app = _App(
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
    app.url_map.converters["anything"] = _Anything
    register_error_handlers(app)
    register_protection(app)
    trust_proxies(app, parts.settings.trusted_proxies)
    with app.app_context():
        register_guard(app)
    for module in (jobs, control, output, events, files, callbacks, catalogue, service):
        app.register_api(module.bp)
    apps = {found.name: make_dialect_app(DIALECTS[found.name], found) for found in dialects}
    ports = {found.settings.port: found.name for found in dialects if found.settings.port is not None}
    if apps:
        # Around all else: a proxy that is believed may name another port than that of the socket.
        app.wsgi_app = Doors(app.wsgi_app, apps, ports)  # type: ignore[method-assign]
    app.extensions["jobrunner.dialects"] = apps
    app.extensions[REFUSER] = Refuser({port: unread_refusal(apps[name]) for port, name in ports.items()})
    return app
