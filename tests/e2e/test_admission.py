"""Whether a submission is taken: repeats, exclusive names, a full queue, a dry run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from jobrunner.web.api.documents import PlanDocument
from tests.conftest import StartService
from tests.e2e.checks import check_job, check_problem
from tests.service import Service, eventually

GATED = "while [ ! -e {gate} ]; do sleep 0.05; done"


def submit(service: Service, body: dict[str, Any], *, key: str | None = None, **query: str) -> requests.Response:
    headers = {"Idempotency-Key": key} if key is not None else {}
    return service.request("POST", "/v1/jobs", json=body, headers=headers, params=query)


# ── Idempotency-Key ──


def test_a_repeat_starts_nothing_and_gets_the_first_job(service: Service) -> None:
    body = {"command": "echo once >> log; cat log", "env": {"A": "1", "B": "2"}}
    first = submit(service, body, key='"repeat-1"')
    assert first.status_code == 202
    assert "Idempotency-Replayed" not in first.headers
    job = check_job(service.wait(first.json()["id"]))

    again = submit(service, {"env": {"B": "2", "A": "1"}, "command": body["command"]}, key="repeat-1")

    assert again.status_code == 200
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert again.json()["id"] == job["id"]
    assert again.json()["stdout"]["text"] == "once\n"


def test_a_key_is_for_one_request(service: Service) -> None:
    assert submit(service, {"command": "true"}, key="other-1").status_code == 202

    refused = submit(service, {"command": "false"}, key="other-1")

    document = check_problem(refused, 422, "invalid-request")
    assert document["errors"][0]["pointer"] == "Idempotency-Key"


def test_of_twenty_equal_submissions_at_once_one_starts(start_service: StartService) -> None:
    # A worker may get all twenty of them, and each has an equal share of the seats.
    service = start_service({"server": {"workers": "4", "max_waiters": "80"}})
    body = {"argv": ["sh", "-c", "echo ran"], "stdin": {"base64": "AP8="}, "labels": {"for": "twenty"}}
    headers = {**service.http.headers, "Idempotency-Key": '"twenty"', "Prefer": "wait=20"}

    def send(_: int) -> requests.Response:
        return requests.post(f"{service.url}/v1/jobs", json=body, headers=headers, timeout=40)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert len(service.get("/v1/jobs?label=for:twenty").json()["jobs"]) == 1


def test_a_key_goes_with_its_job(service: Service) -> None:
    first = submit(service, {"command": "true"}, key="gone").json()
    service.wait(first["id"])
    assert service.request("DELETE", f"/v1/jobs/{first['id']}").status_code == 204

    again = submit(service, {"command": "true"}, key="gone")

    assert again.json()["id"] != first["id"]
    assert "Idempotency-Replayed" not in again.headers


def test_keys_survive_a_restart_of_the_service(start_service: StartService) -> None:
    service = start_service()
    first = submit(service, {"command": "true"}, key="kept").json()
    assert service.stop() == 0

    again = start_service(data_dir=service.data_dir)

    assert submit(again, {"command": "true"}, key="kept").json()["id"] == first["id"]


def test_a_rerun_may_have_a_key_too(service: Service) -> None:
    job = service.run(command="true")
    headers = {"Idempotency-Key": "rerun-1"}
    first, again = (service.request("POST", f"/v1/jobs/{job['id']}/rerun", headers=headers) for _ in range(2))

    assert first.json()["id"] == again.json()["id"] != job["id"]
    assert again.headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "caf\u00e9"])
def test_a_key_that_can_not_be_one_is_refused(service: Service, key: str) -> None:
    before = service.get("/v1/stats").json()["states"]
    answer = service.request(
        "POST", "/v1/jobs", json={"command": "true"}, headers={"Idempotency-Key": key.encode("latin-1")}
    )

    check_problem(answer, 422, "invalid-request")
    assert sum(service.get("/v1/stats").json()["states"].values()) == sum(before.values())


# ── exclusive names ──


def test_an_exclusive_job_is_refused_while_its_name_is_in_use(service: Service, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = service.submit(command=GATED.format(gate=gate), name="deploy")

    refused = submit(service, {"command": "true", "name": "deploy", "exclusive": True})

    document = check_problem(refused, 409, "name-in-use")
    assert document["job_id"] == first["id"]
    assert submit(service, {"command": "true", "name": "another", "exclusive": True}).status_code == 202
    assert submit(service, {"command": "true", "name": "deploy"}).status_code == 202
    gate.touch()
    assert eventually(lambda: not service.get("/v1/jobs?name=deploy&state=active").json()["jobs"])
    again = submit(service, {"command": "true", "name": "deploy", "exclusive": True})
    assert again.status_code == 202
    assert again.json()["exclusive"] is True


def test_of_many_exclusive_submissions_at_once_one_is_taken(start_service: StartService) -> None:
    service = start_service({"server": {"workers": "4"}})
    gate = service.data_dir / "gate"
    body = {"command": GATED.format(gate=gate), "name": "one", "exclusive": True}
    headers = dict(service.http.headers)

    def send(_: int) -> int:
        return requests.post(f"{service.url}/v1/jobs", json=body, headers=headers, timeout=40).status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = sorted(pool.map(send, range(20)))

    assert statuses == [202] + [409] * 19
    gate.touch()


def test_exclusive_needs_a_name(service: Service) -> None:
    document = check_problem(submit(service, {"command": "true", "exclusive": True}), 422, "invalid-request")
    assert document["errors"][0]["pointer"] == "#/exclusive"


# ── back-pressure ──


def test_a_full_queue_refuses_and_loses_nothing(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1, "max_queued": 3}})
    gate = service.data_dir / "gate"
    first = service.submit(command=GATED.format(gate=gate))
    assert eventually(lambda: service.get(f"/v1/jobs/{first['id']}").json()["state"] == "running")
    queued = [service.submit(command="true") for _ in range(3)]

    refused = submit(service, {"command": "true"})

    check_problem(refused, 503, "queue-full")
    assert int(refused.headers["Retry-After"]) > 0
    assert service.get("/v1/stats").json()["queued"] == 3
    gate.touch()
    for job in [first, *queued]:
        assert service.wait(job["id"])["state"] == "succeeded"
    assert submit(service, {"command": "true"}).status_code == 202


# ── dry run ──


@pytest.mark.parametrize(
    ("body", "argv", "rule"),
    [
        ({"command": "echo hi"}, ["/bin/sh", "-c", "echo hi"], "[policy] allow_shell = yes"),
        ({"argv": ["echo", "hi"]}, ["echo", "hi"], "every program is allowed"),
        ({"source": "echo hi"}, ["/bin/sh", "SOURCE"], "[policy] allow_shell = yes"),
    ],
)
def test_a_dry_run_says_what_would_be_run(service: Service, body: dict[str, Any], argv: list[str], rule: str) -> None:
    before = service.get("/v1/stats").json()["states"]

    answer = submit(service, {**body, "env": {"SECRET": "x"}, "timeout": 5}, dry_run="true")

    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["argv"], plan["rule"], plan["timeout"], plan["cwd"]) == (argv, rule, 5, None)
    assert plan["env_names"] == ["SECRET"]
    assert plan["limits"] == {"output_bytes": 67108864, "on_output_limit": "drop-middle"}
    assert service.get("/v1/stats").json()["states"] == before


def test_a_dry_run_says_of_each_step_what_would_be_run(service: Service) -> None:
    steps = [{"command": "true", "name": "first"}, {"argv": ["ls"], "cwd": "/", "env": {"A": "b"}, "timeout": 5}]
    answer = submit(service, {"steps": steps, "cwd": "sub"}, dry_run="true")

    plan = answer.json()
    PlanDocument.model_validate(plan)
    assert plan["argv"] == plan["steps"][0]["argv"] == ["/bin/sh", "-c", "true"]
    assert [step["cwd"] for step in plan["steps"]] == ["sub", "/"]
    assert plan["steps"][1] == {
        "index": 1, "name": None, "kind": "argv", "argv": ["ls"], "cwd": "/", "env_names": ["A"], "timeout": 5.0,
        "rule": "every program is allowed",
    }  # fmt: skip


def test_policy_judges_each_step(start_service: StartService) -> None:
    service = start_service({"policy": {"allow_shell": "no"}})

    check_problem(submit(service, {"steps": [{"argv": ["true"]}, {"command": "true"}]}), 403, "shell-not-allowed")
    assert service.run(steps=[{"argv": ["true"]}, {"argv": ["true"]}])["state"] == "succeeded"


def test_a_dry_run_is_refused_as_the_submission_would_be(start_service: StartService) -> None:
    service = start_service({"policy": {"allow_shell": "no"}})

    check_problem(submit(service, {"command": "true"}, dry_run="true"), 403, "shell-not-allowed")
    check_problem(submit(service, {"script": "absent"}, dry_run="true"), 422, "invalid-request")
    check_problem(submit(service, {"argv": ["true"], "timeout": -1}, dry_run="true"), 422, "invalid-request")
