"""Origins of web pages, as an operator writes them and as browsers send them. Source: RFC 6454."""

from __future__ import annotations

import re

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>(?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}|\*))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def read_origin(text: str) -> str | None:
    """An origin in the spelling of browsers: small letters, no path, no default port; None where the text is none.

    `*` stands for all, `null` for pages of files and sandboxes. A host may begin with `*.`, for the domains below one;
    a port may be `*`.
    """
    origin = text.strip().lower().rstrip("/")
    if origin in ("*", "null"):
        return origin
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return None
    port = found["port"]
    has_port = port is not None and port != _DEFAULT_PORTS.get(found["scheme"])
    return f"{found['scheme']}://{found['host']}" + (f":{port}" if has_port else "")


def origin_pattern(origin: str) -> str:
    """The regular expression of the origins that one with asterisks admits.

    Args:
        origin: as `read_origin` returns it.
    """
    pattern = re.escape(origin.removesuffix(":*")).replace(r"\*\.", r"(?:[a-z0-9_-]+\.)+")
    return pattern + (r"(?::\d+)?" if origin.endswith(":*") else "")
