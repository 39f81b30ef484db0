"""Signed, expiring links to the files of one job. Knows nothing of file systems and HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence

from pipeline.errors import NotFound
from pipeline.secrets import derive_keys

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)
"""Names of files and of their folders: no separator, no leading dot, no character that a URL must escape."""

_TOKEN = re.compile(r"([0-9a-f]{8})~([0-9a-f]{1,12})~([A-Za-z0-9][A-Za-z0-9._-]{0,199})~([A-Za-z0-9_-]{43})", re.ASCII)


class LinkSigner:
    """Creates and checks the tokens of `GET /files/{token}/{name}`.

    A token reads `<key id>~<expiry, hexadecimal seconds since 1970>~<file_prefix>~<HMAC-SHA256, base64url>`. It opens
    every file of its job, so that an OBJ's relative references resolve, and no file of another job.

    Args:
        master_keys: the deployment's master keys, the current one first; links signed with an older one stay valid.
    """

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        keys = derive_keys(master_keys, purpose="file links")
        self._current_id = _key_id(keys[0])
        self._keys = {_key_id(key): key for key in reversed(keys)}

    def token(self, file_prefix: str, *, expires_at: float) -> str:
        """The token for the files of one job, valid until `expires_at` (whole seconds since 1970, rounded down).

        Raises:
            ValueError: the prefix is not a safe name.
        """
        if not SAFE_NAME.fullmatch(file_prefix):
            raise ValueError(f"{file_prefix!r} cannot name a folder of files")
        signed = f"{self._current_id}~{int(expires_at):x}~{file_prefix}"
        return f"{signed}~{_signature(self._keys[self._current_id], signed)}"

    def check(self, token: str, *, now: float) -> str:
        """The file prefix that a token opens.

        Raises:
            NotFound: it was not signed here, was altered, or has expired.
        """
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise NotFound("there is no such file")
        key_id, expires, file_prefix, signature = parts.groups()
        key = self._keys.get(key_id)
        expected = _signature(key or b"", token.removesuffix(f"~{signature}"))
        if not hmac.compare_digest(signature, expected) or key is None:
            raise NotFound("there is no such file")
        if now >= int(expires, 16):
            raise NotFound("this link has expired")
        return file_prefix


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"key id" + key).hexdigest()[:8]


def _signature(key: bytes, signed: str) -> str:
    return base64.urlsafe_b64encode(hmac.digest(key, signed.encode(), "sha256")).decode().rstrip("=")
