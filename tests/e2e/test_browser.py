"""A browser's own ``EventSource``, with a signed URL, on a page of the origin that nginx gives the service."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote

from tests.conftest import miss
from tests.e2e.test_events import signed
from tests.e2e.test_follow import kill_workers, step, until
from tests.nginx import NGINX, behind_nginx
from tests.service import eventually

CHROMIUM = shutil.which("chromium")

PAGE = """\
<!doctype html>
<script>
  const source = new EventSource(new URLSearchParams(location.search).get("url"));
  let told = Promise.resolve();  // one after the other
  const tell = (name, what) => { told = told.then(() => fetch("/told?" + new URLSearchParams({name, what}))); };
  for (const name of ["stdout", "stderr", "state", "end"]) {
    source.addEventListener(name, event => {
      const data = JSON.parse(event.data);
      tell(name, data.text ?? data.state);
    });
  }
  source.onerror = () => tell("error", source.readyState);
</script>
"""

LOCATIONS = """\
    location = /page { default_type text/html; alias page.html; }
    location = /told { access_log told.log; return 204; }
    location / {
"""

CONNECTING, CLOSED = "0", "2"
"""Values of ``readyState``, when there was an error."""


@contextmanager
def browsing(url: str, directory: Path) -> Iterator[None]:
    """Have a browser show a page. It trusts any certificate."""
    words = [
        *("--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--ignore-certificate-errors"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--user-data-dir={directory}",
    ]
    if os.geteuid() == 0:
        words.append("--no-sandbox")
    assert CHROMIUM is not None
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([CHROMIUM, *words, url], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def parse_told(log: Path) -> list[tuple[str, str]]:
    """Return what the page has told, by the log of its requests: names of events, and their text or state."""
    targets = [line.split('"')[1].split()[1] for line in log.read_text().splitlines()]
    told = [parse_qs(target.partition("?")[2], strict_parsing=True) for target in targets]
    return [(query["name"][0], query["what"][0]) for query in told]


def test_a_browser_hears_all_as_it_happens_and_goes_on_after_a_break(tmp_path: Path) -> None:
    if NGINX is None or CHROMIUM is None:
        miss("needs nginx and chromium")
    with behind_nginx(tmp_path, {"    location / {\n": LOCATIONS}) as (service, nginx):
        (nginx.directory / "page.html").write_text(PAGE)
        (tmp_path / "profile").mkdir()
        job = service.submit(command=f"echo öne; {until('go')}; echo two >&2; {until('on')}; echo three; exit 3")
        url = f"{nginx.url}/page?url={quote(signed(service, job), safe='')}"

        def told() -> list[tuple[str, str]]:
            return parse_told(nginx.directory / "told.log")

        with browsing(url, tmp_path / "profile"):
            assert eventually(lambda: ("stdout", "öne\n") in told(), within=30)
            step(service, job, "go")
            assert eventually(lambda: ("stderr", "two\n") in told())
            kill_workers(service)
            assert eventually(lambda: told()[-1] == ("error", CONNECTING))
            step(service, job, "on")
            # It comes back once more after the end, and is sent away.
            assert eventually(lambda: told()[-1] == ("error", CLOSED)), told()

    assert [what for name, what in told() if name == "stdout"] == ["öne\n", "three\n"]
    assert [what for name, what in told() if name == "stderr"] == ["two\n"]
    assert [what for name, what in told() if name == "end"] == ["failed"]
