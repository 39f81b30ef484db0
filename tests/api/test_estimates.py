"""Estimates: what a submit would take and cost, with nothing recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.jobs.model import JobFilter, JobResult, JobState, KeyLimits
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


def test_an_estimate_is_of_the_engine_that_would_run(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="preview", engines=("trellis",))

    def seconds_of(engine: str) -> float:
        return deployment.post(ESTIMATE, {"image": IMAGE, "engine": engine}).json()["seconds"]

    def run(engine: str, generate_s: float) -> None:
        store, job_id = deployment.service.store, deployment.submit(engine=engine)["id"]
        job = store.claim("w1", lease_s=60, job_id=job_id)
        assert job is not None
        stages = {"intake": 1.0, "generate": generate_s}
        store.complete(job.lease, JobResult(JobState.SUCCESS, stage_seconds=stages, engine=engine))

    run("preview", 0.5)
    assert (seconds_of("preview"), seconds_of("trellis")) == (1.5, 1.5)  # of recent jobs, before its first
    run("trellis", 60.0)
    run("trellis", 40.0)
    assert (seconds_of("preview"), seconds_of("trellis")) == (1.5, 51.0)


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
