"""Requests that wait for the end of a job."""

import time
from contextlib import closing
from http.client import HTTPConnection

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job, check_problem
from tests.service import Service, eventually


def test_a_submission_that_waits_is_answered_with_the_ended_job_and_its_output(service: Service) -> None:
    response = service.post("/v1/jobs", {"command": "sleep 0.2; echo out; exit 3"}, headers={"Prefer": "wait=20"})

    job = check_job(response.json())
    assert response.status_code == 200
    assert response.headers["Preference-Applied"] == "wait=20"
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert "Retry-After" not in response.headers
    assert (job["exit_code"], job["stdout"]["text"], job["stdout"]["text_offset"]) == (3, "out\n", 0)
    assert job["stderr"]["text"] == ""


def test_a_submission_that_waits_too_shortly_is_accepted(service: Service) -> None:
    began = time.monotonic()
    response = service.post("/v1/jobs", {"argv": ["sleep", "60"]}, headers={"Prefer": "wait=1"})

    job = check_job(response.json())
    assert 1 <= time.monotonic() - began < 4
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "wait=1"
    assert response.headers["Retry-After"] == "1"
    assert job["state"] == "running"
    assert "text" not in job["stdout"]
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_a_look_up_waits_for_the_end(service: Service) -> None:
    job = service.submit(command="sleep 0.5; echo done")

    began = time.monotonic()
    response = service.get(f"/v1/jobs/{job['id']}?include=output", headers={"Prefer": "respond-async, wait=20"})

    assert time.monotonic() - began < 5
    assert response.headers["Preference-Applied"] == "wait=20"
    assert check_job(response.json())["stdout"]["text"] == "done\n"


def test_the_answer_comes_soon_after_the_end(service: Service) -> None:
    for _ in range(10):
        job = service.submit(command="sleep 0.05")
        document = service.get(f"/v1/jobs/{job['id']}?wait=20").json()
        began = time.monotonic()
        assert service.get(f"/v1/jobs/{job['id']}?wait=20").json() == document
        assert time.monotonic() - began < 5  # it has ended: nothing to wait for


def test_the_parameter_overrules_the_preference(service: Service) -> None:
    job = service.submit(argv=["sleep", "60"])

    began = time.monotonic()
    response = service.get(f"/v1/jobs/{job['id']}?wait=0.3", headers={"Prefer": "wait=20"})

    assert 0.3 <= time.monotonic() - began < 4
    assert "Preference-Applied" not in response.headers
    assert response.json()["state"] == "running"
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_a_client_that_has_gone_gives_its_seat_back(start_service: StartService) -> None:
    service = start_service({"server": {"max_waiters": 1, "workers": 1}})
    job = service.submit(argv=["sleep", "60"])
    with closing(HTTPConnection("127.0.0.1", service.port, timeout=30)) as connection:
        headers = {"Authorization": f"Bearer {service.token}"}
        connection.request("GET", f"/v1/jobs/{job['id']}?wait=60", headers=headers)
        assert eventually(lambda: service.get("/v1/stats").json()["waiters"] == 1)

    assert eventually(lambda: service.get("/v1/stats").json()["waiters"] == 0)
    service.post(f"/v1/jobs/{job['id']}/cancel", {"grace": 0})


def test_only_the_preference_that_was_followed_is_said_to_be_applied(service: Service) -> None:
    job = service.run(argv=["true"])["id"]
    headers = {"Prefer": "return=minimal"}

    answers = [
        service.get(f"/v1/jobs/{job}?wait=1", headers=headers),
        service.post("/v1/jobs?wait=5", {"argv": ["true"]}, headers=headers),
        service.post(f"/v1/jobs/{job}/rerun?wait=5", headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [200] * 3
    assert not [answer for answer in answers if "Preference-Applied" in answer.headers]


@pytest.mark.parametrize("preference", ["wait=x", "wait=-1", "wait=1e3", "wait", "wait=", "return=minimal", ";;,=,"])
def test_a_preference_that_makes_no_sense_is_ignored(service: Service, preference: str) -> None:
    job = service.submit(argv=["sleep", "60"])

    began = time.monotonic()
    response = service.get(f"/v1/jobs/{job['id']}", headers={"Prefer": preference})

    assert response.status_code == 200
    assert "Preference-Applied" not in response.headers
    assert time.monotonic() - began < 3
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_who_may_not_wait_is_told_so_and_has_submitted_nothing(start_service: StartService) -> None:
    service = start_service({"server": {"max_waiters": "0", "workers": "1"}})
    job = service.submit(argv=["sleep", "60"])

    looked_up = service.get(f"/v1/jobs/{job['id']}?wait=1")
    submitted = service.post("/v1/jobs", {"command": "true"}, headers={"Prefer": "wait=5"})

    for refused in (looked_up, submitted):
        check_problem(refused, 503, "busy")
        assert int(refused.headers["Retry-After"]) >= 1
    # Who tries again must not run it twice.
    assert [listed["id"] for listed in service.get("/v1/jobs").json()["jobs"]] == [job["id"]]
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_a_wait_is_cut_to_the_ceiling(start_service: StartService) -> None:
    service = start_service({"server": {"max_wait": "0.5", "workers": "1"}})
    job = service.submit(argv=["sleep", "60"])

    began = time.monotonic()
    response = service.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=1000"})

    assert 0.5 <= time.monotonic() - began < 4
    assert response.headers["Preference-Applied"] == "wait=0.5"
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_a_waiter_learns_that_its_job_was_deleted(service: Service) -> None:
    job = service.submit(argv=["sleep", "60"])
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["state"] == "running")

    deleted = service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")

    assert deleted.status_code == 204
    check_problem(service.get(f"/v1/jobs/{job['id']}?wait=5"), 404, "not-found")


def test_a_document_includes_the_tail_of_a_long_output(service: Service) -> None:
    job = service.run(command="seq 300000")
    whole = "".join(f"{number}\n" for number in range(1, 300001))

    check_job(job)
    assert job["stdout"]["bytes"] == len(whole)
    assert job["stdout"]["text_offset"] == len(whole) - (1 << 20)
    assert job["stdout"]["text"] == whole[-(1 << 20) :]


def test_bytes_that_are_no_text_are_replaced_in_a_document(service: Service) -> None:
    job = check_job(service.run(argv=["printf", r"a\377b\303\244\303"]))

    assert job["stdout"]["text"] == "a\ufffdbä\ufffd"
    assert service.get(f"/v1/jobs/{job['id']}/stdout").content == b"a\xffb\xc3\xa4\xc3"


def test_the_output_of_a_running_job_can_be_included(service: Service) -> None:
    job = service.submit(command="echo early; sleep 60")
    path = f"/v1/jobs/{job['id']}?include=output"

    assert eventually(lambda: service.get(path).json()["stdout"]["text"] == "early\n")
    assert check_job(service.get(path).json())["stdout"]["bytes"] == 6
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")
