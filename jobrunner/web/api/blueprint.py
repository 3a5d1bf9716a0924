"""Blueprints whose routes describe themselves in ``/openapi.json``."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Response
from flask_openapi3 import APIBlueprint
from pydantic import BaseModel

from jobrunner.web.parse import parse_body, parse_query


class ApiBlueprint(APIBlueprint):
    """Takes the models of path, query and body from a view's annotations.

    flask-openapi3 writes the document. Reading requests is ours: the library
    answers broken JSON as if it were empty, and makes the JSON schema of a
    query anew for every request.
    """

    @staticmethod
    def create_view_func(
        func: Callable[..., Response],
        header: object,
        cookie: object,
        path: type[BaseModel] | None,
        query: type[BaseModel] | None,
        form: object,
        body: type[BaseModel] | None,
        *_: object,
        **__: object,
    ) -> Callable[..., Response]:
        """Wrap a view so that it gets its arguments parsed."""
        assert header is None
        assert cookie is None
        assert form is None

        @wraps(func)
        def view(**parts: Any) -> Response:
            arguments: dict[str, BaseModel] = {}
            if path is not None:
                arguments["path"] = path.model_construct(**parts)
            if query is not None:
                arguments["query"] = parse_query(query)
            if body is not None:
                arguments["body"] = parse_body(body)
            return func(**arguments)

        return view
