"""Webhook signatures by the Standard Webhooks scheme. Knows nothing of how a webhook is sent."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime

from pipeline.jobs.model import ApiKey
from pipeline.secrets import derive_keys

ROTATION_GRACE_S = 24 * 3600.0
"""How long the webhook secret before a rotation still signs, beside the new one."""


class WebhookSigner:
    """Signs webhooks with one secret per API key.

    The secrets are derived, not stored. While the deployment's master key is being replaced, or after a key's secret
    was rotated, a webhook carries one signature for each valid secret, so that receivers can change at any time.

    Args:
        master_keys: the deployment's master keys, the current one first.

    Source: https://github.com/standard-webhooks/standard-webhooks, specification 1.0.0
    """

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        self._keys = derive_keys(master_keys, purpose="webhooks")

    def secret_of(self, key: ApiKey) -> str:
        """The secret with which a receiver verifies this key's webhooks: `whsec_` and base64."""
        return _secret(self._keys[0], key.id, key.secret_number)

    def headers(self, key: ApiKey, *, webhook_id: str, timestamp: float, body: bytes) -> dict[str, str]:
        """The three headers of one attempt.

        Args:
            key: whose secret signs; for `ROTATION_GRACE_S` after a rotation the secret before it signs as well.
            webhook_id: the same for all attempts, so that a receiver can recognise a repetition.
            timestamp: when this attempt is made, seconds since 1970; receivers refuse one more than 5 minutes off.
            body: exactly what is sent, UTF-8.
        """
        from standardwebhooks import Webhook

        signed_at = datetime.fromtimestamp(int(timestamp), tz=UTC)
        signatures = [
            Webhook(_secret(derived, key.id, number)).sign(webhook_id, signed_at, body.decode("utf-8"))
            for number in _valid_numbers(key, now=timestamp)
            for derived in self._keys
        ]
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(timestamp)),
            "webhook-signature": " ".join(signatures),
        }


def _valid_numbers(key: ApiKey, *, now: float) -> list[int]:
    """The numbers of the secrets that sign now, the current one first."""
    is_in_grace = key.secret_rotated_at is not None and now < key.secret_rotated_at + ROTATION_GRACE_S
    return [key.secret_number, key.secret_number - 1] if is_in_grace else [key.secret_number]


def _secret(derived: bytes, api_key_id: str, number: int) -> str:
    """The secret of a key; number 0 is the first one, as before secrets could be rotated."""
    message = api_key_id if number == 0 else f"{api_key_id}/{number}"
    return "whsec_" + base64.b64encode(hmac.digest(derived, message.encode(), "sha256")).decode()
