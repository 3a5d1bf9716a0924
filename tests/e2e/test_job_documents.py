"""Looking jobs up, running them again, deleting them."""

import time

import requests

from tests.e2e.checks import check_job, check_problem
from tests.factories import is_dead
from tests.service import Service, eventually


def test_a_job_has_a_uuid_and_a_number(service: Service) -> None:
    first, second = service.run(argv=["true"]), service.run(argv=["true"])

    assert second["number"] > first["number"]
    assert second["id"] > first["id"]
    assert first["id"][14] == "7"
    by_number = service.get(f"/v1/jobs/{first['number']}").json()
    assert by_number == service.get(f"/v1/jobs/{first['id']}").json()
    assert by_number == service.get(f"/v1/jobs/{first['id'].upper()}").json()


def test_every_worker_knows_every_job(service: Service) -> None:
    auth = {"Authorization": f"Bearer {service.token}"}
    for _ in range(20):  # each request on a connection of its own
        job = requests.post(f"{service.url}/v1/jobs", json={"argv": ["true"]}, headers=auth, timeout=10).json()
        seen = requests.get(f"{service.url}/v1/jobs/{job['id']}", headers=auth, timeout=10)
        assert seen.status_code == 200


def test_an_unchanged_job_is_not_sent_again(service: Service) -> None:
    job = service.run(argv=["true"])
    path = f"/v1/jobs/{job['id']}"
    etag = service.get(path).headers["ETag"]

    for given in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        same = service.get(path, headers={"If-None-Match": given})
        assert (same.status_code, same.content) == (304, b"")
        assert same.headers["ETag"] == etag
    assert service.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    assert service.get(path, headers={"If-Match": '"other"'}).status_code == 412
    assert service.get(f"{path}?include=output").headers["ETag"] != etag


def test_a_changed_job_has_another_etag(service: Service) -> None:
    job = service.submit(argv=["sleep", "60"])
    path = f"/v1/jobs/{job['id']}"
    assert eventually(lambda: service.get(path).json()["state"] == "running")
    before = service.get(path)

    service.post(f"{path}/cancel")
    service.wait(job["id"])

    after = service.get(path, headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    assert before.headers["Retry-After"] == "1"
    assert "Retry-After" not in after.headers


def test_a_job_is_run_again_with_all_it_was_given(service: Service) -> None:
    before = service.run(
        command='cat; cat f; echo "$A"', stdin="in ", files={"f": "file "}, env={"A": "env"}, labels={"a": "b"}
    )

    response = service.post(f"/v1/jobs/{before['number']}/rerun")

    assert response.status_code == 202
    again = check_job(service.wait(response.json()["id"]))
    assert response.headers["Location"] == f"/v1/jobs/{again['id']}"
    assert again["id"] != before["id"]
    assert again["stdout"]["text"] == before["stdout"]["text"] == "in file env\n"
    assert again["labels"] == {"a": "b"}


def test_a_deleted_job_is_gone_with_its_files(service: Service) -> None:
    job = service.run(command="echo x > y")
    directory = service.data_dir / "jobs" / job["id"][-2:] / job["id"]
    assert directory.exists()

    response = service.request("DELETE", f"/v1/jobs/{job['id']}")

    assert (response.status_code, response.content) == (204, b"")
    assert "Content-Type" not in response.headers, "there is no content that it could be the type of"
    assert not directory.exists()
    check_problem(service.get(f"/v1/jobs/{job['id']}"), 404, "not-found")
    check_problem(service.get(f"/v1/jobs/{job['id']}/stdout"), 404, "not-found")
    check_problem(service.request("DELETE", f"/v1/jobs/{job['id']}"), 404, "not-found")
    assert service.run(argv=["true"])["number"] > job["number"]


def test_a_job_that_has_not_ended_is_deleted_only_by_force(service: Service) -> None:
    job = service.submit(command="trap '' TERM; echo $$; while :; do sleep 0.05; done")
    path = f"/v1/jobs/{job['id']}"
    assert eventually(lambda: service.get(f"{path}/stdout").text)
    pid = int(service.get(f"{path}/stdout").text)

    check_problem(service.request("DELETE", path), 409, "not-ended")
    assert not is_dead(pid)
    began = time.monotonic()
    response = service.request("DELETE", f"{path}?force=true")

    assert response.status_code == 204
    assert time.monotonic() - began < 5
    assert is_dead(pid)
    check_problem(service.get(path), 404)
