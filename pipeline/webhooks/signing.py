"""Webhook signatures by the Standard Webhooks scheme. Knows nothing of how a webhook is sent."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime

from pipeline.secrets import derive_keys


class WebhookSigner:
    """Signs webhooks with one secret per API key.

    The secrets are derived, not stored. While the deployment's master key is being replaced, a webhook carries one
    signature for each master key, so that receivers can change their secret at any time.

    Args:
        master_keys: the deployment's master keys, the current one first.

    Source: https://github.com/standard-webhooks/standard-webhooks, specification 1.0.0
    """

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        self._keys = derive_keys(master_keys, purpose="webhooks")

    def secret_of(self, api_key_id: str) -> str:
        """The secret with which a receiver verifies this key's webhooks: `whsec_` and base64."""
        return _secret(self._keys[0], api_key_id)

    def headers(self, *, api_key_id: str, webhook_id: str, timestamp: float, body: bytes) -> dict[str, str]:
        """The three headers of one attempt.

        Args:
            api_key_id: whose secret signs.
            webhook_id: the same for all attempts, so that a receiver can recognise a repetition.
            timestamp: when this attempt is made, seconds since 1970; receivers refuse one more than 5 minutes off.
            body: exactly what is sent, UTF-8.
        """
        from standardwebhooks import Webhook

        signed_at = datetime.fromtimestamp(int(timestamp), tz=UTC)
        signatures = [
            Webhook(_secret(key, api_key_id)).sign(webhook_id, signed_at, body.decode("utf-8")) for key in self._keys
        ]
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(timestamp)),
            "webhook-signature": " ".join(signatures),
        }


def _secret(key: bytes, api_key_id: str) -> str:
    return "whsec_" + base64.b64encode(hmac.digest(key, api_key_id.encode(), "sha256")).decode()
