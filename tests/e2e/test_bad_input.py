"""Bodies that can't be taken as written: each is answered by a problem that says so."""

import json
import socket
from contextlib import closing
from typing import Any

import pytest
import requests

from tests.e2e.checks import check_problem, pointers, post_raw, send_raw
from tests.service import Service


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b" ", id="blank"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b'{"argv": ["true"]} x', id="more behind it"),
        pytest.param(b"{'argv': ['true']}", id="single quotes"),
        pytest.param(b'{"argv": ["true"],}', id="trailing comma"),
        pytest.param(b'{"command": "\xff\xfe"}', id="not UTF-8"),
        pytest.param(b'{"command": "a\nb"}', id="raw control character"),
        pytest.param(b'\xef\xbb\xbf{"command": "true"}', id="byte order mark"),
        pytest.param('{"command": "true"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b"[" * 100_000, id="deep and open"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep"),
        pytest.param(b'{"env":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(b"\0" * 10, id="NUL bytes"),
        pytest.param(b"command=true", id="a form"),
    ],
)
def test_a_body_that_is_not_json_is_a_bad_request(service: Service, body: bytes) -> None:
    check_problem(post_raw(service, body), 400, "bad-request")


@pytest.mark.parametrize("text", ["null", "[]", '"true"', "17", "true", '[{"command": "true"}]'])
def test_a_body_that_is_no_object_is_refused(service: Service, text: str) -> None:
    assert pointers(check_problem(post_raw(service, text), 422)) == {"#"}


@pytest.mark.parametrize("body", [rb'{"command": "\ud800"}', rb'{"command": "true", "labels": {"\udfff": "x"}}'])
def test_half_a_surrogate_pair_is_refused(service: Service, body: bytes) -> None:
    response = post_raw(service, body)

    check_problem(response, 400 if response.status_code == 400 else 422)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
@pytest.mark.parametrize("member", ["timeout", "grace"])
def test_a_duration_that_is_no_finite_number_is_refused(service: Service, member: str, number: str) -> None:
    response = post_raw(service, f'{{"command": "true", "{member}": {number}}}')

    if response.status_code != 400:  # NaN is no JSON
        assert pointers(check_problem(response, 422)) == {f"#/{member}"}
    check_problem(response, response.status_code)


def test_of_members_given_twice_the_last_counts_or_all_are_refused(service: Service) -> None:
    response = post_raw(service, '{"command": "exit 1", "command": "exit 2"}')

    if response.status_code == 202:
        assert service.wait(response.json()["id"])["exit_code"] == 2
    else:
        check_problem(response, 400 if response.status_code == 400 else 422)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_that_does_not_say_to_be_json_is_refused(service: Service, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    response = service.request("POST", "/v1/jobs", data=b'{"command": "true"}', headers=headers)

    check_problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_the_content_type_may_have_parameters_and_capitals(service: Service, content_type: str) -> None:
    assert post_raw(service, b'{"argv": ["true"]}', **{"Content-Type": content_type}).status_code == 202


TOO_LONG = 128 * 1024
"""MAX_ARG_STRLEN, execve(2): with the NUL at its end an argument must be shorter."""

BAD_MEMBERS: list[tuple[dict[str, Any], str]] = [
    ({}, "#"),
    ({"command": "true", "argv": ["true"]}, "#"),
    ({"args": ["x"], "command": "true"}, "#"),
    ({"command": None}, "#"),
    ({"command": ""}, "#/command"),
    ({"command": " \n\t"}, "#/command"),
    ({"command": 17}, "#/command"),
    ({"command": ["true"]}, "#/command"),
    ({"command": "a\0b"}, "#/command"),
    ({"argv": []}, "#/argv"),
    ({"argv": [""]}, "#/argv"),
    ({"argv": "true"}, "#/argv"),
    ({"argv": {"0": "true"}}, "#/argv"),
    ({"argv": ["true", None]}, "#/argv/1"),
    ({"argv": ["true", 1]}, "#/argv/1"),
    ({"argv": ["true", "a\0"]}, "#/argv/1"),
    ({"argv": ["\0"]}, "#/argv/0"),
    ({"script": "absent"}, "#/script"),
    ({"script": ""}, "#/script"),
    ({"script": "../escape"}, "#/script"),
    ({"script": "/bin/true"}, "#/script"),
    ({"script": "a/../b"}, "#/script"),
    ({"script": "."}, "#/script"),
    ({"script": "a\0"}, "#/script"),
    ({"script": "x" * 10_000}, "#/script"),
    ({"argv": ["true", "x" * TOO_LONG]}, "#/argv/1"),
    ({"argv": ["true", "ä" * (TOO_LONG // 2)]}, "#/argv/1"),
    ({"argv": ["true", *["x" * 1000] * 1050]}, "#/argv"),
    ({"argv": ["true", *[""] * 120_000]}, "#/argv"),
    ({"command": "true #" + "x" * TOO_LONG}, "#/command"),
    ({"source": 1}, "#/source"),
    ({"command": "true", "env": []}, "#/env"),
    ({"command": "true", "env": {"A": 1}}, "#/env/A"),
    ({"command": "true", "env": {"A": None}}, "#/env/A"),
    ({"command": "true", "env": {"": "x"}}, "#/env/"),
    ({"command": "true", "env": {"A=B": "x"}}, "#/env/A=B"),
    ({"command": "true", "env": {"A": "\0"}}, "#/env/A"),
    ({"command": "true", "env": {"A\0": ""}}, "#/env/A\0"),
    ({"command": "true", "env": {"JOBRUNNER_JOB_ID": "x"}}, "#/env/JOBRUNNER_JOB_ID"),
    ({"command": "true", "env": {"A": "x" * TOO_LONG}}, "#/env/A"),
    ({"command": "true", "env": {f"A{number}": "" for number in range(1001)}}, "#/env"),
    ({"command": "true", "env": {f"A{number}": "x" * 130_000 for number in range(9)}}, "#/command"),
    ({"command": "true", "cwd": "/" + "x" * 4095}, "#/cwd"),
    ({"command": "true", "cwd": ""}, "#/cwd"),
    ({"command": "true", "cwd": ".."}, "#/cwd"),
    ({"command": "true", "cwd": "a/../../b"}, "#/cwd"),
    ({"command": "true", "cwd": "/tmp\0"}, "#/cwd"),
    ({"command": "true", "cwd": 1}, "#/cwd"),
    ({"command": "true", "stdin": 1}, "#/stdin"),
    ({"command": "true", "stdin": {"base64": "!"}}, "#/stdin"),
    ({"command": "true", "stdin": {"base64": "YQ==", "x": 1}}, "#/stdin"),
    ({"command": "true", "stdin": {"base64": "ä"}}, "#/stdin"),
    ({"command": "true", "files": {"a/b": ""}}, "#/files/a~1b"),
    ({"command": "true", "files": {"..": ""}}, "#/files/.."),
    ({"command": "true", "files": {".": ""}}, "#/files/."),
    ({"command": "true", "files": {"": ""}}, "#/files/"),
    ({"command": "true", "files": {"a\0": ""}}, "#/files/a\0"),
    ({"command": "true", "files": {"x" * 256: ""}}, "#/files/" + "x" * 256),
    ({"command": "true", "files": {"a": 1}}, "#/files/a"),
    ({"command": "true", "files": {f"f{number}": "" for number in range(1001)}}, "#/files"),
    ({"command": "true", "stderr": "merged"}, "#/stderr"),
    ({"command": "true", "timeout": 0}, "#/timeout"),
    ({"command": "true", "timeout": -1}, "#/timeout"),
    ({"command": "true", "timeout": 1e9}, "#/timeout"),
    ({"command": "true", "timeout": "1"}, "#/timeout"),
    ({"command": "true", "timeout": True}, "#/timeout"),
    ({"command": "true", "grace": -0.1}, "#/grace"),
    ({"command": "true", "grace": 1e9}, "#/grace"),
    ({"command": "true", "name": ""}, "#/name"),
    ({"command": "true", "name": "x" * 129}, "#/name"),
    ({"command": "true", "name": "x" * 1_000_000}, "#/name"),
    ({"command": "true", "name": "a\nb"}, "#/name"),
    ({"command": "true", "name": "a\0b"}, "#/name"),
    ({"command": "true", "priority": "urgent"}, "#/priority"),
    ({"command": "true", "priority": 1}, "#/priority"),
    ({"command": "true", "labels": {str(number): "" for number in range(33)}}, "#/labels"),
    ({"command": "true", "labels": {"a:b": "x"}}, "#/labels/a:b"),
    ({"command": "true", "labels": {"": "x"}}, "#/labels/"),
    ({"command": "true", "labels": {"a": "x" * 257}}, "#/labels/a"),
    ({"command": "true", "labels": {"a": "x\ny"}}, "#/labels/a"),
    ({"command": "true", "labels": {"a": 1}}, "#/labels/a"),
    ({"command": "true", "labels": [["a", "b"]]}, "#/labels"),
    ({"command": "true", "Command": "true"}, "#/Command"),
    ({"command": "true", "~a/b": 1}, "#/~0a~1b"),
    ({"command": "true", "exclusive": True}, "#/exclusive"),
    ({"command": "true", "image": "alpine"}, "#/image"),
    ({"command": "true", "callback_url": "http://169.254.169.254/"}, "#/callback_url"),
    ({"steps": []}, "#/steps"),
    ({"steps": [{"command": "true"}] * 101}, "#/steps"),
    ({"steps": {"command": "true"}}, "#/steps"),
    ({"steps": ["true"]}, "#/steps/0"),
    ({"steps": [{}]}, "#/steps/0"),
    ({"steps": [{"command": "true", "argv": ["true"]}]}, "#/steps/0"),
    ({"steps": [{"command": "true", "args": []}]}, "#/steps/0"),
    ({"steps": [{"command": "true"}], "command": "true"}, "#"),
    ({"steps": [{"command": "true"}], "args": []}, "#"),
    ({"steps": [{"argv": ["true"]}, {"argv": ["a", "\0"]}]}, "#/steps/1/argv/1"),
    ({"steps": [{"argv": ["true", 1]}]}, "#/steps/0/argv/1"),
    ({"steps": [{"argv": [""]}]}, "#/steps/0/argv"),
    ({"steps": [{"command": " "}]}, "#/steps/0/command"),
    ({"steps": [{"command": "true"}, {"script": "absent"}]}, "#/steps/1/script"),
    ({"steps": [{"command": "true", "env": {"JOBRUNNER_JOB_STEP": "1"}}]}, "#/steps/0/env/JOBRUNNER_JOB_STEP"),
    ({"steps": [{"command": "true", "cwd": "../x"}]}, "#/steps/0/cwd"),
    ({"steps": [{"command": "true", "timeout": 0}]}, "#/steps/0/timeout"),
    ({"steps": [{"command": "true", "timeout": 1e9}]}, "#/steps/0/timeout"),
    ({"steps": [{"command": "true", "name": ""}]}, "#/steps/0/name"),
    ({"steps": [{"command": "true", "image": "alpine"}]}, "#/steps/0/image"),
    ({"steps": [{"command": "true", "stdin": "x"}]}, "#/steps/0/stdin"),
    ({"steps": [{"steps": [{"command": "true"}]}]}, "#/steps/0/steps"),
]


@pytest.mark.parametrize(("body", "pointer"), BAD_MEMBERS, ids=[str(number) for number in range(len(BAD_MEMBERS))])
def test_a_wrong_member_is_pointed_at(service: Service, body: dict[str, Any], pointer: str) -> None:
    found = pointers(check_problem(service.post("/v1/jobs", body), 422))

    assert pointer in found, found


def test_all_that_is_wrong_is_told_at_once(service: Service) -> None:
    body = {"argv": ["a\0"], "env": {"A=": ""}, "cwd": "..", "files": {"a/b": ""}, "timeout": -1, "name": ""}

    found = pointers(check_problem(service.post("/v1/jobs", body), 422))

    assert found == {"#/argv/0", "#/env/A=", "#/cwd", "#/files/a~1b", "#/timeout", "#/name"}


def test_a_body_of_17_mib_is_too_large(service: Service) -> None:
    body = json.dumps({"command": "true", "stdin": "x" * (17 << 20)})

    check_problem(post_raw(service, body), 413, "too-large")


def test_a_body_of_17_mib_in_chunks_is_too_large(service: Service) -> None:
    body = json.dumps({"command": "true", "stdin": "x" * (17 << 20)}).encode()
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))

    try:
        response = post_raw(service, chunks)
    except requests.ConnectionError:
        pytest.fail("the connection was reset before the answer could be read")

    check_problem(response, 413, "too-large")


def test_a_body_below_the_limit_is_taken_in_chunks_as_well(service: Service) -> None:
    body = json.dumps({"argv": ["wc", "-c"], "stdin": "x" * (15 << 20)}).encode()
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))

    response = post_raw(service, chunks)

    assert response.status_code == 202, response.text
    assert service.wait(response.json()["id"])["stdout"]["text"] == f"{15 << 20}\n"


def test_a_body_whose_length_is_announced_too_large_is_refused_before_it_comes(service: Service) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n"

    status, _, body = send_raw(
        service, f"{head}Content-Type: application/json\r\nContent-Length: {17 << 20}\r\n\r\n".encode()
    )

    assert status == 413
    assert json.loads(body)["type"] == "/problems/too-large"


def test_a_client_that_goes_away_within_its_body_harms_nobody(service: Service) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {service.token}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    before = service.get("/v1/jobs?limit=1").json()["jobs"]

    with closing(socket.create_connection(("127.0.0.1", service.port), timeout=5)) as client:
        client.sendall(head.encode() + b'{"command": "true"')

    assert service.get("/v1/jobs?limit=1").json()["jobs"] == before
