"""The body of a webhook when a job ends: the same as from fetch. Knows nothing of how it is sent."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.responses import FailedBody, SuccessBody

WebhookEvent = Annotated[SuccessBody | FailedBody, Field(discriminator="status")]
"""The body of a webhook, for receivers that are written with this package: `TypeAdapter(WebhookEvent)` reads one."""
