"""One attempt to send a callback: where it goes, how long it may take, what counts as an answer."""

import io
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobrunner.callbacks.sending import RETRY_AFTER_MAX, Answer, NoAnswer, Place, Sender, resolve
from jobrunner.domain.addresses import AddressPolicy, parse_rule
from jobrunner.domain.callback import parse_url
from tests.conftest import miss
from tests.nginx import make_certificate
from tests.receivers import Receiver, drip, flood, hang, say, status
from tests.service import eventually, free_port

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def policy(allow: str = "", deny: str = "") -> AddressPolicy:
    return AddressPolicy(tuple(map(parse_rule, allow.split())), tuple(map(parse_rule, deny.split())))


ANYWHERE = policy()


def post(
    url: str, receivers: AddressPolicy = ANYWHERE, *, body: bytes = b"{}", seconds: float = 20.0, **arguments: Any
) -> Answer:
    return Sender(receivers, lambda: NOW, **arguments).post(parse_url(url), {"X-A": "b"}, io.BytesIO(body), seconds)


def refusal(url: str, receivers: AddressPolicy = ANYWHERE, **arguments: Any) -> NoAnswer:
    with pytest.raises(NoAnswer) as refused:
        post(url, receivers, **arguments)
    return refused.value


class Names:
    """A resolver with names of its own, that counts; each answer is for one question."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    def __call__(self, host: str, port: int) -> list[Place]:
        self.asked.append(host)
        if not self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [place for address in self._answers.pop(0) for place in resolve(address, port)]


# ── what is sent, and what comes back ──


def test_a_post_request_is_sent() -> None:
    with Receiver() as receiver:
        answer = post(f"http://localhost:{receiver.port}/a?b=c#d", body=b'{"a": 1}')

        (received,) = receiver.received
    assert answer == Answer(204)
    assert (received.path, received.body) == ("/a?b=c", b'{"a": 1}')
    assert received.headers["host"] == f"localhost:{receiver.port}"
    assert received.headers["x-a"] == "b"
    assert received.headers["content-length"] == "8"
    assert received.headers["user-agent"].startswith("jobrunner/")


@pytest.mark.parametrize("code", [200, 201, 202, 204, 299, 301, 302, 307, 400, 404, 410, 429, 500, 503])
def test_the_status_is_told_whatever_it_is(code: int) -> None:
    with Receiver(status(code)) as receiver:
        assert post(receiver.url).status == code


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(code: int) -> None:
    with Receiver() as elsewhere, Receiver(status(code, location=elsewhere.url)) as receiver:
        assert post(receiver.url).status == code

        assert (len(receiver.received), elsewhere.connections) == (1, 0)


def test_a_large_body_arrives_whole() -> None:
    with Receiver() as receiver:
        post(receiver.url, body=b"x" * 3_000_000)

        assert len(receiver.received[0].body) == 3_000_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9999999999", RETRY_AFTER_MAX),
        ("Sat, 31 Jan 2026 12:01:00 GMT", 60.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),
        ("Wed, 31 Jan 2126 12:00:00 GMT", RETRY_AFTER_MAX),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u00b2", None),
        ("Sat, 99 Jan 2026 12:01:00 GMT", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    with Receiver(status(429, retry_after=text)) as receiver:
        assert post(receiver.url) == Answer(429, seconds)


# ── receivers that misbehave ──


def test_a_receiver_that_never_answers_is_given_up() -> None:
    with Receiver(hang) as receiver:
        refused = refusal(receiver.url, seconds=0.3)

    assert (str(refused), refused.is_slow) == ("no answer within 0.3 s", True)


@pytest.mark.parametrize(
    "text",
    [b"H", b"HTTP/1.1 200 OK\r\nX: y", b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"H"],
    ids=["status", "header", "100"],
)
def test_a_receiver_that_sends_a_byte_now_and_then_gains_no_time(text: bytes) -> None:
    """Each byte comes well within any timeout of a socket."""
    with Receiver(drip(text)) as receiver:
        refused = refusal(receiver.url, seconds=0.5)

    assert refused.is_slow


def test_once_the_status_is_there_the_rest_does_not_matter() -> None:
    endless = drip(b"HTTP/1.1 200 OK\r\n\r\nx", every=0.01)
    cut_short = say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\nonly this")
    broken = say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    with Receiver(endless, cut_short, broken, flood) as receiver:
        assert [post(receiver.url, seconds=1.0).status for _ in range(4)] == [200, 202, 200, 200]


def test_a_flood_is_not_read_to_its_end() -> None:
    """It has none. What is sent besides what is read is in the kernel's buffers."""
    with Receiver(flood) as receiver:
        assert post(receiver.url, seconds=3.0).status == 200

    assert 0 < receiver.flooded < 64 << 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "closed before the answer"),
        (b"HTTP/1.1 2", "not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n", "not HTTP"),
    ],
)
def test_what_is_no_answer_is_told_as_such(text: bytes, words: str) -> None:
    with Receiver(say(text)) as receiver:
        refused = refusal(receiver.url)

    assert words in str(refused)
    assert not refused.is_slow
    assert len(str(refused)) <= 300


def test_a_port_that_nobody_listens_on_refuses() -> None:
    assert str(refusal(f"http://127.0.0.1:{free_port()}/")) == "Connection refused"


def test_a_name_that_nobody_has_has_no_address() -> None:
    assert "receiver.test has no address: " in str(refusal("http://receiver.test/", resolve=Names()))
    assert "has no address" in str(refusal("http://receiver.test/", resolve=Names([])))


# ── where it goes ──


def test_what_was_checked_is_what_is_connected_to() -> None:
    """The name is looked up once: who answers otherwise the second time is not asked."""
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    with Receiver() as receiver:
        answer = post(f"http://rebind.test:{receiver.port}/", policy(deny="169.254.0.0/16"), resolve=names)

        assert receiver.received[0].headers["host"] == f"rebind.test:{receiver.port}"
    assert (answer.status, names.asked) == (204, ["rebind.test"])


def test_a_name_is_judged_anew_at_each_attempt() -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    with Receiver(address="0.0.0.0") as receiver:
        sender = Sender(policy(deny="127.0.0.2"), lambda: NOW, resolve=names)
        url = parse_url(f"http://rebind.test:{receiver.port}/")

        assert sender.post(url, {}, io.BytesIO(), 20).status == 204
        with pytest.raises(NoAnswer, match=r"not allowed: 127\.0\.0\.2 is in \[callbacks\] deny"):
            sender.post(url, {}, io.BytesIO(), 20)
        assert receiver.connections == 1


def test_of_several_addresses_only_those_allowed_are_tried() -> None:
    with Receiver(address="0.0.0.0") as receiver:
        url = f"http://many.test:{receiver.port}/"

        assert post(url, policy(deny="127.0.0.2"), resolve=Names(["127.0.0.2", "127.0.0.3"])).status == 204
        assert "not allowed" in str(refusal(url, policy(deny="127.0.0.0/8"), resolve=Names(["127.0.0.2", "127.0.0.3"])))
        assert receiver.connections == 1


def test_an_address_that_refuses_leaves_the_others() -> None:
    with Receiver() as receiver:
        assert post(f"http://many.test:{receiver.port}/", resolve=Names(["127.0.0.9", "127.0.0.1"])).status == 204


def test_an_address_that_does_not_answer_leaves_time_for_the_others() -> None:
    with Receiver() as receiver, socket.socket() as full:
        full.bind(("127.0.0.9", receiver.port))
        full.listen(0)
        # Its queue is full: further connections are neither taken nor refused.
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.9", receiver.port))
        answer = post(f"http://many.test:{receiver.port}/", resolve=Names(["127.0.0.9", "127.0.0.1"]), seconds=2.0)
        for one in waiting:
            one.close()

    assert answer.status == 204


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "017700000001", "[::ffff:127.0.0.1]"]
)
def test_an_address_is_the_same_however_it_is_written(host: str) -> None:
    with Receiver() as receiver:
        url = f"http://{host}:{receiver.port}/"

        assert "not allowed" in str(refusal(url, policy(deny="127.0.0.0/8")))
        assert "not allowed" in str(refusal(url, policy(allow="10.0.0.0/8 example.org")))
        assert receiver.connections == 0
        assert post(url).status == 204
        assert post(url, policy(allow="127.0.0.0/8")).status == 204


@pytest.mark.parametrize("host", ["receiver.test", "receiver.test.", "RECEIVER.Test"])
def test_a_name_is_the_same_however_it_is_written(host: str) -> None:
    """A dot at the end is for the resolver, which then adds no domain."""
    names = Names(["127.0.0.1"])
    with Receiver() as receiver:
        url = f"http://{host}:{receiver.port}/"

        assert "receiver.test is in [callbacks] deny" in str(refusal(url, policy(deny="receiver.test"), resolve=names))
        assert (receiver.connections, names.asked) == (0, [])
        assert post(url, policy(allow="receiver.test"), resolve=names).status == 204
        assert receiver.received[0].headers["host"] == f"receiver.test:{receiver.port}"
    assert names.asked == [host.lower()]


def test_a_link_local_address_with_a_zone_is_one_too() -> None:
    names = Names(["::1"])

    assert "not allowed" in str(refusal("http://[fe80::1%25lo]/", policy(deny="fe80::/10"), resolve=names))
    assert names.asked == []


def test_a_name_that_is_denied_is_not_even_looked_up() -> None:
    names = Names(["127.0.0.1"])

    assert "not allowed" in str(refusal("http://a.internal/", policy(deny="*.internal"), resolve=names))
    assert names.asked == []


def test_proxies_of_the_environment_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)

        assert post(receiver.url).status == 204
        assert (len(receiver.received), proxy.connections) == (1, 0)


def test_what_is_dripped_holds_no_thread_when_many_are_at_it() -> None:
    with Receiver(drip(b"HTTP/1.1 200 OK\r\nX: y")) as receiver:
        threads = [threading.Thread(target=refusal, args=(receiver.url,), kwargs={"seconds": 1.0}) for _ in range(20)]
        for thread in threads:
            thread.start()

        assert eventually(lambda: not any(thread.is_alive() for thread in threads))


# ── TLS ──


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with key and certificate of receiver.test, signed by itself."""
    if shutil.which("openssl") is None:
        miss("needs openssl to make a certificate")
    directory = tmp_path_factory.mktemp("tls")
    make_certificate(directory, owner="DNS:receiver.test")
    both = directory / "both.pem"
    both.write_bytes((directory / "key.pem").read_bytes() + (directory / "certificate.pem").read_bytes())
    return both


@pytest.fixture
def secured(certificate: Path) -> Iterator[tuple[Receiver, list[str | None]]]:
    """A receiver with this certificate, and the names that it was asked for."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    asked: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked.append(name)
    with Receiver(trust=server) as receiver:
        yield receiver, asked


def test_a_certificate_is_for_the_name_not_for_the_address(
    secured: tuple[Receiver, list[str | None]], certificate: Path
) -> None:
    receiver, asked = secured
    trust = ssl.create_default_context(cafile=str(certificate))
    url = f"https://receiver.test.:{receiver.port}/"

    assert post(url, policy(allow="127.0.0.0/8"), resolve=Names(["127.0.0.1"]), trust=trust).status == 204
    assert asked == ["receiver.test"]
    assert receiver.received[0].headers["host"] == f"receiver.test:{receiver.port}"
    for url in (f"https://other.test:{receiver.port}/", f"https://127.0.0.1:{receiver.port}/"):
        refused = refusal(url, resolve=Names(["127.0.0.1"]), trust=trust)
        assert "its certificate is not trusted" in str(refused)


def test_a_certificate_that_nobody_knows_is_not_trusted(secured: tuple[Receiver, list[str | None]]) -> None:
    receiver, _ = secured

    refused = refusal(f"https://receiver.test:{receiver.port}/", resolve=Names(["127.0.0.1"]))

    assert "its certificate is not trusted: self" in str(refused)
    assert receiver.received == []


def test_a_receiver_without_tls_can_not_be_spoken_to_by_https() -> None:
    with Receiver() as receiver:
        assert refusal(receiver.url.replace("http:", "https:"), seconds=2.0)
        assert receiver.received == []


def test_a_handshake_that_is_never_answered_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused = refusal(f"https://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)

    assert refused.is_slow
