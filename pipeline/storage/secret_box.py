"""Encryption at rest of customers' secrets. Knows nothing of where the result is stored."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pipeline.errors import DeliveryFailed
from pipeline.secrets import derive_keys

SEPARATOR = b"\n"


class SecretBox:
    """Encrypts bytes for one owner and decrypts them; an older master key still decrypts what it encrypted.

    Args:
        master_keys: the deployment's master keys, the current one first.

    Source: Fernet (AES-128-CBC with HMAC-SHA256), https://github.com/fernet/spec
    """

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        from cryptography.fernet import Fernet, MultiFernet

        keys = derive_keys(master_keys, purpose="secrets at rest")
        fernets = [Fernet(base64.urlsafe_b64encode(key)) for key in keys]
        self._current = fernets[0]
        self._all = MultiFernet(fernets)

    def encrypt(self, content: bytes, *, owner: str) -> bytes:
        """Encrypt with the current master key; the result can be decrypted for this owner only."""
        return self._all.encrypt(owner.encode() + SEPARATOR + content)

    def decrypt(self, encrypted: bytes, *, owner: str) -> bytes:
        """Decrypt what `encrypt` returned.

        Raises:
            DeliveryFailed: no master key decrypts it, it was altered, or it belongs to another owner.
        """
        from cryptography.fernet import InvalidToken

        try:
            actual_owner, _, content = self._all.decrypt(encrypted).partition(SEPARATOR)
        except InvalidToken as error:
            raise DeliveryFailed(
                "the saved bucket cannot be decrypted with this deployment's master keys; save it again"
            ) from error
        if actual_owner != owner.encode():
            raise DeliveryFailed("the saved bucket belongs to another key")
        return content

    def is_current(self, encrypted: bytes) -> bool:
        """Whether the current master key alone decrypts this."""
        from cryptography.fernet import InvalidToken

        try:
            self._current.decrypt(encrypted)
        except InvalidToken:
            return False
        return True

    def reencrypt(self, encrypted: bytes) -> bytes:
        """The same content encrypted with the current master key, so that an older one can be removed.

        Raises:
            DeliveryFailed: no master key decrypts it.
        """
        from cryptography.fernet import InvalidToken

        try:
            return self._all.rotate(encrypted)
        except InvalidToken as error:
            raise DeliveryFailed("a saved bucket cannot be decrypted with this deployment's master keys") from error
