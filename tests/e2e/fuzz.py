"""Sends requests generated from the OpenAPI document to a real service and collects every violation of the document.

The tests send a few, `python -m scripts.benchmarks contract` 2,000. Half of the requests conform to the document and
half do not; nine in ten carry a valid key, so that they pass authentication.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.jobs.model import JobResult, JobState, NewJob
from tests.e2e.faults import KEY, Service, opened

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LONGEST_ANSWER_S = 1.0
MAY_BE_UNREADY = ("GET /ready",)
"""Answered with the documented 503 while no worker is alive, as here."""
WAITS_FOR_OTHERS = ("POST /api/v1/enterprise/update_s3",)
"""Answered only after the customer's own endpoint has answered, so its time is not measured."""
KEYLESS_SHARE, KNOWN_ID_SHARE = 0.1, 0.5


@dataclass
class Report:
    """What was sent and answered.

    Attributes:
        problems: each answer that violates the document, in words.
        slowest: seconds of the slowest answer, and its request.
    """

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")


def record_jobs(service: Service) -> dict[str, int]:
    """Record a queued, a failed and a succeeded job for the key; return their ids by state."""
    ids = {}
    with opened(service) as store:
        (key,) = store.list_keys()
        for state in (JobState.FAILED, JobState.SUCCESS, JobState.QUEUED):
            new = NewJob(api_key_id=key.id, file_prefix=f"fuzz-{state}", request=b"{}", request_sha256="0" * 64)
            job = store.submit(new).job
            ids[str(state)] = job.id
            if state.is_final:
                claimed = store.claim("fuzz", lease_s=60, job_id=job.id)
                assert claimed is not None
                store.complete(
                    claimed.lease, JobResult(state, message="" if state is JobState.SUCCESS else "It failed.")
                )
    return ids


def fuzz(service: Service, *, cases: int, seed: int) -> Report:
    """Send `cases` requests, spread over all operations, and check each answer."""
    report, rng = Report(), random.Random(seed)
    ids = record_jobs(service)
    document = requests.get(f"{service.address}/openapi.json", timeout=30).json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    with requests.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # strategies that filter many examples warn
        while report.cases < cases:  # operations without any input have only one request each
            each = -(-(cases - report.cases) // (len(operations) * len(modes)))
            for operation in operations:
                for mode in modes:
                    _fuzz_operation(operation, mode, service, session, report, rng, ids=ids, cases=each)
    return report


def _fuzz_operation(
    operation: Any,
    mode: GenerationMode,
    service: Service,
    session: requests.Session,
    report: Report,
    rng: random.Random,
    *,
    ids: dict[str, int],
    cases: int,
) -> None:
    @hypothesis.seed(rng.randrange(2**32))
    @hypothesis.settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        _prepare(case, rng, ids)
        answer = case.call(base_url=service.address, session=session, timeout=60)
        _judge(case, answer, report)

    try:
        send()
    except hypothesis.errors.Unsatisfiable:
        return  # a request without parameters and body cannot be invalid


def _prepare(case: Any, rng: random.Random, ids: dict[str, int]) -> None:
    """Authenticate most requests, address existing jobs often, and ask not to wait."""
    case.headers["prefer"] = "wait=0"
    if rng.random() >= KEYLESS_SHARE:
        if isinstance(case.body, dict) and rng.random() < 0.5:
            case.body["key"] = KEY
        else:
            case.headers["key"] = KEY
            if isinstance(case.body, dict):
                case.body.pop("key", None)
    is_stream = case.operation.path.endswith("/events/{call_id}")  # the stream of a queued job would not end
    known = [ids["success"], ids["failed"]] if is_stream else [*ids.values()]
    if "call_id" in (case.path_parameters or {}) and rng.random() < KNOWN_ID_SHARE:
        case.path_parameters["call_id"] = str(rng.choice(known))


def _judge(case: Any, answer: Any, report: Report) -> None:
    label = case.operation.label
    report.cases += 1
    report.statuses[answer.status_code] += 1
    report.operations[label] += 1
    if label not in WAITS_FOR_OTHERS:
        report.slowest = max(report.slowest, (answer.elapsed, f"{label} {str(case.body)[:200]}"))
    try:
        checks = [check for check in CHECKS if label not in MAY_BE_UNREADY or check is not not_a_server_error]
        case.validate_response(answer, checks=checks)
    except (Failure, FailureGroup) as failure:
        report.problems.append(f"{label}: {_in_words(failure)}; body {str(case.body)[:300]}")


def _in_words(failure: BaseException) -> str:
    failures = getattr(failure, "exceptions", None) or [failure]
    return "; ".join(f"{type(one).__name__}: {one}" for one in failures)[:2000]
