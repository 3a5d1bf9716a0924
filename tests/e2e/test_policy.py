"""Where programs are limited, what was judged is what is executed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.checks import check_problem, pointers
from tests.e2e.test_authorization import Asking, make_token
from tests.service import Service, eventually

PYTHON = os.path.realpath(sys.executable)


def program(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs: those in ``good`` are allowed."""
    made = tmp_path_factory.mktemp("programs")
    for name in ("good", "evil"):
        program(made / name / "tool", f"echo {name}; cat")
    program(made / "good" / "wait", 'until [ -e "$1" ]; do sleep 0.05; done')
    return made


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[Service]:
    """A service that runs one job at a time, of few programs."""
    settings = {"policy": {"allow_commands": f"{place}/good/*, {PYTHON}"}, "executor": {"max_running": "1"}}
    started = Service(tmp_path_factory.mktemp("policy") / "data", settings).start()
    program(started.data_dir / "scripts" / "hello", "echo hello")
    yield started
    assert started.stop() == 0
    assert "Traceback" not in started.log.read_text()


def refused(service: Service, **body: Any) -> dict[str, Any]:
    for query in ("", "?dry_run=true"):
        document = check_problem(service.post(f"/v1/jobs{query}", body), 403, "command-not-allowed")
    return document


def test_what_is_allowed_is_run(service: Service, place: Path) -> None:
    env = {"PATH": f"{place}/good:/usr/bin:/bin"}

    assert service.run(argv=["tool"], env=env)["stdout"]["text"] == "good\n"
    assert service.run(argv=[f"{place}/good/tool"], stdin="in")["stdout"]["text"] == "good\nin"
    assert service.run(argv=["../good/tool"], cwd=f"{place}/evil")["stdout"]["text"] == "good\n"
    assert service.run(script="hello")["stdout"]["text"] == "hello\n"
    assert service.run(source=f"#!{PYTHON}\nprint('python')\n")["stdout"]["text"] == "python\n"
    by_name = service.run(source="#!/usr/bin/env tool\ntext\n", env=env)
    assert by_name["stdout"]["text"] == "good\n"
    assert by_name["steps"][0]["argv"][0] == "tool"


def test_what_is_not_allowed_is_refused_with_the_rule(service: Service, place: Path) -> None:
    assert "allow_commands" in refused(service, argv=["tool"], env={"PATH": f"{place}/evil"})["detail"]
    assert f"{place}/evil/tool" in refused(service, argv=["./tool"], cwd=f"{place}/evil")["detail"]
    for body in (
        {"argv": ["id"]},
        {"argv": ["/bin/sh", "-c", "id"]},
        {"command": "id"},
        {"source": "id"},
        {"source": "#!/usr/bin/env perl\n"},
        {"argv": ["./tool"], "files": {"tool": "#!/bin/sh\nid\n"}},
        {"argv": [f"{place}/good/tool"], "env": {"LD_PRELOAD": "./x.so"}, "files": {"x.so": ""}},
        {"argv": [f"{service.data_dir}/scripts/hello"]},
    ):
        refused(service, **body)


def test_each_step_is_judged_and_executed_by_its_own_path(service: Service, place: Path) -> None:
    good, evil = ({"PATH": f"{place}/{name}:/usr/bin:/bin"} for name in ("good", "evil"))
    steps: list[dict[str, Any]] = [
        {"argv": ["tool"], "env": good},
        {"source": "#!/usr/bin/env tool\n"},
        {"script": "hello"},
    ]

    assert service.run(steps=steps[:1], env=evil)["stdout"]["text"] == "good\n"
    job = service.run(steps=[steps[0], {**steps[1], "env": good}])
    assert job["stdout"]["text"] == "good\ngood\n"
    assert f"{place}/evil/tool" in refused(service, steps=steps, env=evil)["detail"]
    made = {"argv": [PYTHON, "-c", "open('tool', 'w').write('#!/bin/sh'); import os; os.chmod('tool', 0o755)"]}
    assert "own directory" in refused(service, steps=[made, {"argv": ["./tool"]}])["detail"]
    wrong = [steps[0], {"argv": ["absent"]}, {"argv": ["absent", "too"]}]
    assert pointers(check_problem(service.post("/v1/jobs", {"steps": wrong}), 422)) == {
        "#/steps/1/argv/0",
        "#/steps/2/argv/0",
    }
    plan = service.post("/v1/jobs?dry_run=true", {"steps": [steps[0], steps[2]]}).json()
    assert [step["rule"].partition(":")[0] for step in plan["steps"]] == ["[policy] allow_commands", "catalogue"]


def test_what_is_not_there_can_not_be_judged(service: Service, place: Path) -> None:
    for body, pointer in (
        ({"argv": ["no-such-program"]}, "#/argv/0"),
        ({"argv": [f"{place}/good/absent"]}, "#/argv/0"),
        ({"source": "#!/no/such/interpreter\n"}, "#/source"),
    ):
        for query in ("", "?dry_run=true"):
            assert pointers(check_problem(service.post(f"/v1/jobs{query}", body), 422)) == {pointer}


def test_a_dry_run_names_the_rule(service: Service, place: Path) -> None:
    plan = service.post("/v1/jobs?dry_run=true", {"argv": [f"{place}/good/tool", "x"]}).json()

    assert plan["argv"] == [f"{place}/good/tool", "x"]
    assert plan["rule"] == f"[policy] allow_commands: {place}/good/* ({place}/good/tool)"


def test_a_program_is_called_what_the_client_has_called_it(service: Service, place: Path) -> None:
    """Many are several programs, and know by their name which one they are."""
    (place / "called").symlink_to(PYTHON)
    says = "import os, sys; print(sys.orig_argv[0], os.readlink('/proc/self/exe'))"

    for name, members in ((f"{place}/called", {}), ("called", {"env": {"PATH": str(place)}})):
        job = service.run(argv=[name, "-c", says], **members)
        assert job["stdout"]["text"] == f"{name} {PYTHON}\n"
        assert job["steps"][0]["argv"][0] == name


@pytest.fixture
def occupied(service: Service, place: Path, tmp_path: Path) -> Iterator[Path]:
    """A job has the only slot until this file is there."""
    release = tmp_path / "release"
    job = service.submit(argv=[f"{place}/good/wait", str(release)])
    assert eventually(lambda: service.get(f"/v1/jobs/{job['id']}").json()["state"] == "running")
    yield release
    release.touch()
    service.wait(job["id"])


def test_a_link_that_is_changed_before_the_start_changes_nothing(service: Service, place: Path, occupied: Path) -> None:
    link = place / "link"
    link.symlink_to("good/tool")
    job = service.submit(argv=[str(link)])
    link.unlink()
    link.symlink_to("evil/tool")
    occupied.touch()

    assert service.wait(job["id"])["stdout"]["text"] == "good\n"
    check_problem(service.post(f"/v1/jobs/{job['id']}/rerun"), 403, "command-not-allowed")


def test_a_link_in_the_place_of_a_program_that_was_judged_is_not_followed(
    service: Service, place: Path, occupied: Path
) -> None:
    program(place / "good" / "folder" / "tool", "echo good")
    jobs = [service.submit(argv=[f"{place}/good/folder/tool"])]
    program(place / "good" / "gone", "echo good")
    jobs.append(service.submit(argv=[f"{place}/good/gone"]))
    (place / "good" / "folder").rename(place / "folder")
    (place / "good" / "folder").symlink_to(place / "evil")
    (place / "good" / "gone").unlink()
    occupied.touch()
    changed, gone = (service.wait(job["id"]) for job in jobs)

    assert (changed["state"], changed["error"]["code"]) == ("failed", "permission-denied")
    assert "no longer the program" in changed["error"]["detail"]
    assert (gone["state"], gone["error"]["code"]) == ("failed", "not-found")


def test_a_token_is_for_some_programs_only(service: Service, place: Path) -> None:
    asking = Asking(service, make_token(service, "tools", "read", "exec", commands=(f"{place}/good/tool",)), "")

    def status(**body: Any) -> int:
        codes = {asking("POST", f"/v1/jobs{query}", body).status_code // 100 for query in ("", "?dry_run=true")}
        (code,) = codes
        return code

    tool = f"{place}/good/tool"
    assert status(argv=[tool, "any", "argument"], stdin="in", files={"a": "b"}) == 2
    assert status(script="hello") == 2
    assert f"token 'tools': {tool}" in asking("POST", "/v1/jobs?dry_run=true", {"argv": [tool]}).json()["rule"]
    for body in (
        {"argv": [f"{place}/good/wait", "/"]},
        {"argv": [PYTHON, "-c", ""]},
        {"source": f"#!{PYTHON}\n"},
        {"command": "true"},
    ):
        assert status(**body) == 4
        check_problem(asking("POST", "/v1/jobs", body), 403, "command-not-allowed")
    for members in ({"env": {"A": "b"}}, {"cwd": "/"}):
        check_problem(asking("POST", "/v1/jobs", {"argv": [tool], **members}), 403, "forbidden")
        check_problem(asking("POST", "/v1/jobs", {"script": "hello", **members}), 403, "forbidden")


def test_what_a_token_is_not_for_it_can_not_have_told_again(service: Service, place: Path) -> None:
    token = make_token(service, "tells", "read", "exec", all_jobs=True, commands=(f"{place}/good/tool",))
    nobody = "http://127.0.0.1:1/"
    own, other = (
        Asking(service, token, service.run(**body, callback_url=nobody)["id"])
        for body in ({"argv": [f"{place}/good/tool"]}, {"source": f"#!{PYTHON}\n"})
    )

    assert own("POST", "/v1/jobs/{job}/callbacks/retry").status_code == 202
    check_problem(other("POST", "/v1/jobs/{job}/callbacks/retry"), 403, "command-not-allowed")
    assert service.post(f"/v1/jobs/{other.job}/callbacks/retry").status_code == 202


def test_what_a_token_is_not_for_it_can_not_run_again(service: Service, place: Path) -> None:
    token = make_token(service, "again", "read", "exec", all_jobs=True, commands=(f"{place}/good/tool",))
    own, other, with_env = (
        service.run(**body)["id"]
        for body in (
            {"argv": [f"{place}/good/tool"]},
            {"argv": [PYTHON, "-c", ""]},
            {"argv": [f"{place}/good/tool"], "env": {"A": "b"}},
        )
    )
    answers = {job: Asking(service, token, job)("POST", "/v1/jobs/{job}/rerun") for job in (own, other, with_env)}

    assert answers[own].status_code == 202
    check_problem(answers[other], 403, "command-not-allowed")
    check_problem(answers[with_env], 403, "forbidden")
