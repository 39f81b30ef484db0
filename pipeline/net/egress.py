"""Outgoing HTTP requests, to public addresses only; the address that is checked is the one that is connected to.

A name may resolve to another address when it is resolved again, a redirect may lead to a private address, and an
address has many spellings (127.1, 0x7f000001, ::ffff:127.0.0.1). So the text of a URL decides nothing: the name is
resolved once, each resulting address is checked, and the connection goes to one of these.

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
from urllib.parse import urlsplit

import httpcore
import httpx

from pipeline.errors import BlockedAddress
from pipeline.net.addresses import is_private, is_public
from pipeline.net.deadline import LimitedStream, current_deadline
from schemas.contract import plain_url

Resolve = Callable[[str, int], list[str]]


class AddressPolicy(Protocol):
    """Which addresses a deployment allows besides public ones."""

    @property
    def allow_private_addresses(self) -> bool:
        """Also allow loopback and private networks, for tests and development."""
        ...

    @property
    def user_agent(self) -> str:
        """What this deployment calls itself in outgoing requests."""
        ...


def guarded_client(policy: AddressPolicy, *, resolve: Resolve | None = None) -> httpx.Client:
    """An HTTP client that connects only where the policy allows; proxy settings of the environment are ignored.

    Its requests keep to the `deadline` of the thread that sends them, and raise `BlockedAddress` in addition to httpx's
    errors.

    Args:
        resolve: host and port to addresses; by default the system's.
    """
    return httpx.Client(
        transport=_GuardedTransport(policy, resolve or resolve_host),
        trust_env=False,
        follow_redirects=False,
        event_hooks={"response": [_keep_usable_location]},
        headers={"user-agent": policy.user_agent},
        # One client serves all customers: a cookie that one's receiver sets must not reach another's.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


def _keep_usable_location(response: httpx.Response) -> None:
    """Drop a `Location` that is no URL: httpx reads that of every redirect, followed or not, and fails over it."""
    location = response.headers.get("location")
    if location is None:
        return
    response.headers["location"] = plain_url(location)
    try:
        httpx.URL(response.headers["location"])
    except httpx.InvalidURL:
        del response.headers["location"]


def check_url(url: str, policy: AddressPolicy, *, resolve: Resolve | None = None) -> None:
    """Refuse a URL that leads to an address that this deployment does not allow.

    A name that does not resolve is accepted: it may resolve later, and the connection is checked again.

    Raises:
        BlockedAddress: the scheme is neither http nor https, or an address is not allowed.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BlockedAddress(f"{host_of(url)} is not a usable http or https address")
    try:
        addresses = (resolve or resolve_host)(parts.hostname, port)
    except (OSError, UnicodeError):  # a label that is too long is a UnicodeError
        return
    for address in addresses:
        check_address(address, policy, host=parts.hostname)


def check_address(address: str, policy: AddressPolicy, *, host: str) -> None:
    """Refuse an address that is not public, unless the policy allows it.

    Args:
        address: an IP address as text, perhaps with a zone.
        host: what the message calls it.

    Raises:
        BlockedAddress: this deployment does not allow it.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if is_public(found) or (policy.allow_private_addresses and is_private(found)):
        return
    raise BlockedAddress(f"{host} leads to an address that is not public")


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses to which the system resolves a host, in the order to try them.

    Raises:
        OSError: the name does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def why_unreachable(failure: BaseException) -> str:
    """Why there was no connection: the first error in the chain of causes that says so."""
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


def host_of(url: str) -> str:
    """The host of a URL for messages; the rest of it may be secret."""
    try:
        return urlsplit(url).hostname or "the address"
    except ValueError:
        return "the address"


class GuardedBackend(httpcore.NetworkBackend):
    """Resolves a name, checks the addresses, and connects to one of them."""

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
        limit = current_deadline()
        if limit is not None:
            limit.check()
            timeout = limit.left_s if timeout is None else min(timeout, limit.left_s)
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
                return LimitedStream(self.system.connect_tcp(address, port, left_s, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise BlockedAddress("unix sockets are not allowed")

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
    """httpx's transport with the guarded backend, for which httpx has no argument."""

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
