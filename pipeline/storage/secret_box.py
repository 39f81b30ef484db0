"""Encryption at rest for what customers entrust to the service. Knows nothing of where the result is kept."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pipeline.errors import DeliveryFailed
from pipeline.secrets import derive_keys

SEPARATOR = b"\n"


class SecretBox:
    """Seals bytes for one owner and opens them again; a replaced secret still opens what it sealed.

    Args:
        master_keys: the deployment's secrets, the current one first.

    Source: Fernet (AES-128-CBC with HMAC-SHA256), https://github.com/fernet/spec
    """

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        from cryptography.fernet import Fernet, MultiFernet

        keys = derive_keys(master_keys, purpose="secrets at rest")
        self._fernet = MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])

    def seal(self, content: bytes, *, owner: str) -> bytes:
        """Encrypt with the current secret; the result opens for this owner alone."""
        return self._fernet.encrypt(owner.encode() + SEPARATOR + content)

    def open(self, sealed: bytes, *, owner: str) -> bytes:
        """What was sealed.

        Raises:
            DeliveryFailed: none of the secrets sealed it, it was altered, or it is another owner's.
        """
        from cryptography.fernet import InvalidToken

        try:
            sealed_for, _, content = self._fernet.decrypt(sealed).partition(SEPARATOR)
        except InvalidToken as error:
            raise DeliveryFailed(
                "the saved bucket cannot be decrypted with this deployment's secrets; save it again"
            ) from error
        if sealed_for != owner.encode():
            raise DeliveryFailed("the saved bucket belongs to another key")
        return content

    def reencrypt(self, sealed: bytes) -> bytes:
        """The same content under the current secret, so that an older one can be retired.

        Raises:
            DeliveryFailed: none of the secrets sealed it.
        """
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.rotate(sealed)
        except InvalidToken as error:
            raise DeliveryFailed("a saved bucket cannot be decrypted with this deployment's secrets") from error
