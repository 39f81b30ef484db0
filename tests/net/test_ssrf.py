"""Addresses inside, in every spelling, through each of the four fields that hold one: no connection is ever tried.

The network below records every connection. Names resolve to the address inside that a case is about.
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from types import SimpleNamespace
from typing import Any

import httpcore
import httpx
import pytest

from pipeline.errors import ImageTo3DError
from pipeline.jobs.api_keys import key_record
from pipeline.jobs.model import KeyLimits, OutboxTask
from pipeline.net.addresses import METADATA, NOT_GLOBAL_IPV4, NOT_GLOBAL_IPV6
from pipeline.net.download import fetch
from pipeline.net.egress import check_url, guarded_client
from pipeline.storage.base import Artifact
from pipeline.storage.s3 import S3Storage
from pipeline.storage.s3_client import Bucket, _sender, failures
from pipeline.webhooks.sender import WebhookSender
from pipeline.webhooks.signing import WebhookSigner
from schemas.contract import read_http_url
from tests.net.policies import LAPTOP, STRICT, Policy
from tests.net.test_addresses import EMBEDDED_METADATA, NEITHER

LOOPBACK, CLOUD = "127.0.0.1", "169.254.169.254"
PRIVATE = [
    *(LOOPBACK, "127.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1"),
    *("192.168.255.255", "100.64.0.1", "100.127.255.255", "::1", "fc00::1", "fd12:3456::1", "fdff::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:192.168.1.1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::"),
]
ALWAYS_INSIDE = [*NEITHER, *EMBEDDED_METADATA, *map(str, sorted(METADATA, key=str))]
BORDERS = [str(block[index]) for block in (*NOT_GLOBAL_IPV4, *NOT_GLOBAL_IPV6) for index in (0, -1)]
TABLE = [
    *((STRICT, address) for address in [*PRIVATE, *BORDERS, *ALWAYS_INSIDE]),
    *((LAPTOP, a) for a in ALWAYS_INSIDE),
]


def spellings_of(target: str) -> list[str]:
    """Hosts that some parser takes for an IPv4 address."""
    address = IPv4Address(target)
    number, (a, b, c, d) = int(address), address.packed
    high, low = number >> 16, number & 0xFFFF
    return [
        target,
        f"{target}.",
        str(number),
        hex(number),
        f"0X{number:X}",
        f"0{number:o}",
        f"0x00000000{number:x}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0000{a:o}.0000{b:o}.{c}.{d}",
        f"{a:#x}.{b}.0{c:o}.{d}",
        f"{a}.{b}.{c << 8 | d}",
        f"{a}.{b << 16 | c << 8 | d}",
        f"{a:#x}.{b << 16 | c << 8 | d:#x}",
        f"{a + 256}.{b}.{c}.{d}",
        f"{a:03d}.{b:03d}.{c:03d}.{d:03d}",
        f"[::ffff:{target}]",
        f"[::FFFF:{high:X}:{low:X}]",
        f"[0:0:0:0:0:ffff:{high:x}:{low:x}]",
        f"[0000:0000:0000:0000:0000:ffff:{high:04x}:{low:04x}]",
        f"[::{target}]",
        f"[::ffff:0:{target}]",
        f"[64:ff9b::{target}]",
        f"[64:ff9b:1::{target}]",
        f"[2002:{high:x}:{low:x}::]",
        f"[fe80::5efe:{high:x}:{low:x}]",
        f"[::ffff:{target}%25eth0]",
        target.replace(".", "。"),  # ideographic full stops
        target.replace(".", "．"),  # full-width full stops
        target.replace(".", "%2e"),
        "".join(f"%{ord(sign):02x}" for sign in target),
        target.translate(str.maketrans("0123456789", "０１２３４５６７８９")),
        target.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")),
        target.translate(str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")),
    ]


def tricks_with(target: str) -> list[str]:
    """URLs that lead some parser to an address, or to a name that resolves to it."""
    hidden = [
        f"http://example.com@{target}/",
        f"http://example.com:80@{target}/",
        f"http://example.com%2f@{target}/",
        f"http://a@b@{target}/",
        f"http://example.com\\@{target}/",
        f"http://{target}\\@example.com/",
        f"http://{target}#@example.com/",
        f"http://{target}?@example.com/",
        f"http://{target}%00.example.com/",
        f"http://{target}%20.example.com/",
        f"http://{target}/%2e%2e/",
        f"http://{target[:5]}\t{target[5:]}/",
        f"http://{target[:5]}\r\n{target[5:]}/",
        f" \n http://{target}/ ",
        f"HTTP://{target}/",
        f"hTTpS://{target}:443/",
        f"http:{target}",
        f"http:/{target}/",
        f"http:///{target}/",
        f"http:\\\\{target}\\",
        f"//{target}/",
        f"http://{target}:80/",
        f"http://{target}:/",
        f"http://{target}:00080/",
        f"http://{target}:65536/",
        f"http://{target}:-1/",
        f"http://{target}:８０/",
        *(f"{scheme}://{target}/" for scheme in ("file", "ftp", "gopher", "dict", "ldap", "tftp", "unix", "http+unix")),
        f"jar:http://{target}!/",
        f"url:http://{target}/",
        f"http://http://{target}/",
        f"http://{target},example.com/",
        f"http://{target}&@example.com/",
        f"http://[{target}]/",
        f"http://[::1]:80@{target}/",
    ]
    names = [
        *("localhost", "LOCALHOST", "localhost.", "a.localhost", "localhost.localdomain", "ip6-localhost", "ⓛocalhost"),
        *("local\u00adhost", "local\u200bhost", "metadata.google.internal", "instance-data", f"{target}.nip.io"),
        *("xn--fiqs8s", "rebound.example", "a" * 63, "a" * 64, "a." * 120, "_", "-", ".", ".."),
    ]
    return [*(f"http://{host}/x?y=z" for host in spellings_of(target)), *hidden, *(f"http://{name}/" for name in names)]


TRICKS = [(STRICT, LOOPBACK, url) for url in tricks_with(LOOPBACK)]
TRICKS += [(policy, CLOUD, url) for url in tricks_with(CLOUD) for policy in (STRICT, LAPTOP)]


class RecordingNetwork(httpcore.NetworkBackend):
    """Connects nowhere, and records where it was asked to."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        self.asked.append(host)
        raise httpcore.ConnectError(host)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingNetwork]:
    network = RecordingNetwork()
    monkeypatch.setattr(httpcore, "SyncBackend", lambda: network)
    context = ssl.create_default_context()  # reading the certificates takes most of a client's time
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: context)
    yield network


def resolver_to(target: str) -> Callable[[str, int], list[str]]:
    """Numbers, as the system reads them; every name is the target."""

    def resolve(host: str, port: int) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except (OSError, UnicodeError, OverflowError):
            return [target]
        return [str(entry[4][0]) for entry in found]

    return resolve


def request_through_each_field(url: str, policy: Policy, resolve: Callable[[str, int], list[str]]) -> None:
    """Do with a URL what image, webhook, endpoint_url and public_url lead to; refusals are this service's own."""
    with suppress(ImageTo3DError):
        check_url(url, policy, resolve=resolve)
    with suppress(ImageTo3DError):
        fetch(url, policy, resolve=resolve, pause=lambda seconds: None)
    with guarded_client(policy, resolve=resolve) as client:
        signer = WebhookSigner([b"a master key, long enough"])
        task = OutboxTask("msg_1", "webhook", 1, "key", url, "pending", 0, 0.0, 0.0, 1.0)
        key = key_record("a key in plain text", name="key", limits=KeyLimits())
        assert WebhookSender(client, signer=signer, key_of=lambda key_id: key)(task, b"{}").error
        request = SimpleNamespace(method="PUT", url=url, headers={}, body=b"x")
        with suppress(*failures()):
            _sender(client, httpx.Timeout(5))(request)
        storage = S3Storage(Bucket("http://s3.test", "b", "r", True, "", url, "", ""), http=client)
        artifact = Artifact("a.glb", "model", url, 1, "model/gltf-binary", "")
        assert storage.check_public_url([artifact]) is not None


def test_the_table_is_large_enough() -> None:
    assert len({ip_address(address) for _, address in TABLE}) >= 120
    assert len({url for _, target, url in TRICKS if target == LOOPBACK}) >= 60


@pytest.mark.parametrize("policy", [STRICT, LAPTOP], ids=["public only", "private allowed"])
def test_no_address_inside_is_connected_to(network: RecordingNetwork, policy: Policy) -> None:
    for address in (address for allowed, address in TABLE if allowed is policy):
        host = f"[{address}]" if ":" in address else address
        request_through_each_field(f"http://{host}:8080/", policy, resolver_to(address))
        assert network.asked == [], address


@pytest.mark.parametrize(
    ("policy", "target"),
    [(STRICT, LOOPBACK), (STRICT, CLOUD), (LAPTOP, CLOUD)],
    ids=["loopback", "metadata", "metadata, private allowed"],
)
def test_no_trick_leads_inside(network: RecordingNetwork, policy: Policy, target: str) -> None:
    for url in (url for allowed, inside, url in TRICKS if (allowed, inside) == (policy, target)):
        for read in {url, read_http_url(url) or url}:
            request_through_each_field(read, policy, resolver_to(target))
            assert network.asked == [], read


def test_the_network_of_these_tests_records_what_is_allowed(network: RecordingNetwork) -> None:
    request_through_each_field("http://1.1.1.1/", STRICT, resolver_to(LOOPBACK))
    assert set(network.asked) == {"1.1.1.1"} and len(network.asked) >= 4
    request_through_each_field("http://127.0.0.1/", LAPTOP, resolver_to(CLOUD))
    assert set(network.asked) == {"1.1.1.1", "127.0.0.1"}


@pytest.mark.parametrize("first", range(4), ids=lambda number: f"public {number} times first")
@pytest.mark.parametrize(
    "then", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["169.254.169.254", "1.1.1.1"], ["::ffff:10.0.0.1"]]
)
def test_a_name_that_resolves_to_another_address_later_is_not_followed_inside(
    network: RecordingNetwork, first: int, then: list[str]
) -> None:
    asked: Counter[str] = Counter()

    def resolve(host: str, port: int) -> list[str]:
        asked[host] += 1
        return ["1.1.1.1"] if asked[host] <= first else then

    request_through_each_field("http://rebound.example/", STRICT, resolve)

    assert set(network.asked) <= {"1.1.1.1"}
    assert asked["rebound.example"] > len(network.asked)  # the check before, and once for each connection
    assert len(network.asked) == max(0, first - 1)  # no connection after the name leads inside
