"""The only way out of this service by HTTP: to public addresses, checked on the very address that is connected to.

A name may resolve to something else when it is looked up again, a redirect may lead inside, and an address can be
written in many ways (127.1, 0x7f000001, ::ffff:127.0.0.1). So nothing is judged by its spelling: the name is resolved
once, each address that comes out is checked, and the connection goes to one of those.

Knows nothing of what is fetched.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from pipeline.errors import BlockedAddress, DownloadFailed
from pipeline.net.deadline import deadline

MAX_BYTES = 20 * 2**20
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
MAX_REDIRECTS = 5

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

# Where clouds keep credentials. Most are link-local and refused as such; these are not.
_METADATA = frozenset(ipaddress.ip_address(text) for text in ("100.100.100.200", "192.0.0.192", "fd00:ec2::254"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)


class AddressPolicy(Protocol):
    """Which addresses a deployment goes to, beside public ones."""

    @property
    def allow_private_addresses(self) -> bool:
        """Loopback and private networks too: for tests and laptops."""
        ...


def guarded_client(policy: AddressPolicy, *, resolve: Resolve | None = None) -> httpx.Client:
    """An HTTP client that connects only where the policy allows; proxies of the environment have no say.

    Its requests raise `BlockedAddress` beside httpx's own errors.

    Args:
        resolve: host and port to addresses; by default the system's.
    """
    return httpx.Client(
        transport=_GuardedTransport(policy, resolve or resolve_host), trust_env=False, follow_redirects=False
    )


def check_url(url: str, policy: AddressPolicy, *, resolve: Resolve | None = None) -> None:
    """Refuse a URL that leads where this deployment does not go, as far as it can be told now.

    A name that does not resolve passes: it may do so later, and the connection is checked again.

    Raises:
        BlockedAddress: the scheme is neither http nor https, or an address is not allowed.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BlockedAddress(f"{_host_of(url)} is not an http or https address that can be used")
    try:
        addresses = (resolve or resolve_host)(parts.hostname, port)
    except (OSError, UnicodeError):  # a label that is too long is a UnicodeError
        return
    for address in addresses:
        check_address(address, policy, host=parts.hostname)


def fetch(
    url: str,
    policy: AddressPolicy,
    *,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
    max_redirects: int = MAX_REDIRECTS,
    resolve: Resolve | None = None,
) -> bytes:
    """GET a URL, next_corner redirects, each checked like the first.

    Args:
        timeout_s: for everything together, redirects included.

    Raises:
        BlockedAddress: it leads where this deployment does not go.
        DownloadFailed: no answer in time, an answer other than 200, or one that is too long.
    """
    end_s = time.monotonic() + timeout_s
    with guarded_client(policy, resolve=resolve) as client:
        for _ in range(max_redirects + 1):
            host = _host_of(url)
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise DownloadFailed(f"{host} did not send the picture within {timeout_s:g} s")
            with deadline(left_s) as limit:
                try:
                    found = _get(client, url, max_bytes=max_bytes, extensions=limit.extensions)
                    if limit.has_passed:  # a body without a length ends where its connection was cut
                        raise httpx.ReadTimeout("cut")
                except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as failure:
                    raise BlockedAddress(f"{host} is not an http or https address that can be used") from failure
                except httpx.HTTPError as failure:
                    if limit.has_passed or isinstance(failure, httpx.TimeoutException):
                        raise DownloadFailed(f"{host} did not send the picture within {timeout_s:g} s") from failure
                    raise DownloadFailed(f"{host} cannot be reached: {why_unreachable(failure)}") from failure
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
    raise DownloadFailed(f"{_host_of(url)} redirects more than {max_redirects} times")


def check_address(address: str, policy: AddressPolicy, *, host: str) -> None:
    """Refuse an address that is not public, unless the policy allows it.

    Args:
        address: an IP address as text, perhaps with a zone.
        host: what the message calls it.

    Raises:
        BlockedAddress: this deployment does not go there.
    """
    found = _innermost(ipaddress.ip_address(address.partition("%")[0]))
    is_public = found.is_global and not found.is_multicast and found not in _METADATA
    is_private = found.is_loopback or any(found in net for net in _PRIVATE if net.version == found.version)
    if is_public or (policy.allow_private_addresses and is_private and found not in _METADATA):
        return
    raise BlockedAddress(f"{host} leads to an address that is not public")


def resolve_host(host: str, port: int) -> list[str]:
    """The system's addresses of a host, in the order to try them.

    Raises:
        OSError: there is none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def why_unreachable(failure: BaseException) -> str:
    """Why there was no connection, in words, from the first error below that knows."""
    cause: BaseException | None = failure
    while cause is not None:
        match cause:
            case ssl.SSLCertVerificationError():
                return "its certificate is not valid"
            case ssl.SSLError():
                return "it does not speak TLS as expected"
            case socket.gaierror():
                return "its name does not resolve"
            case OSError(strerror=str() as words):
                return words.lower()
        cause = cause.__cause__ or cause.__context__
    return "it cannot be reached"


def _get(client: httpx.Client, url: str, *, max_bytes: int, extensions: dict[str, Any]) -> bytes | str:
    """One GET: the body, or where a redirect leads.

    Raises:
        DownloadFailed: another answer than 200, or too long a body.
        httpx.HTTPError: no answer.
    """
    host = _host_of(url)
    headers = {"connection": "close", "user-agent": "image-to-3d", "accept": "image/*", "accept-encoding": "identity"}
    timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with client.stream("GET", url, headers=headers, timeout=timeout, extensions=extensions) as answer:
        if answer.has_redirect_location:
            return answer.headers["location"]
        if answer.status_code != 200:
            raise DownloadFailed(f"{host} answered {answer.status_code} instead of a picture")
        announced = answer.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > max_bytes:
            raise DownloadFailed(_too_long(host, max_bytes))
        content = bytearray()
        for piece in answer.iter_raw():
            content += piece
            if len(content) > max_bytes:
                raise DownloadFailed(_too_long(host, max_bytes))
    return bytes(content)


def _too_long(host: str, max_bytes: int) -> str:
    return f"{host} sends more than {max_bytes / 2**20:g} MiB"


def _host_of(url: str) -> str:
    """The host of a URL for messages; what else it holds may be secret."""
    try:
        return urlsplit(url).hostname or "the address"
    except ValueError:
        return "the address"


def _innermost(address: IpAddress) -> IpAddress:
    """The IPv4 address that an IPv6 one stands for, where it is a way of writing or reaching one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


class _GuardedBackend(httpcore.NetworkBackend):
    """Resolves, checks what came out, and connects to that."""

    def __init__(self, policy: AddressPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        for address in addresses:
            check_address(address, self._policy, host=host)
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                return self._system.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise BlockedAddress("a local socket is not an address for this service")

    def sleep(self, seconds: float) -> None:
        self._system.sleep(seconds)


class _GuardedTransport(httpx.HTTPTransport):
    """httpx's transport over the guarded backend, for which httpx itself has no argument."""

    def __init__(self, policy: AddressPolicy, resolve: Resolve) -> None:
        context = ssl.create_default_context()
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_GuardedBackend(policy, resolve),
        )
