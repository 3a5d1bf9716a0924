"""Where callbacks may go: rules about hosts and networks."""

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Rule = IPv4Network | IPv6Network | str
"""A network, or the name of a host in lower case; ``*.example.org`` is every name below that one."""

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("::ffff:0:0:0/96"))
"""Where a router has IPv4 addresses in the last 32 bits (RFC 6052, RFC 8215, RFC 2765)."""


def parse_rule(text: str) -> Rule:
    """Read a network, an address or the name of a host.

    Raises:
        ValueError: it is none of these.
    """
    text = text.lower()
    if (address := find_address(text)) is not None:
        return ipaddress.ip_network(address)
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "/" in text or ":" in text:
            raise ValueError(f"expected a network like 10.0.0.0/8: {error}") from None
    name = text.removesuffix(".")
    if not _NAME.fullmatch(name):
        raise ValueError("expected networks like 10.0.0.0/8, and hosts like hooks.example.org or *.example.org")
    return name


def find_address(host: str) -> Address | None:
    """Return the address that a host is if it is no name, in any way that the system takes: ``0x7f000001`` too."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        # As the system's resolver does, which looks nothing up then: decimal, octal, hexadecimal, with parts left out.
        return IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which hosts and addresses are allowed.

    Attributes:
        allow: only these; empty: everything.
        deny: not these, though they be allowed.
    """

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()

    def host_problem(self, host: str) -> str | None:
        """Say why nothing may go to a host, as far as that is known without looking its name up.

        Args:
            host: a name in lower case, without a dot at the end; or an address.
        """
        address = find_address(host)
        if address is not None:
            return self.address_problem(host, address)
        if any(_is_name(rule, host) for rule in self.deny):
            return f"{host} is in [callbacks] deny"
        if self.allow and not self._allows_name(host) and all(isinstance(rule, str) for rule in self.allow):
            return f"{host} is not in [callbacks] allow"
        return None

    def address_problem(self, host: str, address: Address) -> str | None:
        """Say why nothing may go to this address of a host."""
        meanings = list(_meanings(address))
        if any(_is_within(rule, meaning) for rule in self.deny for meaning in meanings):
            return f"{address} is in [callbacks] deny"
        if not self.allow or self._allows_name(host):
            return None
        if any(_is_within(rule, meaning) for rule in self.allow for meaning in meanings):
            return None
        return f"{address} is not in [callbacks] allow"

    def _allows_name(self, host: str) -> bool:
        return any(_is_name(rule, host) for rule in self.allow)


def _is_name(rule: Rule, host: str) -> bool:
    if not isinstance(rule, str):
        return False
    return host.endswith(rule[1:]) if rule.startswith("*.") else host == rule


def _is_within(rule: Rule, address: Address) -> bool:
    return not isinstance(rule, str) and rule.version == address.version and address in rule


def _meanings(address: Address) -> Iterator[Address]:
    """Return an address and every other one that it stands for: packets to it may end there."""
    yield address
    if isinstance(address, IPv4Address):
        return
    for embedded in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())):
        if embedded is not None:
            yield embedded
    number = int(address)
    # ::a.b.c.d, long out of use (RFC 4291, 2.5.5.1); but :: and ::1 are what they are.
    if any(address in network for network in _NAT64) or 0xFFFF < number <= 0xFFFFFFFF:
        yield IPv4Address(number & 0xFFFFFFFF)
