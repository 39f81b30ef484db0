"""Test keys: answered at once with a fixed asset; nothing runs and nothing counts, but the webhook is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from urllib.parse import urlsplit

import pytest

from pipeline.answers import webhook_dispatcher
from pipeline.inspection import inspect
from pipeline.jobs.api_keys import is_test_key, make_key
from pipeline.jobs.model import KeyLimits, LedgerFilter
from schemas.formats import FORMATS, OUTPUT_FORMATS
from tests.api.conftest import IMAGE, Deployment
from tests.e2e.faults import Receiver

SUBMIT, FETCH = "/api/v6/3d/image_to_3d", "/api/v6/3d/fetch/{}"
NONE_LEFT = KeyLimits(queued=1, per_minute=1, per_month=1)


@pytest.fixture
def testing(deploy: Callable[..., Deployment]) -> Iterator[Deployment]:
    """A deployment whose first key is a test key."""
    deployment = deploy(allow_private_addresses=True)
    deployment.key, record = make_key("testing", limits=NONE_LEFT, is_test=True)
    deployment.service.store.add_key(record)
    yield deployment


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_a_test_key_gets_a_fixed_asset_at_once_in_the_requested_format(testing: Deployment, output_format: str) -> None:
    answer = testing.post(SUBMIT, {"image": IMAGE, "output_format": output_format, "render": True}, prefer="wait=0")

    body = answer.json()
    assert body["status"] == "success" and "test key" in body["warning"]
    assert body["files"][0]["format"] == output_format and body["files"][0]["faces"] > 100
    for entry in body["files"]:
        file = testing.client.get(entry["url"])
        assert (file.status_code, len(file.content)) == (200, entry["bytes"])
        assert file.headers["content-type"].startswith(entry["content_type"])
    if output_format == "obj":
        names = [urlsplit(url).path.rpartition("/")[2] for url in body["output"]]
        assert f"mtllib {names[1]}" in testing.client.get(body["output"][0]).text
    assert testing.post(FETCH.format(body["id"])).json() == body
    assert testing.post("/api/v1/enterprise/3d/list").json()["calls"] == [body]


def test_a_test_key_counts_nowhere_and_is_never_limited(testing: Deployment) -> None:
    for _ in range(3):
        assert testing.post(SUBMIT, {"image": IMAGE}).json()["status"] == "success"

    store = testing.service.store
    key = next(key for key in store.list_keys() if is_test_key(key))
    use = store.key_use(key.id)
    assert (use.queued, use.running, use.this_minute, use.this_month) == (0, 0, 0, 0)
    assert store.usage_rows(LedgerFilter(None)) == [] and store.timings().calls == 0
    assert store.metrics().submitted == 0 and store.claim("worker", lease_s=60) is None


def test_the_webhook_of_a_test_key_is_sent(testing: Deployment) -> None:
    with Receiver() as receiver:
        body = testing.post(SUBMIT, {"image": IMAGE, "webhook": receiver.url}).json()
        webhook_dispatcher(testing.service).send_due()

        (delivered,) = receiver.delivered[body["id"]]
    assert delivered[1]["output"] == body["output"]


def test_a_test_key_refuses_what_another_key_refuses_and_repeats_idempotently(testing: Deployment) -> None:
    assert testing.post(SUBMIT, {"image": IMAGE, "resolution": 1}).status_code == 400
    first, again = (testing.post(SUBMIT, {"image": IMAGE}, **{"idempotency-key": "one"}).json() for _ in range(2))
    assert first["id"] == again["id"]
    other = testing.post(SUBMIT, {"image": IMAGE, "seed": 3}, **{"idempotency-key": "one"})
    assert other.status_code == 400


def test_a_test_key_exports_again_and_deletes(testing: Deployment) -> None:
    first = testing.post(SUBMIT, {"image": IMAGE}).json()
    again = testing.post(f"/api/v6/3d/export/{first['id']}", {"output_format": "stl"}).json()
    assert again["status"] == "success" and again["output"][0].endswith(".stl")
    assert testing.post(f"/api/v1/enterprise/3d/delete/{first['id']}").json()["status"] == "success"
    assert testing.post(FETCH.format(first["id"])).status_code == 404


def test_only_keys_that_were_made_for_tests_are_test_keys() -> None:
    plain, record = make_key("a", limits=KeyLimits(), is_test=True)
    assert plain.startswith("i3d_test_") and is_test_key(record)
    assert not is_test_key(make_key("b", limits=KeyLimits())[1])


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_the_fixed_asset_is_as_large_as_a_job_would_make_it(output_format: str) -> None:
    content = files("pipeline.api").joinpath("sample", f"sample.{output_format}").read_bytes()
    report = inspect(content, file_type=output_format)
    longest = max(high - low for low, high in zip(report.lowest, report.highest, strict=True))
    assert longest == pytest.approx(FORMATS[output_format].default_size_m, rel=1e-3)
