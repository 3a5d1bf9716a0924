"""Where scripts of QMD are, and what they write to, when jobs are another user's, or have sandboxes."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from jobrunner.app import make_dialect
from jobrunner.config_dialects import QmdSettings
from jobrunner.domain.errors import ConfigError
from jobrunner.house import House
from jobrunner.web.dialects.dialect import make_dialect_app
from jobrunner.web.dialects.registry import DIALECTS
from jobrunner.workforce import make_executor
from tests.factories import CALLER, make_job, running_executor, shell
from tests.process.conftest import NewHouse
from tests.process.running import scratch, started, wait

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start jobs as another user"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed"),
]

SCRIPT = "#!/bin/sh\necho $1 >> $QMD_STORE/log && cat $QMD_STORE/log; id -un > $QMD_OUT\n"

NewQmd = Callable[..., House]


@pytest.fixture
def tmp_path(passable_path: Path) -> Path:
    """Where other users come to as well."""
    return passable_path


@pytest.fixture(params=["none", "bwrap"])
def new_qmd(new_house: NewHouse, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NewQmd]:
    """Make houses that speak QMD, and whose jobs are nobody's, without sandboxes and with."""
    (tmp_path / "qmd").mkdir(0o755)
    (tmp_path / "qmd" / "store.sh").write_text(SCRIPT)
    (tmp_path / "qmd" / "store.sh").chmod(0o755)
    with ExitStack() as made:

        def make(**settings: Any) -> House:
            config = new_house(policy={"run_as": "nobody", "sandbox": request.param}).config
            given = {"enabled": True, "auth": "none", "run_as": "admin", "scripts_dir": tmp_path / "qmd", **settings}
            house = House(replace(config, dialects={**config.dialects, "qmd": QmdSettings(**given)}))
            made.callback(house.hints.close)
            made.callback(house.database.close)
            house.prepare()
            return house

        yield make


def post(house: House, argument: str) -> dict[str, Any]:
    app = make_dialect_app(DIALECTS["qmd"], make_dialect(house, "qmd", house.config.dialects["qmd"]))
    answer = Client(app).post("/scripts/store.sh", json={"args": [argument]}, environ_base={"REMOTE_ADDR": "127.0.0.1"})
    document: dict[str, Any] = answer.get_json(force=True)
    return document


@pytest.mark.parametrize("own", [False, True], ids=["the default store", "a store elsewhere"])
def test_a_script_writes_to_the_store_and_the_next_one_finds_it(new_qmd: NewQmd, tmp_path: Path, own: bool) -> None:
    house = new_qmd(store_dir=tmp_path / "new" / "store" if own else None)
    with running_executor(house):
        documents = [post(house, word) for word in ("one", "two")]

    assert [document["exec_log"] for document in documents] == ["one\n", "one\ntwo\n"]
    assert [document["output"] for document in documents] == ["nobody\n"] * 2


def test_other_jobs_in_sandboxes_see_no_store(new_qmd: NewQmd) -> None:
    house = new_qmd()
    store = house.config.store_dir
    job = make_job(house, shell(f"test -e {store} && echo there"))
    with running_executor(house):
        ended = wait(house, job)

    assert (ended.status is not None and ended.status.ok) == (house.config.policy.sandbox == "none")


def test_a_script_is_run_again_by_v1_as_it_was(new_qmd: NewQmd) -> None:
    house = new_qmd()
    with running_executor(house):
        number = post(house, "again")["id"]
        ended = wait(house, house.submissions.rerun(str(number), CALLER).job)

    assert ended.status is not None and ended.status.ok  # noqa: PT018
    assert (house.data_dir / "store" / "log").read_text() == "again\nagain\n"


def test_places_that_the_user_can_not_use_are_refused_at_the_start(new_qmd: NewQmd, tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir(0o755)
    (tmp_path / "closed").mkdir(0o700)
    house = new_qmd(store_dir=tmp_path / "roots", scripts_dir=tmp_path / "closed")

    with pytest.raises(ConfigError) as refused:
        make_executor(house)

    scripts, store = refused.value.problems
    assert scripts.startswith(f"[dialect:qmd] scripts_dir = {tmp_path / 'closed'}: jobs are nobody's")
    assert store.startswith(f"[dialect:qmd] store_dir = {tmp_path / 'roots'}: jobs are nobody's")


@pytest.mark.parametrize("name", ["store_dir", "scripts_dir"])
def test_the_data_directory_is_in_no_place_that_is_open_to_sandboxes(
    new_qmd: NewQmd, tmp_path: Path, name: str
) -> None:
    tmp_path.chmod(0o777)
    house = new_qmd(**{name: tmp_path})
    if house.config.policy.sandbox == "none":
        make_executor(house)
        return
    with pytest.raises(ConfigError, match=r"the data directory, .*/data, is in it"):
        make_executor(house)


def test_a_result_that_is_somebody_else_s_file_is_none(new_qmd: NewQmd) -> None:
    """Where the system lets a job make a hard link to it, fs.protected_hardlinks = 0."""
    house = new_qmd()
    job = make_job(house, shell("echo > ready; while [ ! -e go ]; do sleep 0.02; done", result="it"))
    with running_executor(house):
        started(house, job)
        (scratch(house, job) / "it").unlink()
        os.link(house.data_dir / "admin.token", scratch(house, job) / "it")
        (scratch(house, job) / "go").touch()
        ended = wait(house, job)

    assert b"".join(house.output.result(ended)) == b""
