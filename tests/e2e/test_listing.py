"""Lists of jobs: filters, pages, limits."""

import secrets
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import StartService
from tests.e2e.checks import check_job, check_problem, pointers
from tests.service import Service


@pytest.fixture(scope="module")
def mark(service: Service) -> str:
    """Labels seven ended jobs, so that tests see no others: see `numbers`."""
    mark = secrets.token_hex(8)
    jobs: list[dict[str, Any]] = [
        {"command": "true", "name": f"a-{mark}", "labels": {"kind": "x", "n": "0"}},
        {"command": "exit 1", "name": f"a-{mark}", "labels": {"kind": "y", "n": "1"}},
        {"command": "true", "name": f"b-{mark}", "labels": {"kind": "x", "n": "2", "ü": "x", "sp ace": "c:d & e"}},
        {"argv": ["sleep", "60"], "timeout": 0.1, "labels": {"kind": "x", "n": "3"}},
        {"command": "no-such-command", "labels": {"kind": "y", "n": "4"}},
        {"argv": ["echo", f"100%_{mark}"], "labels": {"kind": "x", "n": "5"}},
        {"source": "exit 0", "labels": {"kind": "", "n": "6"}},
    ]
    for job in jobs:
        service.run(**job | {"labels": job["labels"] | {"mark": mark}})
    return mark


def numbers(service: Service, mark: str, query: str) -> list[int]:
    """Return which of the jobs a query shows."""
    response = service.get(f"/v1/jobs?label=mark:{mark}{query}")
    assert response.status_code == 200, response.text
    return [int(check_job(job)["labels"]["n"]) for job in response.json()["jobs"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [6, 5, 4, 3, 2, 1, 0]),
        ("&state=succeeded", [6, 5, 2, 0]),
        ("&state=failed", [4, 1]),
        ("&state=failed&state=timed_out", [4, 3, 1]),
        ("&state=ended", [6, 5, 4, 3, 2, 1, 0]),
        ("&state=active", []),
        ("&state=active&state=timed_out", [3]),
        ("&label=kind:x", [5, 3, 2, 0]),
        ("&label=kind:x&label=n:2", [2]),
        ("&label=kind:", [6]),
        ("&label=kind:z", []),
        (f"&label={quote('sp ace:c:d & e')}", [2]),
        (f"&label={quote('ü:x')}", [2]),
        ("&name=a-{mark}", [1, 0]),
        ("&name=a-", []),
        ("&name=A-{mark}", []),
        ("&q=a-{mark}", [1, 0]),
        ("&q={mark}", [5, 2, 1, 0]),
        ("&q=100%25_", [5]),
        ("&q=1%25", []),
        ("&q=%25_{mark}", [5]),
        ("&q=SLEEP", [3]),
        ("&q=no-such", [4]),
        ("&q='", []),
        ("&owner=admin", [6, 5, 4, 3, 2, 1, 0]),
        ("&owner=nobody", []),
        ("&since=2020-01-01T00:00:00Z", [6, 5, 4, 3, 2, 1, 0]),
        ("&until=2020-01-01T00:00:00%2B02:00", []),
        ("&since=9999-12-31T23:59:59Z", []),
        ("&since=0001-01-01T00:00:00%2B12:00", [6, 5, 4, 3, 2, 1, 0]),
        ("&limit=2", [6, 5]),
        ("&limit=1000", [6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_a_list_shows_what_was_asked_for_newest_first(
    service: Service, mark: str, query: str, expected: list[int]
) -> None:
    assert numbers(service, mark, query.format(mark=mark)) == expected


def test_bounds_of_the_time_of_creation_are_included(service: Service, mark: str) -> None:
    jobs = service.get(f"/v1/jobs?label=mark:{mark}").json()["jobs"]
    second, fifth = jobs[5]["created_at"], jobs[2]["created_at"]

    assert numbers(service, mark, f"&since={second}&until={fifth}") == [4, 3, 2, 1]
    assert numbers(service, mark, f"&since={second}") == [6, 5, 4, 3, 2, 1]
    assert numbers(service, mark, f"&until={second}") == [1, 0]


@pytest.mark.parametrize("query", ["", "&state=succeeded&state=failed&state=timed_out", "&q=s", "&state=ended"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_follow_one_another_without_gap_or_repeat(service: Service, mark: str, query: str, limit: int) -> None:
    whole = numbers(service, mark, query)
    seen: list[int] = []
    following: str | None = f"/v1/jobs?label=mark:{mark}{query}&limit={limit}"
    while following:
        response = service.get(following)
        page = response.json()
        assert len(page["jobs"]) <= limit
        seen += [int(job["labels"]["n"]) for job in page["jobs"]]
        following = page["next"]
        links = response.links
        assert (links["next"]["url"] if links else None) == following
    assert seen == whole


def test_a_page_is_not_moved_by_jobs_that_come_and_go(service: Service) -> None:
    label = secrets.token_hex(8)
    made = [service.run(argv=["true"], labels={"page": label}) for _ in range(5)]
    page = service.get(f"/v1/jobs?label=page:{label}&limit=2").json()

    service.run(argv=["true"], labels={"page": label})
    service.request("DELETE", f"/v1/jobs/{made[3]['id']}")  # at which the page ended
    rest = service.get(page["next"]).json()

    assert [job["id"] for job in page["jobs"]] == [made[4]["id"], made[3]["id"]]
    assert [job["id"] for job in rest["jobs"]] == [made[2]["id"], made[1]["id"]]


def test_fifty_jobs_are_a_page(start_service: StartService) -> None:
    service = start_service()
    assert service.get("/v1/jobs").json() == {"jobs": [], "next": None}

    for _ in range(51):
        service.submit(argv=["true"])

    page = service.get("/v1/jobs").json()
    assert [job["number"] for job in page["jobs"]] == list(range(51, 1, -1))
    assert [job["number"] for job in service.get(page["next"]).json()["jobs"]] == [1]


def test_active_is_queued_or_running(start_service: StartService) -> None:
    service = start_service({"executor": {"max_running": 1}})
    jobs: list[dict[str, Any]] = [service.submit(argv=["sleep", "60"]) for _ in range(3)]
    service.post(f"/v1/jobs/{jobs[1]['id']}/cancel")

    def listed(query: str) -> list[int]:
        return [job["number"] for job in service.get(f"/v1/jobs?{query}").json()["jobs"]]

    assert listed("state=active") == [3, 1]
    assert listed("state=queued") == [3]
    assert listed("state=ended") == listed("state=canceled") == [2]
    for job in (jobs[2], jobs[0]):
        service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")
    assert listed("") == [2]


@pytest.mark.parametrize(
    "cursor", ["", "x", "MQ%3D%3D%3D", "-1", "MS4w", "4pCg", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "%00", "MA", "MDA"]
)
def test_a_cursor_that_is_none_of_ours_is_refused(service: Service, cursor: str) -> None:
    response = service.get(f"/v1/jobs?cursor={cursor}")

    if cursor == "MQ%3D%3D%3D" and response.status_code == 200:
        return  # base64 with more padding than needed
    assert pointers(check_problem(response, 422)) == {"?cursor"}


def test_a_list_shows_no_output(service: Service, mark: str) -> None:
    for job in service.get(f"/v1/jobs?label=mark:{mark}").json()["jobs"]:
        assert "text" not in job["stdout"]


def test_more_labels_than_a_job_can_have_are_refused(service: Service) -> None:
    """Each costs a subquery, and SQLite has an end of them."""
    for number in (33, 600):
        query = "&".join(f"label=k{n}:v" for n in range(number))
        assert pointers(check_problem(service.get(f"/v1/jobs?{query}"), 422, "invalid-request")) == {"?label"}
    query = "&".join(f"label=k{n}:v" for n in range(32))
    assert service.get(f"/v1/jobs?{query}").json() == {"jobs": [], "next": None}
    assert service.get("/v1/jobs?" + "&".join(["label=same:twice"] * 100)).status_code == 200
