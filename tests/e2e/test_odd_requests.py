"""Requests that are odd, ambiguous or none: what is told of each, and that nothing of it does harm."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from jobrunner.web.protection import PROTECTION
from tests.service import Service

BODY = b'{"argv": ["true"]}'
JSON = b"Content-Type: application/json"
LENGTH = b"Content-Length: 18"
DRY = b"POST /v1/jobs?dry_run=true HTTP/1.1"
HOST = b"Host: localhost"


def request(line: bytes, *fields: bytes, host: bytes | None = HOST) -> bytes:
    """Make a head; ``TOKEN`` in it will be the token."""
    head = [line, *([] if host is None else [host]), b"Authorization: Bearer TOKEN", *fields, b"Connection: close"]
    return b"\r\n".join([*head, b"", b""])


def get(*fields: bytes, path: bytes = b"/v1/stats", host: bytes | None = HOST) -> bytes:
    return request(b"GET " + path + b" HTTP/1.1", *fields, host=host)


def answers(service: Service, data: bytes) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """Send bytes, and no more; yield status, headers (lower case) and body of each answer."""
    with closing(socket.create_connection(("127.0.0.1", service.port), timeout=30)) as client:
        client.sendall(data.replace(b"TOKEN", service.token.encode()))
        client.shutdown(socket.SHUT_WR)
        with closing(client.makefile("rb")) as stream:
            while line := stream.readline():
                if not line.startswith(b"HTTP/"):
                    assert line == b"\r\n", line  # after 100 Continue
                    continue
                status, headers = int(line.split()[1]), {}
                while (field := stream.readline()).strip():
                    name, _, value = field.decode("latin-1").partition(":")
                    assert name.lower() not in headers, f"{name} is there twice"
                    headers[name.lower()] = value.strip()
                yield status, headers, stream.read(int(headers.get("content-length", 0)))


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


CHUNKED = request(DRY, JSON, b"Transfer-Encoding: chunked")

ODD: dict[str, tuple[bytes, int]] = {
    # ── host ──
    "no host": (get(host=None), 421),
    "host twice": (get(HOST), 400),
    "host twice, one foreign": (get(b"Host: evil.example"), 400),
    "user in the host": (get(host=b"Host: localhost@evil.example"), 421),
    "foreign user in the host": (get(host=b"Host: evil.example@localhost"), 421),
    "trailing dot": (get(host=b"Host: localhost.:80"), 200),
    "two trailing dots": (get(host=b"Host: localhost.."), 421),
    "port that is none": (get(host=b"Host: localhost:8080x"), 421),
    "other digits": (get(host="Host: localhost:٨".encode()), 421),
    "whole URL, foreign": (get(path=b"http://evil.example/v1/stats"), 421),
    "whole URL, foreign host": (get(path=b"http://localhost/v1/stats", host=b"Host: evil.example"), 421),
    "whole URL": (get(path=b"http://localhost/v1/stats"), 200),
    "asterisk": (request(b"OPTIONS * HTTP/1.1"), 404),
    "tunnel": (request(b"CONNECT localhost:22 HTTP/1.1"), 404),
    # ── path ──
    "NUL": (get(path=b"/v1/jobs/%00"), 404),
    "bare NUL": (get(path=b"/v1/jobs/\0"), 400),
    "escaped slash": (get(path=b"/v1%2fstats"), 200),
    "escaped slash in an id": (get(path=b"/v1/jobs/..%2fstats"), 404),
    "dots": (get(path=b"/v1/jobs/../stats"), 404),
    "two slashes in front": (get(path=b"//evil.example/v1/stats"), 404),
    "backslash": (get(path=b"/v1\\stats"), 404),
    "fragment": (get(path=b"/v1/stats#x"), 200),
    "bytes that are no ASCII": (get(path=b"/v1/\xff"), 400),
    "line too long": (get(path=b"/" + b"x" * 9000), 414),
    # ── fields ──
    "field too long": (get(b"X: " + b"x" * 9000), 431),
    "1,000 fields": (get(*[b"X: y"] * 1000), 431),
    "head too large": (get(*[b"X: " + b"y" * 1000] * 70), 431),
    "blank before the colon": (get(b"X : y"), 400),
    "folded": (get(b"X: y", b" z"), 400),
    "no colon": (get(b"X"), 400),
    "NUL in a value": (get(b"X: a\0b"), 400),
    "CR in a value": (get(b"X: a\rb"), 400),
    "LF only": (get().replace(b"\r\n", b"\n"), 400),
    "another token": (get(b"Authorization: Bearer x"), 401),
    "expectation": (get(b"Expect: tea"), 417),
    # ── bodies ──
    "length twice": (request(DRY, JSON, LENGTH, LENGTH) + BODY, 400),
    "two lengths": (request(DRY, JSON, LENGTH, b"Content-Length: 1") + BODY, 400),
    "list of lengths": (request(DRY, JSON, b"Content-Length: 18, 18") + BODY, 400),
    "negative length": (request(DRY, JSON, b"Content-Length: -18") + BODY, 400),
    "signed length": (request(DRY, JSON, b"Content-Length: +18") + BODY, 400),
    "length in other digits": (request(DRY, JSON, "Content-Length: ²".encode("latin-1")) + BODY, 400),
    "enormous length": (request(DRY, JSON, b"Content-Length: " + b"9" * 100) + BODY, 413),
    "length and chunks": (request(DRY, JSON, LENGTH, b"Transfer-Encoding: chunked") + BODY, 400),
    "chunks twice": (request(DRY, JSON, b"Transfer-Encoding: chunked, chunked") + chunks(BODY), 400),
    "unknown coding": (request(DRY, JSON, b"Transfer-Encoding: xchunked") + chunks(BODY), 501),
    "identity": (request(DRY, JSON, b"Transfer-Encoding: identity") + BODY, 400),
    "chunks": (CHUNKED + chunks(BODY[:5], BODY[5:]), 200),
    "chunk that is none": (CHUNKED + b"x\r\n\r\n", 400),
    "chunk with a sign": (CHUNKED + b"+12\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
    "chunk too short": (CHUNKED + b"5\r\n" + BODY + b"\r\n0\r\n\r\n", 400),
    "no last chunk": (CHUNKED + b"12\r\n" + BODY + b"\r\n", 400),
    "chunks with HTTP/1.0": (CHUNKED.replace(b"/1.1", b"/1.0") + chunks(BODY), 400),
    "body too short": (request(DRY, JSON, b"Content-Length: 100") + BODY, 400),
    "another charset": (request(DRY, JSON + b"; charset=latin1", LENGTH) + BODY, 415),
    "type twice": (request(DRY, JSON, JSON, LENGTH) + BODY, 400),
    "form": (request(DRY, b"Content-Type: text/plain", LENGTH) + BODY, 415),
    "no type": (request(DRY, LENGTH) + BODY, 415),
    "packed": (request(DRY, JSON, LENGTH, b"Content-Encoding: gzip") + BODY, 415),
    # ── protocols ──
    "HTTP/1.0": (get().replace(b"/1.1", b"/1.0"), 200),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "upgrade to HTTP/2": (get(b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"), 200),
    "HTTP/1.9": (get().replace(b"/1.1", b"/1.9"), 200),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500, 400),
    "PROXY": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + get(), 400),
    "lower case": (get().replace(b"GET", b"get"), 400),
    "empty line in front": (b"\r\n" + get(), 200),
}


@pytest.mark.parametrize(("data", "expected"), ODD.values(), ids=ODD.keys())
def test_an_odd_request_is_refused_or_taken_for_what_it_is(service: Service, data: bytes, expected: int) -> None:
    ((status, headers, body),) = answers(service, data)

    assert status == expected, body
    assert {name.lower() for name in PROTECTION} <= headers.keys()
    assert not any(character.isdigit() for character in headers.get("server", ""))
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        document = json.loads(body)
        assert document["status"] == status
        assert document["title"]
        assert document["detail"]
        assert service.token.encode() not in body


def test_what_follows_a_request_that_was_refused_is_not_taken_for_another(service: Service) -> None:
    hidden = get(path=b"/v1/absent")
    for begin in (
        request(DRY, JSON, LENGTH, b"Transfer-Encoding: chunked"),
        request(DRY, JSON, LENGTH, b"Content-Length: 0"),
        CHUNKED + b"x\r\n",
    ):
        data = begin.replace(b"Connection: close\r\n", b"")
        assert [status for status, _, _ in answers(service, data + hidden)] == [400]


def test_a_body_that_nobody_wants_is_not_taken_for_a_request(service: Service) -> None:
    hidden = b"GET /v1/absent HTTP/1.1\r\n\r\n"
    length = b"Content-Length: %d" % len(hidden)
    data = get(length).replace(b"Connection: close\r\n", b"") + hidden

    assert [status for status, _, _ in answers(service, data + get())] == [200, 200]
