"""Streams whose middle is no longer kept: whoever reads them is told, and never shown what nobody wrote.

Each 16 bytes that a job writes here tell their own offset, so that every byte of an answer can be judged.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.checks import check_problem
from tests.e2e.test_events import listening, read_events
from tests.e2e.test_follow import followed
from tests.service import Service

MOST = 1 << 20
NOTICE = re.compile(rb"\n\[jobrunner: (\d+) bytes were dropped here, (\d+) to (\d+)\]\n")
WRITE = """
import os, sys
at, stop = 0, int(sys.argv[1])
while at < stop:
    piece = b"".join(b"%015d\\n" % offset for offset in range(at, at + 65536, 16))
    while piece:
        piece = piece[os.write(1, piece):]
    at += 65536
"""


def expected(start: int, stop: int) -> bytes:
    """Return what was written from here to there."""
    first = start // 16 * 16
    return b"".join(b"%015d\n" % offset for offset in range(first, stop, 16))[start - first : stop - first]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that keeps 1 MiB of each stream."""
    started = Service(tmp_path_factory.mktemp("dropped") / "data", {"output": {"max_bytes": MOST}}).start()
    yield started
    started.stop()


def writer(size: int) -> dict[str, Any]:
    return {"argv": ["python3", "-c", WRITE, str(size)]}


@pytest.fixture(scope="module")
def job(service: Service) -> dict[str, Any]:
    """A job that has written 8 MiB, ended."""
    return service.run(**writer(8 * MOST))


@pytest.fixture(scope="module")
def hole(service: Service, job: dict[str, Any]) -> tuple[int, int]:
    """What is no longer kept of it: the first byte, and the first behind it."""
    head = service.request("HEAD", f"/v1/jobs/{job['id']}/stdout")
    start, last = head.headers["X-Dropped-Range"].split("-")
    return int(start), int(last) + 1


def test_the_document_tells_how_much(job: dict[str, Any], hole: tuple[int, int]) -> None:
    assert job["stdout"]["bytes"] == 8 * MOST
    assert job["stdout"]["dropped_bytes"] == hole[1] - hole[0] >= 7 * MOST
    assert job["stderr"]["dropped_bytes"] == 0


def test_the_text_of_a_document_begins_behind_it(job: dict[str, Any], hole: tuple[int, int]) -> None:
    stdout = job["stdout"]

    assert stdout["text_offset"] == hole[1]
    assert stdout["text"].encode() == expected(hole[1], 8 * MOST)


def test_the_whole_has_a_notice_in_its_place(service: Service, job: dict[str, Any], hole: tuple[int, int]) -> None:
    response = service.get(f"/v1/jobs/{job['id']}/stdout")

    head, size, first, last, tail = NOTICE.split(response.content)
    assert (int(size), int(first), int(last) + 1) == (hole[1] - hole[0], *hole)
    assert head == expected(0, hole[0])
    assert tail == expected(hole[1], 8 * MOST)
    assert "Content-Length" not in response.headers


def test_a_head_promises_no_length_where_a_get_has_none(
    service: Service, job: dict[str, Any], hole: tuple[int, int]
) -> None:
    """A cache would take a 0 for the length of the whole (RFC 9110, 8.6)."""
    for path in ("stdout", f"stdout?tail={8 * MOST - hole[1] + 1}", "stdout?follow=true", "events"):
        head = service.request("HEAD", f"/v1/jobs/{job['id']}/{path}")
        assert head.status_code == 200
        assert "Content-Length" not in head.headers, path
    head = service.request("HEAD", f"/v1/jobs/{job['id']}/stdout?tail=100")
    assert head.headers["Content-Length"] == "100"


def test_a_stream_that_is_followed_has_it_too(service: Service, job: dict[str, Any], hole: tuple[int, int]) -> None:
    with followed(service, job) as whole, followed(service, job, f"&offset={hole[0] + 5}") as within:
        assert whole.read() == service.get(f"/v1/jobs/{job['id']}/stdout").content
        notice, tail = within.read().split(b"]\n", 1)
    assert str(hole[1] - hole[0] - 5).encode() in notice
    assert tail == expected(hole[1], 8 * MOST)


def test_ranges_are_cut_at_it(service: Service, job: dict[str, Any], hole: tuple[int, int]) -> None:
    size = 8 * MOST
    start, stop = hole
    for asked, first, last in (
        ("0-99", 0, 99),
        (f"{start - 10}-{start + 10}", start - 10, start - 1),
        ("0-", 0, start - 1),
        (f"{start}-{stop + 9}", stop, stop + 9),
        (f"{stop - 1}-", stop, size - 1),
        (f"{stop}-{stop}", stop, stop),
        ("-100", size - 100, size - 1),
        (f"-{size - stop + 5}", stop, size - 1),
    ):
        response = service.get(f"/v1/jobs/{job['id']}/stdout", headers={"Range": f"bytes={asked}"})
        assert response.status_code == 206, asked
        assert response.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
        assert response.headers["Content-Length"] == str(last - first + 1)
        assert response.content == expected(first, last + 1)
        assert "X-Dropped-Range" not in response.headers
    lost = service.get(f"/v1/jobs/{job['id']}/stdout", headers={"Range": f"bytes={start}-{stop - 1}"})
    assert "no longer kept" in check_problem(lost, 416, "range-not-satisfiable")["detail"]
    assert lost.headers["Content-Range"] == f"bytes */{size}"


def test_a_tail_counts_what_is_kept(service: Service, job: dict[str, Any], hole: tuple[int, int]) -> None:
    size, kept = 8 * MOST, 8 * MOST - hole[1]

    assert service.get(f"/v1/jobs/{job['id']}/stdout?tail={kept}").content == expected(hole[1], size)
    longer = service.get(f"/v1/jobs/{job['id']}/stdout?tail={kept + 10}")
    head, _, _, _, tail = NOTICE.split(longer.content)
    assert (head, tail) == (expected(hole[0] - 10, hole[0]), expected(hole[1], size))


def test_events_tell_it_as_one(service: Service, job: dict[str, Any], hole: tuple[int, int]) -> None:
    with listening(service, job) as response:
        events = list(read_events(response))

    dropped = [event for event in events if event.name == "dropped"]
    assert [event.data for event in dropped] == [{"stream": "stdout", "from": hole[0], "to": hole[1]}]
    assert dropped[0].id == f"{hole[1]}-0"
    written = [event for event in events if event.name == "stdout"]
    assert all(
        event.content == expected(event.data["offset"], event.data["offset"] + len(event.content)) for event in written
    )
    with listening(service, job, last=dropped[0].id) as response:
        rest = b"".join(event.content for event in read_events(response) if event.name == "stdout")
    assert rest == expected(hole[1], 8 * MOST)


def test_who_follows_a_fast_job_sees_what_it_wrote_and_nothing_else(service: Service) -> None:
    """The middle is dropped while it is read: zeros would show."""
    size = 192 * MOST
    job = service.submit(**writer(size))
    at, drops = 0, 0
    with listening(service, job) as response:
        for event in read_events(response):
            if event.name == "dropped":
                assert event.data["from"] == at
                at, drops = event.data["to"], drops + 1
            elif event.name == "stdout":
                assert event.data["offset"] == at
                content = event.content
                assert content == expected(at, at + len(content))
                at += len(content)
    assert at == size
    assert drops > 0, "the job was not fast enough to prove anything"
    service.request("DELETE", f"/v1/jobs/{job['id']}?force=true")


def test_downloads_of_a_fast_job_show_what_it_wrote_and_nothing_else(service: Service) -> None:
    job = service.submit(**writer(192 * MOST))
    while service.get(f"/v1/jobs/{job['id']}").json()["state"] in {"queued", "running"}:
        try:
            answer = service.get(f"/v1/jobs/{job['id']}/stdout")
        except OSError:  # broken off, since its length was promised
            continue
        head, *rest = NOTICE.split(answer.content)
        assert head == expected(0, len(head))
        while rest:
            _, _, last, part, *rest = rest
            assert part == expected(int(last) + 1, int(last) + 1 + len(part))
    assert service.wait(job["id"])["state"] == "succeeded"
    service.request("DELETE", f"/v1/jobs/{job['id']}")
