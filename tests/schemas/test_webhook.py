"""A webhook's event reads back as the body that it was."""

from __future__ import annotations

import pytest

from schemas.responses import FailedBody, SuccessBody
from schemas.webhook import WEBHOOK_EVENT


@pytest.mark.parametrize(
    "body",
    [
        SuccessBody(id=1, generationTime=2.5, output=["u"], proxy_links=["u"], track_id="t", meta={"seed": 1}),
        FailedBody(id=2**31 - 1, message="no subject", track_id=5),
    ],
)
def test_an_event_is_told_by_its_status(body: SuccessBody | FailedBody) -> None:
    assert WEBHOOK_EVENT.validate_python(body.to_json()) == body
