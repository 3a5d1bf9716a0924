"""Who has sent a request, and under which name of the service, though proxies stand in between.

A proxy names the client, the scheme and the host that it was asked for, in
``X-Forwarded-For``, ``-Proto`` and ``-Host``. Each proxy adds to the right, and
anybody can send them: as many values are believed, from the right, as
``[server] trusted_proxies`` says.
"""

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

from flask import Flask, Request
from werkzeug.middleware.proxy_fix import ProxyFix


def trust_proxies(app: Flask, count: int) -> None:
    """Have an application believe so many proxies."""
    if count:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=count, x_proto=count, x_host=count)  # type: ignore[method-assign]


def has_passed_proxy(asked: Request) -> bool:
    """Tell whether a proxy says to have passed a request on; one that does not say so can't be told from a client."""
    return any(name in asked.headers for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"))


def client_address(asked: Request) -> str | None:
    """Return the IP address of the client, in its shortest form.

    None: there is none to be known. A unix socket has none, unless a trusted
    proxy names one. IPv4 that comes in IPv6 is IPv4; a port or a zone, which
    some proxies add, is left out.
    """
    return _parse_address(asked.environ.get("REMOTE_ADDR", ""))


def connected_address(asked: Request) -> str | None:
    """Return the IP address of whoever has connected: of the client, or of the proxy in front; None: it has none."""
    before = asked.environ.get("werkzeug.proxy_fix.orig")
    return client_address(asked) if before is None else _parse_address(before["REMOTE_ADDR"] or "")


@lru_cache(maxsize=256)
def _parse_address(text: str) -> str | None:
    found = re.fullmatch(r"\[([^\]]*)\](?::\d+)?|([^:]*):\d+", text)
    bare = (found[1] or found[2] or "") if found else text
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def client_network(asked: Request) -> str | None:
    """Return what one client has for itself: an IPv4 address, or the /64 network of an IPv6 address; None: unknown."""
    address = client_address(asked)
    if address is None or ":" not in address:
        return address
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def asked_hosts(asked: Request) -> set[str]:
    """Return the names that the service was asked under, as a ``Host`` has them. All must be the service's.

    By the client; by the proxy, if that uses another name: a proxy that sets no
    ``X-Forwarded-Host`` passes on what the client has written there, and a page that
    reached the proxy under a name of its own could hide that. And by the
    request line, if it has a whole URL, which overrules ``Host`` (RFC 9112, 3.2.2).
    """
    hosts = {asked.headers.get("Host", "")}
    before = asked.environ.get("werkzeug.proxy_fix.orig")
    if before is not None:
        hosts.add(before["HTTP_HOST"] or "")
    target = asked.environ.get("RAW_URI", "/")
    if "://" in target and not target.startswith("/"):
        hosts.add(urlsplit(target).netloc)
    return hosts
