"""Which IP addresses this service connects to: globally reachable unicast, as IANA's registries list it.

An allow rule, not a list of bad addresses: what no registry calls globally reachable is refused, including space that
is not allocated yet. Knows nothing of names, URLs or HTTP.

Source: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), IANA IPv6 Global Unicast Address Assignments.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

IpAddress = IPv4Address | IPv6Address

# Blocks that are not globally reachable. 192.0.0.0/24 has two addresses that are, for protocols of their own.
NOT_GLOBAL_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and most clouds' metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated by RFC 7526
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
GLOBAL_IPV6 = IPv6Network("2000::/3")
"""All that IANA has assigned as global unicast lies in here; everything outside is special or unallocated."""
NOT_GLOBAL_IPV6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation, RFC 9637
    )
)
PRIVATE = tuple(
    network
    for network in (
        IPv4Network("10.0.0.0/8"),
        IPv4Network("100.64.0.0/10"),
        IPv4Network("127.0.0.0/8"),
        IPv4Network("172.16.0.0/12"),
        IPv4Network("192.168.0.0/16"),
        IPv6Network("::1/128"),
        IPv6Network("fc00::/7"),
    )
)
"""What a deployment may allow besides: loopback and the private networks, and nothing else that is not global."""

# One request to these may return a machine's credentials, so they are refused under every policy. Link-local addresses,
# where most clouds serve metadata, are in no list that admits anything.
METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.0.23",  # Tencent
        "169.254.10.10",  # Tencent
        "169.254.42.42",  # Scaleway
        "169.254.170.2",  # AWS, containers
        "169.254.170.23",  # AWS, Kubernetes pods
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's wire server
        "192.0.0.192",  # Oracle
        "fd00:ec2::23",  # AWS, Kubernetes pods
        "fd00:ec2::253",  # AWS, name server
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "fd00:42::42",  # Scaleway
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd00:100::100:200",  # Alibaba
        "fd00:a9fe:a9fe::1",  # Akamai
    )
)

MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052, the well-known prefix: globally reachable
SIX_TO_FOUR = IPv6Network("2002::/16")  # RFC 3056
# Where RFC 6052 puts the IPv4 address behind a network's own NAT64 prefix, as byte positions: one layout per prefix
# length of 32, 40, 48, 56, 64 and 96 bits; byte 8 is skipped. The last is also that of IPv4-compatible (RFC 4291) and
# IPv4-translated (RFC 2765) addresses and of ISATAP (RFC 5214).
RFC_6052_LAYOUTS = (
    (4, 5, 6, 7),
    (5, 6, 7, 9),
    (6, 7, 9, 10),
    (7, 9, 10, 11),
    (9, 10, 11, 12),
    (12, 13, 14, 15),
)


def is_public(address: IpAddress) -> bool:
    """Whether an address is globally reachable unicast; a form that leads to an IPv4 address is judged by that one."""
    address = _target(address)
    if _is_metadata(address):
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_GLOBAL_IPV4)
    return address in GLOBAL_IPV6 and not any(address in network for network in NOT_GLOBAL_IPV6)


def is_private(address: IpAddress) -> bool:
    """Whether an address is loopback or of a private network, and no metadata service in any form."""
    address = _target(address)
    if _is_metadata(address):
        return False
    return any(address in network for network in PRIVATE if network.version == address.version)


def _is_metadata(address: IpAddress) -> bool:
    """Whether an address is a metadata service's, or holds that of one where a translator may look for it."""
    return address in METADATA or any(inner in METADATA for inner in _embedded(address))


def _target(address: IpAddress) -> IpAddress:
    """The IPv4 address that packets for an IPv6 address reach, where the form is in use; else the address itself.

    All other forms that embed an IPv4 address (IPv4-compatible, IPv4-translated, local-use NAT64, Teredo) lie outside
    the blocks that `is_public` admits.
    """
    if isinstance(address, IPv6Address):
        if address in MAPPED or address in NAT64:
            return IPv4Address(address.packed[12:])
        if address in SIX_TO_FOUR:
            return IPv4Address(address.packed[2:6])
    return address


def _embedded(address: IpAddress) -> Iterator[IPv4Address]:
    """Every IPv4 address that an IPv6 address may stand for behind a translator of the local network."""
    if isinstance(address, IPv6Address):
        for layout in RFC_6052_LAYOUTS:
            yield IPv4Address(bytes(address.packed[position] for position in layout))
