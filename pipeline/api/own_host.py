"""Which `Host` headers name this service itself. A browser that was led here by DNS rebinding sends another one.

Where `PUBLIC_URL` is set, links begin with it and no `Host` is believed. Where it is not, a link begins with the
request's `Host` only if that is this machine: a loopback name, an address that is private or that the connection came
in by, the machine's own name, or the `HOST` of the settings.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import ip_address

from fastapi import Request

from pipeline.net.addresses import is_private
from pipeline.settings import Settings

FORWARDED = (
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-host",
    "x-envoy-external-address",
    "true-client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "cf-connecting-ip",
    "cf-ray",
    "cdn-loop",
)
"""Headers that proxies add, beside every one that begins with `x-forwarded`."""


def is_forwarded(request: Request) -> bool:
    """Whether a proxy has passed on a request, as far as it says so; nginx' HTTP/1.0 says so too."""
    return request.scope.get("http_version") == "1.0" or any(
        name in FORWARDED or name.startswith("x-forwarded") for name in request.headers
    )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine to itself, as a name or as an address."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def is_own_host(request: Request, settings: Settings) -> bool:
    """Whether the request's `Host` names this machine."""
    host = request.url.hostname or ""
    if is_loopback(host) or host.lower() in (settings.host.lower(), socket.gethostname().lower()):
        return True
    arrived_at = request.scope.get("server") or ("", None)
    with suppress(ValueError):
        return is_private(ip_address(host)) or host == arrived_at[0]
    return False
