"""One secret for each purpose, derived from the deployment's master secrets. Knows nothing of what the purposes do."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

MIN_SECRET_BYTES = 16


def derive_keys(master_keys: Sequence[bytes], *, purpose: str) -> tuple[bytes, ...]:
    """Keys of 32 bytes for one purpose; knowing one tells nothing of the master_keys or of other purposes' keys.

    Args:
        master_keys: the current secret first, then those that it replaced.
        purpose: what the keys are for; another word gives unrelated keys.

    Returns:
        One key for each master, in the same order.

    Raises:
        ValueError: there is no master, or one of them is too short to be a secret.

    Source: HKDF-Expand with one block, RFC 5869 section 2.3; the master_keys count as already extracted.
    """
    if not master_keys:
        raise ValueError("there is no master secret")
    shortest = min(len(master) for master in master_keys)
    if shortest < MIN_SECRET_BYTES:
        raise ValueError(f"a master secret has {shortest} bytes; at least {MIN_SECRET_BYTES} are needed")
    info = f"image-to-3d {purpose}".encode()
    return tuple(hmac.digest(master, info + b"\x01", "sha256") for master in master_keys)
