"""The URLs of callbacks, where these may go, and when."""

from ipaddress import ip_address, ip_network

import pytest

from jobrunner.callbacks.places import Places
from jobrunner.config import Callbacks
from jobrunner.domain.addresses import AddressPolicy, Rule, find_address, parse_rule
from jobrunner.domain.callback import Schedule, parse_url

# ── URLs ──


@pytest.mark.parametrize(
    ("url", "authority", "lookup", "key", "target"),
    [
        ("http://example.org", "example.org", "example.org", "example.org:80", "/"),
        ("HTTPS://Example.ORG/Done?Job=1", "example.org", "example.org", "example.org:443", "/Done?Job=1"),
        ("http://example.org.:8080/", "example.org:8080", "example.org.", "example.org:8080", "/"),
        ("http://example.org?a=/b", "example.org", "example.org", "example.org:80", "/?a=/b"),
        ("http://example.org/a#there", "example.org", "example.org", "example.org:80", "/a"),
        ("https://example.org:443", "example.org", "example.org", "example.org:443", "/"),
        ("http://example.org:443/", "example.org:443", "example.org", "example.org:443", "/"),
        ("http://xn--strae-oqa.de/", "xn--strae-oqa.de", "xn--strae-oqa.de", "xn--strae-oqa.de:80", "/"),
        ("http://[::1]:81/", "[::1]:81", "::1", "::1:81", "/"),
        ("http://[0:0::0:1]:81/", "[::1]:81", "::1", "::1:81", "/"),
        ("http://[fe80::1%25eth0]/", "[fe80::1]", "fe80::1%eth0", "fe80::1:80", "/"),
        ("http://under_score/a,b;c'd", "under_score", "under_score", "under_score:80", "/a,b;c'd"),
    ],
)
def test_a_url_says_where_to_connect_to_and_what_to_ask_for(
    url: str, authority: str, lookup: str, key: str, target: str
) -> None:
    receiver = parse_url(url)

    assert (receiver.authority, receiver.lookup, receiver.key, receiver.target) == (authority, lookup, key, target)
    assert receiver.scheme == url.split(":", 1)[0].lower()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "ASCII"),
        ("example.org", "begin with http"),
        ("//example.org/", "begin with http"),
        ("ftp://example.org/", "begin with http"),
        ("javascript:alert(1)", "begin with http"),
        ("http://example.org/" + "a" * 2048, "2048"),
        ("http://straße.de/", "xn--"),
        ("http://example.org/a b", "spaces"),
        ("http://example.org/\r\nX: y", "ASCII"),
        ("http://example.org/\x00", "ASCII"),
        ("http://example.org/\ud800", "ASCII"),
        ("http://user@example.org/", "user name"),
        ("http://user:pass@example.org/", "password"),
        ("http://@example.org/", "user name"),
        ("http://good.example\\@bad.example/", "user name"),
        ("http://bad.example\\.good.example/", "name a host"),
        ("http://", "name a host"),
        ("http:///path", "name a host"),
        ("http://a..b/", "name a host"),
        ("http://.a/", "name a host"),
        ("http://a../", "name a host"),
        ("http://" + "a" * 64 + ".org/", "name a host"),
        ("http://" + ".".join(["a" * 60] * 5) + "/", "name a host"),
        ("http://a%2eb/", "name a host"),
        ("http://a:/", "name a host"),
        ("http://a:0/", "name a host"),
        ("http://a:65536/", "name a host"),
        ("http://a:\uff11/", "ASCII"),
        ("http://[::1/", "name a host"),
        ("http://[127.0.0.1]/", "IPv6"),
        ("http://[1:2]/", "IPv6"),
        ("http://::1/", "name a host"),
    ],
)
def test_what_can_be_read_in_two_ways_is_no_url(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_url(url)


# ── rules about addresses ──


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("10.0.0.0/8", ip_network("10.0.0.0/8")),
        ("10.1.2.3", ip_network("10.1.2.3/32")),
        ("127.1", ip_network("127.0.0.1/32")),
        ("0x7f000001", ip_network("127.0.0.1/32")),
        ("::", ip_network("::/128")),
        ("FE80::/10", ip_network("fe80::/10")),
        ("Hooks.Example.org.", "hooks.example.org"),
        ("*.example.org", "*.example.org"),
    ],
)
def test_a_rule_is_a_network_or_a_host(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["10.0.0.1/8", "[::1]", "a b", "http://a/", "*", "a.*.b", "1.2.3.4:80", "-/-"])
def test_what_is_neither_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_rule(text)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.01"]
)
def test_an_address_is_known_in_every_way_to_write_it(host: str) -> None:
    assert find_address(host) == ip_address("127.0.0.1")


@pytest.mark.parametrize("host", ["localhost", "1.2.3.4.5", "256.1.1.1", "0xz", "1.example.org", "é"])
def test_a_name_is_no_address(host: str) -> None:
    assert find_address(host) is None


DEFAULT = Callbacks().policy


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "169.254.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255",
        "100.100.100.200", "168.63.129.16", "192.0.0.192",
        "::", "fe80::1", "febf::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254",
        "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "169.254.43518", "0",
        "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::ffff:0.0.0.0",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254", "64:ff9b:1::a9fe:a9fe", "::ffff:0:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1",
        "2001:0:1:2:0:0:5601:5601",
    ],
)  # fmt: skip
def test_by_default_nothing_goes_to_what_is_no_receiver(host: str) -> None:
    assert "deny" in str(DEFAULT.host_problem(host))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "93.184.216.34", "2001:db8::1", "::ffff:127.0.0.1", "fd00::1"],
)
def test_by_default_everything_else_is_a_receiver(host: str) -> None:
    assert DEFAULT.host_problem(host) is None


def policy(allow: str = "", deny: str = "") -> AddressPolicy:
    return AddressPolicy(tuple(map(parse_rule, allow.split())), tuple(map(parse_rule, deny.split())))


def problem(policy: AddressPolicy, host: str, address: str) -> str | None:
    return policy.host_problem(host) or policy.address_problem(host, ip_address(address))


def test_with_allow_there_is_nothing_else() -> None:
    only = policy("hooks.example.org *.internal 10.0.0.0/8 ::1")

    assert problem(only, "hooks.example.org", "93.184.216.34") is None
    assert problem(only, "a.b.internal", "192.168.0.1") is None
    assert problem(only, "anything", "10.1.2.3") is None
    assert problem(only, "anything", "::ffff:10.1.2.3") is None
    assert problem(only, "localhost", "::1") is None
    for host, address in [
        ("other.example.org", "93.184.216.34"),
        ("internal", "192.168.0.1"),
        ("evilinternal", "192.168.0.1"),
        ("sub.hooks.example.org", "93.184.216.34"),
        ("localhost", "127.0.0.1"),
        ("0xa000001.example", "93.184.216.34"),
    ]:
        assert "allow" in str(problem(only, host, address)), host


def test_with_names_only_other_names_are_refused_before_they_are_looked_up() -> None:
    assert "allow" in str(policy("hooks.example.org").host_problem("other.example.org"))
    assert policy("hooks.example.org 10.0.0.0/8").host_problem("other.example.org") is None


def test_deny_wins_over_allow() -> None:
    both = policy("meta.internal *.example.org 169.254.0.0/16", "169.254.169.254 bad.example.org")

    assert problem(both, "meta.internal", "169.254.1.1") is None
    assert "deny" in str(problem(both, "meta.internal", "169.254.169.254"))
    assert "deny" in str(problem(both, "bad.example.org", "93.184.216.34"))
    assert problem(both, "good.example.org", "93.184.216.34") is None


# ── when ──


def test_the_pauses_are_those_of_the_schedule_and_a_little_more() -> None:
    schedule = Schedule((0.0, 5.0, 30.0))

    pauses = [schedule.pause(tried, retry_after=None, luck=luck) for tried in (1, 2) for luck in (0.0, 1.0)]

    assert pauses == pytest.approx([5.0, 5.5, 30.0, 33.0])
    assert schedule.pause(3, retry_after=None, luck=0.0) is None
    assert schedule.first == 0.0


def test_the_later_of_schedule_and_retry_after_counts() -> None:
    schedule = Schedule((0.0, 5.0))

    assert schedule.pause(1, retry_after=60.0, luck=0.0) == 60.0
    assert schedule.pause(1, retry_after=1.0, luck=0.0) == 5.0
    assert schedule.pause(2, retry_after=1.0, luck=0.0) is None


# ── how many at a time ──


def test_one_receiver_gets_no_more_than_its_share() -> None:
    places = Places(10, 4)

    assert places.share(["a", "b", "c", "d"]) == {"a": 4, "b": 4, "c": 2}
    for _ in range(4):
        places.take("a")
    assert places.share(["a", "b", "c", "d"]) == {"b": 4, "c": 2}
    places.give("a", is_slow=False)
    assert places.share(["a"]) == {"a": 1}


def test_slow_receivers_get_one_place_each_and_half_of_them_together() -> None:
    places = Places(8, 4)
    slow = [f"slow{number}" for number in range(6)]
    for receiver in slow:
        places.take(receiver)
        places.give(receiver, is_slow=True)

    assert places.share([*slow, "quick"]) == {"slow0": 1, "slow1": 1, "slow2": 1, "slow3": 1, "quick": 4}
    for receiver in slow[:4]:
        places.take(receiver)
    assert places.share([*slow, "quick"]) == {"quick": 4}


def test_a_receiver_that_answers_is_no_longer_slow() -> None:
    places = Places(8, 4)
    places.take("a")
    places.give("a", is_slow=True)
    places.take("a")
    places.give("a", is_slow=None)
    assert places.share(["a"]) == {"a": 1}

    places.take("a")
    places.give("a", is_slow=False)
    assert places.share(["a"]) == {"a": 4}


def test_who_is_owed_nothing_any_more_is_forgotten() -> None:
    places = Places(8, 4)
    for receiver in ("a", "b", "c"):
        places.take(receiver)
        places.give(receiver, is_slow=True)
    places.take("c")

    places.forget_all_but(["a"])

    places.give("c", is_slow=None)
    assert places.share(["a", "b", "c"]) == {"a": 1, "c": 1, "b": 4}
