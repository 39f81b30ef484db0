"""The deployment's master keys, and one derived key per purpose. Knows nothing of what the purposes are.

`load_master_keys` is called once per process; everything that signs or encrypts gets its result as a value.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.private_files import make_private_folder

if TYPE_CHECKING:
    from pydantic import SecretStr

MIN_MASTER_KEY_BYTES = 16
SECRET_NAME = "secret.key"


class MasterKeySource(Protocol):
    """What `load_master_keys` needs of the settings."""

    @property
    def secret_keys(self) -> tuple[SecretStr, ...]:
        """The configured master keys, the current one first."""
        ...

    @property
    def data_dir(self) -> Path:
        """The folder in which a generated master key is kept."""
        ...


def load_master_keys(settings: MasterKeySource) -> tuple[bytes, ...]:
    """The master keys from which signing and encryption keys are derived, the current one first.

    If the settings have none, one is generated and kept in `data_dir/secret.key`, readable by its owner only;
    processes that start at the same time agree on one.
    """
    if settings.secret_keys:
        return tuple(secret.get_secret_value().encode() for secret in settings.secret_keys)
    path = settings.data_dir / SECRET_NAME
    if not path.exists():
        make_private_folder(settings.data_dir)
        draft = path.with_name(f".secret-{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)  # unlike a rename, this refuses to replace another process's key
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return (path.read_text().strip().encode(),)


def derive_keys(master_keys: Sequence[bytes], *, purpose: str) -> tuple[bytes, ...]:
    """Keys of 32 bytes for one purpose; they reveal nothing about the master keys or about other purposes' keys.

    Args:
        master_keys: the current key first, then those that it replaced.
        purpose: what the derived keys are for; another purpose gives unrelated keys.

    Returns:
        One key for each master key, in the same order.

    Raises:
        ValueError: there is no master key, or one of them is too short to be a secret.

    Source: HKDF-Expand with one block, RFC 5869 section 2.3; the master keys count as already extracted.
    """
    if not master_keys:
        raise ValueError("there is no master key")
    shortest = min(len(key) for key in master_keys)
    if shortest < MIN_MASTER_KEY_BYTES:
        raise ValueError(f"a master key has {shortest} bytes; at least {MIN_MASTER_KEY_BYTES} are needed")
    info = f"image-to-3d {purpose}".encode()
    return tuple(hmac.digest(key, info + b"\x01", "sha256") for key in master_keys)
