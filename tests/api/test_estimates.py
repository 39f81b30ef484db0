"""Estimates: what a submit would take and cost, with nothing recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.jobs.model import JobFilter, KeyLimits
from pipeline.settings import Settings
from tests.api.conftest import IMAGE, Deployment

ESTIMATE = "/api/v6/3d/estimate"


def test_an_estimate_states_time_and_place_and_records_nothing(deployment: Deployment) -> None:
    deployment.finish(deployment.submit()["id"])
    deployment.submit()
    jobs_before = deployment.service.store.list_jobs(JobFilter(None))

    body = deployment.post(ESTIMATE, {"image": IMAGE, "no_such_field": 1}).json()

    assert body == {
        "status": "success",
        "engine": "preview",
        "seconds": 1.25,
        "queue_position": 2,
        "queue_time": 3,
        "eta": 5,
        "price": None,
        "currency": None,
        "warning": "Ignored, because this service has no such field: no_such_field.",
    }
    assert deployment.service.store.list_jobs(JobFilter(None)) == jobs_before


def test_an_estimate_refuses_what_a_submit_refuses(deployment: Deployment) -> None:
    for fields in ({}, {"image": IMAGE, "resolution": 1}, {"image": "http://169.254.169.254/a"}):
        submitted = deployment.post("/api/v6/3d/image_to_3d", fields)
        estimated = deployment.post(ESTIMATE, fields)
        assert (estimated.status_code, estimated.json()) == (400, submitted.json())


def test_an_estimate_does_not_count_as_a_submit(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(KeyLimits(per_minute=1, per_month=1))
    for _ in range(3):
        assert deployment.post(ESTIMATE, {"image": IMAGE}).status_code == 200
    assert deployment.submit()["status"] == "processing"


def test_an_estimate_states_the_operators_price(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(prices=("preview=0.05",), price_per_second=0.001, currency="EUR")
    deployment.finish(deployment.submit()["id"])

    body = deployment.post(ESTIMATE, {"image": IMAGE}).json()

    assert (body["price"], body["currency"]) == (0.05125, "EUR")


def test_a_price_that_cannot_be_read_ends_the_start() -> None:
    with pytest.raises(ValueError, match="each price is an engine and a number"):
        Settings(prices=("preview",))
    assert Settings(prices=("trellis=0.05",)).price_of("preview", seconds=1) is None
