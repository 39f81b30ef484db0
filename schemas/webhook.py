"""What a webhook says when a call ends: the same bodies that fetch gives. Knows nothing of how it is sent."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from schemas.responses import FailedBody, SuccessBody

WebhookEvent = Annotated[SuccessBody | FailedBody, Field(discriminator="status")]

WEBHOOK_EVENT: TypeAdapter[SuccessBody | FailedBody] = TypeAdapter(WebhookEvent)
"""Reads and describes an event, for receivers that are written with this package."""
