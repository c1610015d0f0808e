"""Which IP addresses are public, by IANA's special-purpose registries and what clouds do beside them.

`ipaddress.is_global` is not enough: it lets through multicast, addresses that carry another one inside (mapped, 6to4,
NAT64, ISATAP), and the metadata services that live at public-looking addresses.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


#: RFC 6890 and IANA's registry, multicast, class E; 168.63.129.16 is Azure's host, 192.31.196.0/24 and 192.175.48.0/24
#: are AS112, 192.88.99.0/24 was 6to4's relay, 100.100.100.200 (in 100.64/10) is Alibaba's metadata.
_REFUSED_4 = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
#: RFC 4291, section 2.4: global unicast is what IANA has given out, and that is all below 2000::/3.
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
#: Teredo, ORCHID, benchmarking and the rest of 2001::/23; documentation; 6to4; AS112; SRv6's documentation.
_REFUSED_6 = _networks("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "3ffe::/16")
#: RFC 5214, section 6.1: an interface identifier that carries an IPv4 address.
_ISATAP = frozenset({0x00005EFE, 0x02005EFE, 0x01005EFE, 0x03005EFE})

#: Where a name of the operator's own network may lead besides.
_LOCAL = _networks("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1", "fc00::/7")
#: Metadata services inside those.
_NEVER = _networks("100.100.100.200/32", "fd00:ec2::254/128", "fd20:ce::254/128", "192.0.0.192/32")


def parse_literal(text: str) -> str | None:
    """Return an address in its canonical form, None if the text is none; a zone makes it none."""
    address = _parse(text)
    return str(address) if address is not None else None


def is_literal(host: str) -> bool:
    """Return whether a host in its normal form is an address."""
    return _parse(host) is not None


def _parse(text: str) -> _Address | None:
    if "%" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def is_public(text: str) -> bool:
    """Return whether an address is a public one."""
    address = _parse(text)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_4)
    if address is None or address not in _GLOBAL_6 or any(address in network for network in _REFUSED_6):
        return False
    return (int(address) >> 32) & 0xFFFFFFFF not in _ISATAP


def is_local(text: str) -> bool:
    """Return whether an address is private or loopback, and no metadata service."""
    address = _parse(text)
    if address is None or any(address in network for network in _NEVER):
        return False
    return any(address in network for network in _LOCAL)
