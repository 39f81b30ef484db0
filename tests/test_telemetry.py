"""Traces: one from the request through the job to its stages, across processes; none unless configured. Log formats."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.testclient import TestClient

from pipeline.api.app import create_app
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import Job, JobResult, JobState, KeyLimits
from pipeline.jobs.worker_loop import LeaseKeeper, QueueWorker, WorkerOptions
from pipeline.service import open_service
from pipeline.settings import Settings
from pipeline.telemetry import (
    LogFormat,
    StageTimer,
    configure_logging,
    current_traceparent,
    note_on_span,
    span,
    start_tracing,
)
from tests.fakes.otlp_collector import trace_receiver
from tests.test_secrets_in_logs import restored_logging

SUBMIT = "/api/v1/enterprise/3d/image_to_3d"
IMAGE = "data:image/png;base64,iVBORw0KGgo="
CALLER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_SPAN = "00f067aa0ba902b7"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    stop = start_tracing(exporter=exporter)
    yield exporter
    stop()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {one.name: one for one in exporter.get_finished_spans()}


def test_without_tracing_spans_cost_nothing_and_import_nothing() -> None:
    code = (
        "import sys; from pipeline.telemetry import span, note_on_span, current_traceparent, StageTimer\n"
        "with span('call', {'job.id': 1}) as note, StageTimer().measure('intake'): note({'a': 1}); note_on_span({})\n"
        "print(current_traceparent(), [name for name in sys.modules if name.startswith('opentelemetry')])"
    )

    said = subprocess.check_output([sys.executable, "-c", code], text=True)

    assert said.strip() == "None []"


def test_a_submit_a_job_and_its_stages_are_one_trace(spans: InMemorySpanExporter, tmp_path) -> None:
    settings = Settings(
        data_dir=tmp_path, database_url=None, submit_wait_s=0, otlp_endpoint="http://127.0.0.1:1", api_key=None
    )
    service = open_service(settings)
    key, record = make_key("caller", limits=KeyLimits())
    service.store.add_key(record)

    def work(job: Job, keeper: LeaseKeeper) -> JobResult:
        with StageTimer().measure("intake"):
            pass
        return JobResult(JobState.SUCCESS, engine="preview")

    with TestClient(create_app(settings, service=service)) as client:
        headers = {"authorization": f"Bearer {key}", "traceparent": f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"}
        body = client.post(SUBMIT, json={"image": IMAGE}, headers=headers).json()
        QueueWorker(service.store, work, WorkerOptions("w")).run_one(threading.Event())
        fetched = client.post(f"/api/v1/enterprise/3d/fetch/{body['id']}", json={"key": key}).json()
        client.get("/files/secret-token/name.glb")
    service.close()

    found = by_name(spans)
    requests = [one for one in spans.get_finished_spans() if one.kind is SpanKind.SERVER]
    submit, job_span, stage = requests[0], found["call"], found["stage intake"]
    assert submit.attributes == {
        "http.request.method": "POST",
        "http.route": SUBMIT,
        "http.response.status_code": 200,
        "job.id": body["id"],
    }
    assert job_span.attributes == {
        "job.id": body["id"],
        "job.attempt": 1,
        "job.outcome": "success",
        "job.engine": "preview",
    }
    assert format(submit.context.trace_id, "032x") == CALLER_TRACE
    assert format(submit.parent.span_id, "016x") == CALLER_SPAN
    assert job_span.parent.span_id == submit.context.span_id and stage.parent.span_id == job_span.context.span_id
    assert {one.context.trace_id for one in (job_span, stage)} == {submit.context.trace_id}
    assert requests[-1].attributes["http.route"] == "/files/{token}/{name}"
    assert "secret-token" not in "".join(one.to_json() for one in spans.get_finished_spans())
    assert "traceparent" not in body["meta"] and "traceparent" not in fetched["meta"]


def test_a_span_contains_the_type_of_an_error_and_never_its_message(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="confidential"), span("call"):
        raise ValueError("http://example.com/?token=confidential")

    (failed,) = spans.get_finished_spans()
    assert not failed.status.is_ok and failed.attributes == {"error.type": "ValueError"}
    assert "confidential" not in failed.to_json()


def test_an_invalid_traceparent_starts_a_new_trace(spans: InMemorySpanExporter) -> None:
    with span("call", parent="00-nonsense"):
        note_on_span({"job.id": 7})
        traceparent = current_traceparent()

    (recorded,) = spans.get_finished_spans()
    assert recorded.parent is None and recorded.attributes == {"job.id": 7}
    assert traceparent is not None
    assert traceparent.split("-")[1:3] == [f"{recorded.context.trace_id:032x}", f"{recorded.context.span_id:016x}"]


def test_spans_reach_the_receiver_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with trace_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        stop = start_tracing()
        with span("call", {"job.id": 7}):
            pass
        stop()

    assert Settings().is_traced
    (resource,) = receiver.resources
    described = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert receiver.paths == ["/v1/traces"] and [one.name for one in receiver.spans] == ["call"]
    assert described["service.name"] == "image-to-3d" and described["deployment.environment.name"] == "test"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("text", io.StringIO, False),
    ],
)
def test_a_terminal_gets_lines_for_people_and_everything_else_json(
    log_format: LogFormat, stream: type[io.StringIO], is_json: bool
) -> None:
    written = stream()
    with restored_logging():
        configure_logging("INFO", log_format, stream=written)
        try:
            raise ValueError("no such thing")
        except ValueError:
            structlog.get_logger().exception("job failed", stage="export")

    text = written.getvalue()
    if is_json:
        line = json.loads(text)
        assert (line["event"], line["stage"], line["level"]) == ("job failed", "export", "error")
    else:
        assert "job failed" in text and "export" in text and not text.startswith("{")
    assert "ValueError: no such thing" in text
