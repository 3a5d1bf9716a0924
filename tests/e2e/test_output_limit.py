"""Jobs that write more than is kept, as clients see them."""

from tests.conftest import StartService
from tests.e2e.checks import check_job
from tests.service import eventually

MAX = 64 * 1024
NUMBERS = "".join(f"{number}\n" for number in range(1, 200_001)).encode()


def test_of_a_long_output_the_begin_and_the_end_are_sent_and_what_is_between_is_told(
    start_service: StartService,
) -> None:
    service = start_service({"output": {"max_bytes": "64K"}})

    job = check_job(service.run(command="seq 200000; seq 3 >&2"))

    assert (job["state"], job["error"]) == ("succeeded", None)
    assert job["stderr"]["dropped_bytes"] == 0
    written, dropped = job["stdout"]["bytes"], job["stdout"]["dropped_bytes"]
    assert written == len(NUMBERS)
    assert MAX - 4096 < written - dropped <= MAX
    start, stop = MAX // 4, MAX // 4 + dropped
    assert job["stdout"]["text"].encode() == NUMBERS[stop:]
    answer = service.get(job["stdout"]["href"])
    assert answer.headers["X-Dropped-Range"] == f"{start}-{stop - 1}"
    head, notice, tail = answer.content.partition(f"\n[jobrunner: {dropped} bytes were dropped here".encode())
    assert head == NUMBERS[:start]
    assert notice
    assert tail.partition(b"]\n")[2] == NUMBERS[stop:]
    assert service.get(job["stdout"]["href"], headers={"Range": f"bytes={stop}-"}).content == NUMBERS[stop:]


def test_a_job_that_writes_too_much_may_be_ended_and_says_why_while_it_still_runs(start_service: StartService) -> None:
    service = start_service({"output": {"max_bytes": "64K", "on_limit": "kill"}})
    text = "trap 'while [ ! -e go ]; do sleep 0.05; done; exit 7' TERM; seq 20000; while :; do sleep 0.05; done"
    job = service.submit(command=text, grace=60)
    href = f"/v1/jobs/{job['id']}"

    assert eventually(lambda: service.get(href).json()["error"])
    told = check_job(service.get(href).json())
    assert (told["state"], told["error"]["code"]) == ("running", "output-limit")
    (service.data_dir / "jobs" / job["id"][-2:] / job["id"] / "scratch" / "go").touch()
    ended = check_job(service.wait(job["id"]))

    assert (ended["state"], ended["exit_code"], ended["cancel"]) == ("output_limit", 7, None)
    assert ended["error"] == told["error"]
    assert "65536" in ended["error"]["detail"]
    assert ended["stdout"]["dropped_bytes"] == 0
    assert [found["id"] for found in service.get("/v1/jobs?state=output_limit").json()["jobs"]] == [job["id"]]
