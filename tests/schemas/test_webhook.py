"""The body of a webhook validates as the body that was sent."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from schemas.responses import FailedBody, SuccessBody
from schemas.webhook import WebhookEvent


@pytest.mark.parametrize(
    "body",
    [
        SuccessBody(id=1, generationTime=2.5, output=["u"], proxy_links=["u"], track_id="t", meta={"seed": 1}),
        FailedBody(id=2**31 - 1, message="no subject", track_id=5),
    ],
)
def test_an_event_is_recognised_by_its_status(body: SuccessBody | FailedBody) -> None:
    assert TypeAdapter(WebhookEvent).validate_python(body.to_json()) == body
