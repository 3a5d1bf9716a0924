"""Who has sent a request, as far as the proxies in between are to be believed."""

import json

import pytest
from flask import Flask, request

from jobrunner.web.peer import asked_hosts, client_address, trust_proxies


def ask(proxies: int, address: str, **headers: str) -> tuple[str | None, set[str], str]:
    """Return client address, hosts and scheme that an application sees which believes so many proxies."""
    app = Flask("test")
    trust_proxies(app, proxies)

    @app.get("/")
    def tell() -> str:
        return json.dumps([client_address(request), list(asked_hosts(request)), request.scheme])

    given = {f"X-Forwarded-{name}": value for name, value in headers.items()}
    answer = app.test_client().get("/", headers=given, environ_overrides={"REMOTE_ADDR": address})
    found, hosts, scheme = json.loads(answer.text)
    return found, set(hosts), scheme


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:5678", "192.0.2.1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:5678", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:5678", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("192.0.2.1.example.org", None),
        ("192.0.2.1:x", None),
        ("[192.0.2.1", None),
        ("010.0.0.1", None),
        (":5678", None),
        ("[]:1", None),
    ],
)
def test_an_address_is_told_in_one_form_only_and_nothing_else_is_told(text: str, address: str | None) -> None:
    assert ask(0, text)[0] == address
    assert ask(1, "", For=text or " ")[0] == address


def test_nothing_that_a_client_says_is_believed_without_trusted_proxies() -> None:
    forged = {"For": "192.0.2.66", "Proto": "https", "Host": "evil.example"}

    assert ask(0, "192.0.2.1", **forged) == ("192.0.2.1", {"localhost"}, "http")
    assert ask(0, "", **forged)[0] is None


def test_as_many_proxies_as_are_trusted_are_believed_from_the_right() -> None:
    chain = "192.0.2.66, 192.0.2.1, 192.0.2.2"

    assert ask(1, "", For=chain)[0] == "192.0.2.2"
    assert ask(2, "", For=chain)[0] == "192.0.2.1"
    assert ask(4, "127.0.0.1", For=chain)[0] == "127.0.0.1", "one that has not passed all proxies is nobody's word"


def test_what_a_trusted_proxy_says_of_host_and_scheme_counts() -> None:
    found = ask(1, "127.0.0.1", For="192.0.2.1", Proto="https", Host="jobs.example.org:8443")

    assert found == ("192.0.2.1", {"jobs.example.org:8443", "localhost"}, "https")
