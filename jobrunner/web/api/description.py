"""What flask-openapi3 can't say about our answers, put into ``/openapi.json``."""

from collections.abc import Mapping
from typing import Any

_PROBLEM = {
    "description": "a problem (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
}

_BYTES = {"200": {"description": "the bytes", "content": {"text/plain": {}}}}

_EVENTS = {
    "200": {"description": "events", "content": {"text/event-stream": {}}},
    "204": {"description": "the client has seen the end"},
}


def complete(document: dict[str, Any], longest: Mapping[str, float]) -> dict[str, Any]:
    """Describe errors as the problems they are, bodies that may be left out, and answers that are no JSON.

    Args:
        document: what flask-openapi3 has made; it is changed.
        longest: most seconds that a ``timeout`` and a ``grace`` period may have.
    """
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        for name in longest.keys() & schema.get("properties", {}).keys():
            for kind in schema["properties"][name].get("anyOf", ()):
                if kind["type"] == "number":
                    kind["maximum"] = longest[name]
    for name, path in document["paths"].items():
        for operation in path.values():
            answers = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
            if not answers:
                answers = _EVENTS if name.endswith("/events") else _BYTES
            operation["responses"] = {**answers, "default": _PROBLEM}
            if "requestBody" in operation:
                (content,) = operation["requestBody"]["content"].values()
                model = content["schema"]["$ref"].rpartition("/")[2]
                operation["requestBody"]["required"] = bool(schemas[model].get("required")) or model == "Submission"
    return document
