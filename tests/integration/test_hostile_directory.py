"""What a job may make of its own directory when it runs as the service's user: nothing of it misleads the service."""

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jobrunner.domain.streams import Stream
from jobrunner.proc import boot_id
from jobrunner.spool import ProcessRecord, Spool
from tests.integration.hostile import make_deep

JOB = "0192f0c4-5d3e-7c31-9d0e-2f6f1f0f3c3f"
SECRET = b"secret"
TERABYTE = 1 << 40


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Be a user meanwhile for whom modes count."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory, and beside it what must be neither seen nor touched."""
    precious = tmp_path / "precious"
    for name in ("stdout", "stderr", "scratch/file", "scratch/sub/file"):
        (precious / name).parent.mkdir(parents=True, exist_ok=True)
        (precious / name).write_bytes(SECRET)
    record = ProcessRecord(os.getpid(), 1, boot_id())
    (precious / "process.json").write_text(json.dumps(record._asdict()))
    (tmp_path / "data" / "jobs").mkdir(parents=True)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "65534", tmp_path], check=True)
        for path in (path for path in (tmp_path, *tmp_path.parents) if not path.stat().st_mode & 0o001):
            path.chmod(0o711)
    return tmp_path / "data"


@pytest.fixture
def path(data_dir: Path) -> Iterator[Path]:
    """The directory of a job that runs."""
    path = data_dir / "jobs" / "3f" / JOB
    with ordinary_user():
        spool = Spool(data_dir)
        spool.prepare(JOB, ())
        with spool.open_streams(JOB, stdin=False, merge_stderr=False):
            spool.record_process(JOB, ProcessRecord(4_000_000, 1, boot_id()))
    yield path
    subprocess.run(["rm", "-rf", data_dir], check=True)  # pytest's own gives up on deep trees


def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    """Put something else in the place of an entry of the job's directory; ``.`` is the directory itself."""

    def change(path: Path, _precious: Path) -> None:
        target = path / name
        with suppress(FileNotFoundError):
            (shutil.rmtree if target.is_dir() else os.unlink)(target)
        make(target)

    return change


def link(name: str) -> Callable[[Path, Path], None]:
    """Put a link to its like outside in the place of an entry."""

    def change(path: Path, precious: Path) -> None:
        replace(name, lambda target: target.symlink_to(precious / name))(path, precious)

    return change


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # its name is too long for an address
        listener.bind(path.name)
        os.chdir("/")


def write(content: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TERABYTE)


def make_strange_names(path: Path, _precious: Path) -> None:
    for name in (b"\xff\xfe", b"a\nb", b"-rf", b" ", b"\x1b[2J", b"x" * 255):
        os.mkdir(os.fsencode(path / "scratch") + b"/" + name)


def make_closed(path: Path, _precious: Path) -> None:
    (path / "scratch" / "a" / "b").mkdir(parents=True)
    (path / "scratch" / "a").chmod(0)


def record(**members: object) -> dict[str, object]:
    return {"pid": 4_000_000, "start_ticks": 1, "boot_id": boot_id(), **members}


CHANGES: dict[str, Callable[[Path, Path], None]] = {
    "the directory is a link": link("."),
    "the directory is a loop": replace(".", lambda path: path.symlink_to(path.name)),
    "the directory is a link to nowhere": replace(".", lambda path: path.symlink_to("nowhere")),
    "the directory is a link to everything": replace(".", lambda path: path.symlink_to("/")),
    "the directory is a file": replace(".", Path.touch),
    "the directory is a FIFO": replace(".", os.mkfifo),
    "the directory is a socket": replace(".", listen),
    "the directory is closed": lambda path, _: path.chmod(0),
    "the directory is empty but for links": lambda path, precious: [  # type: ignore[dict-item]
        link(name)(path, precious) for name in ("stdout", "stderr", "scratch", "process.json")
    ],
    **{
        f"{name} is {what}": replace(name, make)
        for name in ("stdout", "process.json", "scratch")
        for what, make in {
            "a FIFO": os.mkfifo,
            "a socket": listen,
            "a link to nowhere": lambda path: path.symlink_to("nowhere"),
            "a loop": lambda path: path.symlink_to(path.name),
            "a device": lambda path: path.symlink_to("/dev/zero"),
            "a terabyte of nothing": make_sparse,
            "closed": lambda path: (path.touch(), path.chmod(0)),
        }.items()
    },
    **{
        f"process.json has {what}": replace("process.json", write(content))
        for what, content in {
            "process 1": record(pid=1),
            "process 0": record(pid=0),
            "everybody": record(pid=-1),
            "true": record(pid=True),
            "a word": record(pid="1"),
            "half a process": record(start_ticks=1.5),
            "no boot": record(boot_id=None),
            "a list": [1, 2, 3],
            "too many brackets": "[" * 1000,
        }.items()
    },
    "scratch has 3,000 levels": lambda path, _: make_deep(path / "scratch", 3_000),
    "scratch has strange names": make_strange_names,
    "scratch has closed directories": make_closed,
    "scratch has a terabyte of nothing": lambda path, _: make_sparse(path / "scratch" / "file"),
}


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_a_job_makes_of_its_directory_the_service_sees_and_touches_nothing_else(
    data_dir: Path, path: Path, change: Callable[[Path, Path], None]
) -> None:
    precious = data_dir.parent / "precious"
    before = contents(precious)
    with ordinary_user():
        change(path, precious)
        spool = Spool(data_dir, keep_scratch=False)

        assert spool.was_started(JOB), "or it would be run again"
        for stream in Stream:
            assert spool.size(JOB, stream) in {0, TERABYTE}
            with spool.open_stream_file(JOB, stream) as file:
                assert file.read(10) in {b"", b"\0" * 10}
            if (fd := spool.open_output(JOB, stream)) is not None:
                assert stat.S_ISREG(os.fstat(fd).st_mode)
                os.close(fd)
        assert spool.load_process(JOB) in {None, ProcessRecord(4_000_000, 1, boot_id())}
        assert spool.disk_bytes(JOB) < 100_000
        assert Spool(data_dir).disk_bytes(JOB) < 20_000_000
        assert not {entry.path for entry in spool.list_files(JOB).entries} & {b"sub", b"sub/file", b"etc"}
        for name in (b"file", b"sub/file", b"etc/passwd"):
            with suppress(FileNotFoundError, PermissionError), spool.open_file(JOB, name) as file:
                assert file.read(10) == b"\0" * 10
        spool.clear_away(JOB)
        spool.close(JOB)
        spool.remove(JOB)

    assert not os.path.lexists(path)
    assert contents(precious) == before


def test_what_is_written_of_a_job_s_process_stays_in_its_directory(data_dir: Path, path: Path) -> None:
    precious = data_dir.parent / "precious"
    before = contents(precious)
    with ordinary_user():
        link(".")(path, precious)
        with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
            Spool(data_dir).record_process(JOB, ProcessRecord(4_000_001, 1, boot_id()))

    assert contents(precious) == before
