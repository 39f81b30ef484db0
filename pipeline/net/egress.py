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
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from pipeline.errors import BlockedAddress, DownloadFailed
from pipeline.net.addresses import is_private, is_public
from pipeline.net.deadline import deadline

MAX_BYTES = 20 * 2**20
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
MAX_REDIRECTS = 5

Resolve = Callable[[str, int], list[str]]


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
        transport=_GuardedTransport(policy, resolve or resolve_host),
        trust_env=False,
        follow_redirects=False,
        # One client serves all customers: a cookie that one's receiver sets must not reach another's.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
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
                    found = _get(client, url, max_bytes=max_bytes, within_s=left_s, extensions=limit.extensions)
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
    found = ipaddress.ip_address(address.partition("%")[0])
    if is_public(found) or (policy.allow_private_addresses and is_private(found)):
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
            case _:
                pass
        cause = cause.__cause__ or cause.__context__
    return "it cannot be reached"


def _get(client: httpx.Client, url: str, *, max_bytes: int, within_s: float, extensions: dict[str, Any]) -> bytes | str:
    """One GET: the body, or where a redirect leads.

    Raises:
        DownloadFailed: another answer than 200, or too long a body.
        httpx.HTTPError: no answer.
    """
    host = _host_of(url)
    headers = {"connection": "close", "user-agent": "image-to-3d", "accept": "image/*", "accept-encoding": "identity"}
    timeout = httpx.Timeout(within_s, connect=min(within_s, CONNECT_TIMEOUT_S))
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


class GuardedBackend(httpcore.NetworkBackend):
    """Resolves, checks what came out, and connects to that."""

    def __init__(self, policy: AddressPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self.system = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        end_s = None if timeout is None else time.monotonic() + timeout
        try:
            addresses = _resolve_within(timeout, self._resolve, host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        for address in addresses:
            check_address(address, self._policy, host=host)
        failure: Exception = httpcore.ConnectError("no address")
        for number, address in enumerate(addresses):
            # One deadline for all addresses of a name: each gets its share of what is left.
            left_s = None if end_s is None else (end_s - time.monotonic()) / (len(addresses) - number)
            if left_s is not None and left_s <= 0:
                raise httpcore.ConnectTimeout("no connection in time")
            try:
                return self.system.connect_tcp(address, port, left_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise BlockedAddress("a local socket is not an address for this service")

    def sleep(self, seconds: float) -> None:
        self.system.sleep(seconds)


def _resolve_within(timeout_s: float | None, resolve: Resolve, host: str, port: int) -> list[str]:
    """`resolve`, given up after some seconds: the system's resolver has no timeout of its own.

    Raises:
        httpcore.ConnectTimeout: there is no answer in time.
        OSError: the name does not resolve.
    """
    answer: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            answer.set_result(resolve(host, port))
        except Exception as error:  # noqa: BLE001  # raised again below, in the thread that waits
            answer.set_exception(error)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        return answer.result(timeout_s)
    except TimeoutError as error:
        if answer.done():  # the resolver's own
            raise
        raise httpcore.ConnectTimeout("the name does not resolve in time") from error


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
            network_backend=GuardedBackend(policy, resolve),
        )
