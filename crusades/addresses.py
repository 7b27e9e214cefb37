"""Which IP addresses a stranger may make us connect to: a table, each row with its reason. Pure.

Written out instead of asking `ipaddress.is_global`, whose answer for several of these ranges changed between Python versions.
"""

from __future__ import annotations

import ipaddress

_CLOSED_V4 = (
    ("0.0.0.0/8", "means this host"),
    ("10.0.0.0/8", "is private"),
    ("100.64.0.0/10", "is a carrier's internal network"),
    ("127.0.0.0/8", "is loopback"),
    ("169.254.0.0/16", "is link-local, where clouds keep their credentials"),
    ("172.16.0.0/12", "is private"),
    ("192.0.0.0/24", "is reserved for protocols"),
    ("192.0.2.0/24", "is for documentation"),
    ("192.88.99.0/24", "is a retired 6to4 relay"),
    ("192.168.0.0/16", "is private"),
    ("198.18.0.0/15", "is for benchmarks inside networks"),
    ("198.51.100.0/24", "is for documentation"),
    ("203.0.113.0/24", "is for documentation"),
    ("224.0.0.0/4", "is multicast"),
    ("240.0.0.0/4", "is reserved"),
)
_CLOSED_V6 = (
    ("::1/128", "is loopback"),
    ("::/96", "is unspecified or an IPv4-compatible form"),
    ("::ffff:0:0/96", "hides an IPv4 address (v4-mapped)"),
    ("::ffff:0:0:0/96", "hides an IPv4 address (translated)"),
    ("64:ff9b::/96", "hides an IPv4 address (NAT64)"),
    ("64:ff9b:1::/48", "hides an IPv4 address (local NAT64)"),
    ("100::/64", "is the discard prefix"),
    ("2001::/23", "is reserved for protocols (Teredo, ORCHID)"),
    ("2001:db8::/32", "is for documentation"),
    ("2002::/16", "hides an IPv4 address (6to4)"),
    ("3fff::/20", "is for documentation"),
    ("5f00::/16", "is for segment routing"),
    ("fc00::/7", "is private"),
    ("fe80::/10", "is link-local"),
    ("fec0::/10", "is site-local"),
    ("ff00::/8", "is multicast"),
)
_CLOSED = tuple((ipaddress.ip_network(net), why) for net, why in _CLOSED_V4 + _CLOSED_V6)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
"""The only part of IPv6 that is handed out as global unicast."""


def refusal(address: str, *, allow_loopback: bool = False) -> str:
    """Why nobody may make us connect to `address`; empty when it is a public address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "is not an IP address"
    if parsed.version == 6 and parsed.scope_id:
        return "names an interface of this machine"
    if allow_loopback and parsed.is_loopback:
        return ""
    for network, why in _CLOSED:
        if parsed.version == network.version and parsed in network:
            return why
    if parsed.version == 6 and parsed not in _GLOBAL_V6:
        return "is not global unicast"
    return ""
