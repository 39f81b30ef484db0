"""Verification of webhooks, for the receiver."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipeline.client.errors import ClientError
from pipeline.client.messages import JOB
from schemas.responses import FailedBody, SuccessBody


class InvalidWebhook(ClientError):
    """A webhook whose signature is wrong or too old, or which is none of this service's."""


def verify_webhook(body: bytes | str, headers: Mapping[str, str], *, secret: str) -> SuccessBody | FailedBody:
    """Check the signature of a webhook and return the job that it tells of.

    Args:
        body: exactly as it was received.
        headers: of the request; `webhook-id` is the same in every attempt, so act on each id once.
        secret: `whsec_…`, as `image-to-3d keys show` prints it.

    Raises:
        InvalidWebhook: answer it with 401.
    """
    from standardwebhooks import Webhook, WebhookVerificationError

    lower: dict[str, Any] = {name.lower(): value for name, value in headers.items()}
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    try:
        Webhook(secret).verify(text, lower)
        job = JOB.validate_python(json.loads(text))
    except (WebhookVerificationError, ValidationError, ValueError) as error:
        raise InvalidWebhook(str(error)) from error
    if not isinstance(job, SuccessBody | FailedBody):
        raise InvalidWebhook("the job has not ended")
    return job
