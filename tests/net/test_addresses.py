"""Which addresses are public or private: every special block of the registries, and every form that embeds IPv4."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from pipeline.net.addresses import METADATA, NOT_GLOBAL_IPV4, NOT_GLOBAL_IPV6, PRIVATE, is_private, is_public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.31.196.1",  # AS112, globally reachable
    "192.52.193.1",  # AMT, globally reachable
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "2001:200::1",  # the first assigned block behind 2001::/23
    "2001:4860:4860::8888",
    "2400:cb00::1",
    "2606:4700:4700::1111",
    "2620:4f:8000::1",  # AS112, globally reachable
    "2a00:1450:4001:800::200e",
    "3ffe::1",
    "3fff:1000::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]
NEITHER = [
    "0.0.0.0",
    "0.1.2.3",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.255.255",
    "192.0.0.1",
    "192.0.0.8",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.255",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::2",
    "::127.0.0.1",  # IPv4-compatible
    "::169.254.169.254",
    "::8.8.8.8",
    "::ffff:0:127.0.0.1",  # IPv4-translated
    "::ffff:0:169.254.169.254",
    "::ffff:0:8.8.8.8",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",  # local-use NAT64
    "64:ff9b:1::127.0.0.1",
    "64:ff9b:1:ffff::8.8.8.8",
    "100::1",  # discard-only
    "100:0:0:1::1",  # dummy prefix
    "2001::1",  # Teredo
    "2001:0:7f00:1::1",
    "2001:1::1",
    "2001:2::1",  # benchmarking
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",  # documentation
    "2002:a9fe:a9fe::1",
    "3fff::1",  # documentation
    "3fff:fff:ffff::1",
    "4000::1",  # unallocated
    "5f00::1",  # SRv6
    "8000::1",
    "c000::1",
    "e000::1",
    "f000::1",
    "fe00::1",
    "fe80::1",  # link-local
    "fe80::a9fe:a9fe",
    "febf::1",
    "fec0::1",  # site-local
    "ff02::1",  # multicast
    "ff0e::1",
]
EMBEDDED_METADATA = [  # networks' own translators: RFC 6052 prefixes of each length
    "fd00:0:a9fe:a9fe::",
    "fd00:0:a9:fea9:00fe::",
    "fd00::a9fe:a9:fe00:0:0",
    "fd00:0:0:a9:fe:a9fe::",
    "fd00:0:0:0:a9:fea9:fe00:0",
    "fd00:1:2:3:4:5:a9fe:a9fe",
    "fd00:1:2:3:4:5:6464:64c8",  # of Alibaba's
    "fd00:1:2:3:4:5:a83f:8110",  # of Azure's
    "fd00::5efe:a9fe:a9fe",  # ISATAP
    "2606:4700::5efe:a9fe:a9fe",  # and public prefixes, which a network may translate itself
    "2606:4700:1:2:3:4:a9fe:a9fe",
    "2606:4700:a9fe:a9fe::",
    "2a00:1098:2c:1::a83f:8110",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_globally_reachable_unicast_is_public(address: str) -> None:
    assert is_public(ip_address(address)) and not is_private(ip_address(address))


@pytest.mark.parametrize("address", [*NEITHER, *EMBEDDED_METADATA])
def test_special_and_unallocated_addresses_are_neither_public_nor_private(address: str) -> None:
    assert not is_public(ip_address(address)) and not is_private(ip_address(address))


@pytest.mark.parametrize("network", [*NOT_GLOBAL_IPV4, *NOT_GLOBAL_IPV6], ids=str)
def test_no_address_of_a_special_block_is_public_in_any_form(network: object) -> None:
    for address in (network[0], network[-1], network[network.num_addresses // 2]):  # type: ignore[index,attr-defined]
        assert not is_public(address)
        if isinstance(address, IPv4Address):
            number = int(address)
            for form in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1, number):
                assert not is_public(IPv6Address(form)), IPv6Address(form)


@pytest.mark.parametrize("network", PRIVATE, ids=str)
def test_private_networks_are_private_and_never_public(network: object) -> None:
    for address in (network[0], network[-1]):  # type: ignore[index]
        assert is_private(address) and not is_public(address)
        if isinstance(address, IPv4Address):
            assert is_private(IPv6Address(0xFFFF << 32 | int(address)))


@pytest.mark.parametrize("address", sorted(METADATA, key=str), ids=str)
def test_metadata_services_are_never_admitted(address: IPv4Address | IPv6Address) -> None:
    forms = [address]
    if isinstance(address, IPv4Address):
        number = int(address)
        forms += [IPv6Address(0xFFFF << 32 | number), IPv6Address(0x64FF9B << 96 | number)]
        forms += [IPv6Address(0x2002 << 112 | number << 80), IPv6Address(0xFD12 << 112 | number)]
    for form in forms:
        assert not is_public(form) and not is_private(form)
