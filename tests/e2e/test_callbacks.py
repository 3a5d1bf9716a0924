"""Callbacks over HTTP: asked for with a submission, looked at, sent again."""

import base64
import signal
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from jobrunner.clock import utc_now
from jobrunner.domain.access import Grant, Scope
from jobrunner.service.tokens import TokenService
from jobrunner.store.engine import Database
from jobrunner.web.api.documents import CallbackListDocument
from tests.conftest import StartService
from tests.e2e.checks import check_job, check_problem, pointers
from tests.receivers import Receiver, hang, slowly, status
from tests.service import Service, eventually, free_port


def callback_of(service: Service, job: str) -> dict[str, Any]:
    """Return the callback of a job, held against its model."""
    response = service.get(f"/v1/jobs/{job}/callbacks")
    assert response.status_code == 200, response.text
    CallbackListDocument.model_validate_json(response.text)
    (callback,) = response.json()["callbacks"]
    assert callback["id"] == job
    return dict(callback)


def settled(service: Service, job: str) -> dict[str, Any]:
    """Wait until no further attempt will be made."""
    assert eventually(lambda: callbacks(service, job) and callback_of(service, job)["state"] != "pending", within=20)
    return callback_of(service, job)


def callbacks(service: Service, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.get(f"/v1/jobs/{job}/callbacks").json()["callbacks"]
    return found


def test_the_end_of_a_job_is_told_as_its_document_tells_it(service: Service) -> None:
    with Receiver() as receiver:
        job = service.submit(command="echo hello", callback_url=receiver.url)
        assert check_job(job)["callback_url"] == receiver.url
        (received,) = receiver.wait()
        callback = settled(service, job["id"])

    event = received.json()
    assert event["type"] == "job.succeeded"
    assert event["data"] == service.get(f"/v1/jobs/{job['id']}?include=output").json()
    check_job(event["data"])
    (attempt,) = callback["attempts"]
    assert (attempt["status"], attempt["error"]) == (204, None)
    assert job["created_at"] < attempt["at"]
    assert (callback["url"], callback["state"], callback["next_attempt_at"]) == (receiver.url, "delivered", None)


def test_while_a_job_runs_there_is_nothing_to_tell(service: Service) -> None:
    with Receiver() as receiver:
        job = service.submit(argv=["sleep", "60"], callback_url=receiver.url)["id"]
        assert callbacks(service, job) == []
        check_problem(service.post(f"/v1/jobs/{job}/callbacks/retry"), 409, "not-ended")
        assert receiver.connections == 0

        service.post(f"/v1/jobs/{job}/cancel", {"grace": 0})
        assert receiver.wait()[0].json()["type"] == "job.canceled"


def test_a_job_without_callback_has_none(service: Service) -> None:
    job = service.run(argv=["true"])

    assert job["callback_url"] is None
    assert callbacks(service, job["id"]) == []
    check_problem(service.post(f"/v1/jobs/{job['id']}/callbacks/retry"), 409, "no-callback")


def test_it_can_be_sent_again(service: Service) -> None:
    with Receiver(status(410), status(410), status(204)) as receiver:
        job = service.submit(argv=["true"], callback_url=receiver.url)["id"]
        assert settled(service, job)["state"] == "stopped"
        number = service.get(f"/v1/jobs/{job}").json()["number"]
        for reference, state in ((job, "stopped"), (number, "delivered")):
            seen = len(receiver.received)
            response = service.post(f"/v1/jobs/{reference}/callbacks/retry")
            assert response.status_code == 202
            assert response.json()["callbacks"][0]["state"] == "pending"
            receiver.wait(seen + 1)
            assert settled(service, job)["state"] == state

    assert [attempt["status"] for attempt in callback_of(service, job)["attempts"]] == [410, 410, 204]
    assert receiver.ids() == [job] * 3


def test_the_next_attempt_is_announced(service: Service) -> None:
    job = service.submit(argv=["true"], callback_url=f"http://127.0.0.1:{free_port()}/")["id"]
    assert eventually(lambda: callbacks(service, job) and callback_of(service, job)["attempts"])

    callback = callback_of(service, job)

    assert callback["state"] == "pending"
    assert callback["attempts"][0]["error"] == "Connection refused"
    assert callback["attempts"][0]["status"] is None
    assert callback["next_attempt_at"] > callback["attempts"][0]["at"]


def test_a_job_that_is_run_again_tells_again(service: Service) -> None:
    with Receiver() as receiver:
        first = service.run(argv=["true"], callback_url=receiver.url)["id"]
        second = service.post(f"/v1/jobs/{first}/rerun").json()["id"]
        receiver.wait(2)

    assert sorted(receiver.ids()) == sorted([first, second])


def test_a_repeat_of_a_submission_tells_once(service: Service) -> None:
    with Receiver() as receiver:
        body = {"argv": ["true"], "callback_url": receiver.url}
        answers = [service.post("/v1/jobs", body, headers={"Idempotency-Key": "tell once"}) for _ in range(3)]
        job = answers[0].json()["id"]
        settled(service, job)
        other = service.post("/v1/jobs", {**body, "callback_url": None}, headers={"Idempotency-Key": "tell once"})

    assert [answer.json()["id"] for answer in answers] == [job] * 3
    assert receiver.ids() == [job]
    check_problem(other, 422)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org/",
        "ftp://example.org/",
        "http://",
        "http://example.org/ x",
        "http://exämple.org/",
        "http://user:password@example.org/",
        "http://example.org:0/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2852039166/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1%25eth0]/",
        "http://0.0.0.0:8080/",
        "http://[::]/",
        "http://[ff02::1]/",
        "http://[fd00:ec2::254]/",
        "http://example.org/" + "x" * 2048,
        "http://example.org/\0",
        1,
        ["http://example.org/"],
    ],
)
def test_a_url_that_leads_nowhere_is_pointed_at(service: Service, url: Any) -> None:
    for path in ("/v1/jobs", "/v1/jobs?dry_run=true"):
        document = check_problem(service.post(path, {"argv": ["true"], "callback_url": url}), 422)
        assert pointers(document) == {"#/callback_url"}


def test_only_where_it_is_allowed(start_service: StartService) -> None:
    service = start_service({"callbacks": {"allow": "hooks.example.org, 127.0.0.0/8", "deny": "127.0.0.2"}})

    for url, is_taken in [
        ("http://127.0.0.1:9/", True),
        ("http://hooks.example.org/", True),
        ("http://any.example.org/", True),  # what it leads to is not known yet
        ("http://127.0.0.2/", False),
        ("http://10.0.0.1/", False),
        ("http://[::1]/", False),
    ]:
        response = service.post("/v1/jobs?dry_run=true", {"argv": ["true"], "callback_url": url})
        assert response.status_code == (200 if is_taken else 422), url


def test_a_drain_ends_when_all_were_told(start_service: StartService) -> None:
    """By a receiver that is slower than the jobs."""
    secret = f"whsec_{base64.b64encode(bytes(32)).decode()}"
    service = start_service({"callbacks": {"secret": secret}})
    with Receiver(slowly(0.5)) as receiver:
        jobs = [service.submit(argv=["true"], callback_url=receiver.url)["id"] for _ in range(40)]
        assert service.process is not None
        service.process.send_signal(signal.SIGUSR1)
        assert service.process.wait(60) == 0

        assert sorted(receiver.ids()) == sorted(jobs)
        for received in receiver.received:
            Webhook(secret).verify(received.body, dict(received.headers))
    service.http.close()


def test_a_service_that_stops_does_not_wait_for_a_hanging_receiver(start_service: StartService) -> None:
    service = start_service({"callbacks": {"timeout": 300}})
    with Receiver(hang) as receiver:
        service.submit(argv=["true"], callback_url=receiver.url)
        receiver.wait()

        assert service.stop(within=12) == 0
        receiver.closing.set()


def test_a_deleted_job_tells_nothing_more(service: Service) -> None:
    job = service.run(argv=["true"], callback_url=f"http://127.0.0.1:{free_port()}/")["id"]
    assert eventually(lambda: callbacks(service, job))

    assert service.request("DELETE", f"/v1/jobs/{job}").status_code == 204
    check_problem(service.get(f"/v1/jobs/{job}/callbacks"), 404, "not-found")


# ── who may ──


def make_token(service: Service, name: str, *scopes: str) -> str:
    database = Database(service.data_dir / "jobrunner.db")
    try:
        return TokenService(database, utc_now).create(name, Grant(frozenset(map(Scope, scopes)), all_jobs=True))
    finally:
        database.close()


def test_a_callback_has_the_output_so_it_takes_the_scope_to_read(service: Service) -> None:
    body = {"argv": ["true"], "callback_url": f"http://127.0.0.1:{free_port()}/"}
    job = service.run(**body)["id"]
    answers = {}
    for scopes in (("read",), ("exec",), ("read", "run"), ("read", "exec")):
        header = {"Authorization": f"Bearer {make_token(service, f'calls {scopes}', *scopes)}"}
        answers[scopes] = [
            service.post("/v1/jobs", body, headers=header).status_code,
            service.get(f"/v1/jobs/{job}/callbacks", headers=header).status_code,
            service.post(f"/v1/jobs/{job}/callbacks/retry", headers=header).status_code,
        ]

    assert answers == {
        ("read",): [403, 200, 403],
        ("exec",): [403, 403, 403],
        ("read", "run"): [403, 200, 403],
        ("read", "exec"): [202, 200, 202],
    }
