"""``/openapi.json`` describes the service that answers."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from jobrunner.app import make_services
from jobrunner.house import House
from jobrunner.web.application import make_flask_app
from tests.service import ROOT, Service


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    response = service.get("/openapi.json")
    assert response.headers["Content-Type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in {"get", "post", "put", "patch", "delete"}:
                yield method.upper(), path, operation


def every_reference(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from every_reference(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from every_reference(inner)


def resolve(document: dict[str, Any], reference: str) -> Any:
    assert reference.startswith("#/"), reference
    found: Any = document
    for part in reference[2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def test_it_is_an_openapi_document(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"] == "jobrunner"
    assert document["info"]["version"]
    assert document["paths"]


def test_it_is_made_once(house: House) -> None:
    app = make_flask_app(make_services(house))
    client = app.test_client()
    first = client.get("/openapi.json", base_url="http://localhost").get_data()
    vars(app)["spec_json"] = {"made": "again"}

    assert client.get("/openapi.json", base_url="http://localhost").get_data() == first


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = set(every_reference(document))

    assert references
    for reference in references:
        assert resolve(document, reference) is not None, reference


ROUTES = """
import json, re
from jobrunner.app import create_app
print(json.dumps([
    [method, re.sub(r"<(?:[^:<>]*:)?(\\w+)>", r"{\\1}", rule.rule)]
    for rule in create_app().url_map.iter_rules()
    for method in rule.methods - {"HEAD", "OPTIONS"}
]))
"""


def test_every_route_is_described(service: Service, document: dict[str, Any]) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", ROUTES],
        cwd=ROOT,
        env=service.environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    ).stdout
    routes = {(method, path) for method, path in json.loads(printed)}

    described = {(method, path) for method, path, _ in operations(document)}
    assert described | {("GET", "/openapi.json")} == routes


def test_bodies_are_described(document: dict[str, Any]) -> None:
    bodies = {
        path: resolve(document, operation["requestBody"]["content"]["application/json"]["schema"]["$ref"])
        for method, path, operation in operations(document)
        if "requestBody" in operation
    }

    assert {"/v1/jobs", "/v1/jobs/{job_id}/cancel", "/v1/jobs/{job_id}/signal"} <= bodies.keys()
    submission = bodies["/v1/jobs"]
    assert submission["additionalProperties"] is False
    assert {"command", "argv", "script", "source", "env", "files", "timeout"} <= submission["properties"].keys()


def test_a_body_that_may_be_left_out_is_not_required(document: dict[str, Any]) -> None:
    required = {
        path: operation["requestBody"].get("required", False)
        for _, path, operation in operations(document)
        if "requestBody" in operation
    }

    assert required["/v1/jobs"] is True
    assert required["/v1/jobs/{job_id}/signal"] is True
    assert required["/v1/jobs/{job_id}/cancel"] is False


def test_tokens_are_described(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]

    assert {(scheme["type"], scheme["scheme"]) for scheme in schemes.values()} == {
        ("http", "bearer"),
        ("http", "basic"),
    }
    assert {name for entry in document["security"] for name in entry} == schemes.keys()
    for _, path, operation in operations(document):
        assert (operation.get("security") == [{}]) == (path in {"/healthz", "/readyz", "/openapi.json"}), path


def test_errors_are_described_as_problems(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        answers = operation["responses"]
        errors = {status: answer for status, answer in answers.items() if not status.startswith(("2", "3"))}
        assert errors, (method, path)
        for status, answer in errors.items():
            assert list(answer.get("content", {})) == ["application/problem+json"], (method, path, status)


def test_every_answer_that_is_described_has_a_model(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        assert any(status.startswith("2") for status in operation["responses"]), (method, path)
        for status, answer in operation["responses"].items():
            assert answer["description"], (method, path, status)


def test_every_parameter_of_a_path_is_described(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        described = {entry["name"] for entry in operation.get("parameters", []) if entry["in"] == "path"}
        assert described == set(re.findall(r"{(\w+)}", path)), path


def test_ids_of_operations_are_unique(document: dict[str, Any]) -> None:
    ids = [operation.get("operationId") for _, _, operation in operations(document)]

    assert len(set(ids)) == len(ids)
