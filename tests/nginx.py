"""A real nginx for tests and benchmarks, with a directory of its own."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.factories import children_of, is_dead
from tests.service import ROOT, Service, eventually, free_port

# Debian has it where only root's PATH leads.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

_MAIN = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{site}
}}
"""


class Nginx:
    """An nginx.

    Args:
        directory: for its files, where relative paths start.
        site: what stands inside of ``http { }``.
        port: where it will listen on 127.0.0.1.
    """

    def __init__(self, directory: Path, site: str, port: int) -> None:
        self.directory = directory
        self.port = port
        directory.mkdir(exist_ok=True)
        # Root's workers would be nobody, who can't enter the directories of tests.
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(_MAIN.format(user=user, site=site))

    @property
    def log(self) -> str:
        """What it has complained about."""
        return (self.directory / "error.log").read_text()

    def start(self) -> "Nginx":
        """Start it and wait until it listens."""
        assert NGINX is not None
        words = (NGINX, "-p", self.directory, "-e", "error.log", "-c", "nginx.conf")
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert eventually(self._listens), f"nginx does not start:\n{self.log}"
        return self

    def _listens(self) -> bool:
        assert self._process.poll() is None, f"nginx has ended:\n{self.log}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Stop it at once; none of its processes may be left."""
        own = [self._process.pid, *children_of(self._process.pid)]
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)
        assert eventually(lambda: all(is_dead(pid) for pid in own)), "a process of nginx is left"


class Example(Nginx):
    """``deploy/nginx.conf``, with names of this machine, which listens without TLS as well.

    Args:
        directory: for its files.
        unix_socket: of the service behind it.
        changes: what stands in the example → what is to stand there instead.
    """

    def __init__(self, directory: Path, unix_socket: Path, changes: Mapping[str, str] | None = None) -> None:
        self.unix_socket = unix_socket
        port, self.tls_port = free_port(), free_port()
        site = (ROOT / "deploy/nginx.conf").read_text()
        listen = "listen 443 ssl http2 so_keepalive=60s:15s:4;"
        here = {
            listen: f"{listen.replace('443', f'127.0.0.1:{self.tls_port}')} listen 127.0.0.1:{port};",
            "unix:/run/jobrunner/jobrunner.sock;": f"unix:{unix_socket};",
            "/etc/ssl/jobs.example.org.pem;": "certificate.pem;",
            "/etc/ssl/private/jobs.example.org.key;": "key.pem;",
            "/var/log/nginx/jobrunner.log": "access.log",
        }
        for old, new in {**here, **(changes or {})}.items():
            assert site.count(old) == 1, old
            site = site.replace(old, new)
        super().__init__(directory, site, port)
        make_certificate(directory)

    @property
    def url(self) -> str:
        """Where it listens with TLS, and HTTP/2."""
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def access_log(self) -> str:
        """The requests so far."""
        return (self.directory / "access.log").read_text()


@contextmanager
def behind_nginx(
    directory: Path, changes: Mapping[str, str] | None = None, **settings: Mapping[str, Any]
) -> Iterator[tuple[Service, Example]]:
    """Run a service of one worker on a unix socket, whose client talks to the nginx in front of it.

    Args:
        directory: for the files of both.
        changes: to the example: see `Example`.
        settings: more sections of the service's.
    """
    unix_socket = directory / "jobrunner.sock"
    nginx = Example(directory / "nginx", unix_socket, changes)
    server = {"unix_socket": unix_socket, "allowed_hosts": "jobs.example.org", "trusted_proxies": 1, "workers": 1}
    service = Service(directory / "data", {"server": server, **settings}, port=nginx.port)
    nginx.start()
    try:
        yield service.start(), nginx
    finally:
        if service.process is not None and service.process.poll() is None:
            service.stop()
        nginx.stop()


def make_certificate(directory: Path, *, owner: str = "IP:127.0.0.1") -> None:
    """Make ``certificate.pem`` for an address or a name, and ``key.pem``, that no one but a test would trust."""
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=localhost"
    subprocess.run(
        [*words.split(), "-addext", f"subjectAltName={owner}", "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=directory,
        check=True,
        capture_output=True,
    )
