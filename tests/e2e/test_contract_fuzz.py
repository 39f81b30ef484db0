"""A hundred requests generated from the OpenAPI document; `python -m scripts.benchmarks contract` sends 2,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.faults import Service

fuzz = pytest.importorskip("tests.e2e.fuzz", reason="needs the development group").fuzz


@pytest.mark.filterwarnings("ignore")  # strategies and their parser warn about unusual parts of the document
def test_every_answer_conforms_to_the_document(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", workers=0)
    service.start()
    try:
        service.wait_until_ready()
        report = fuzz(service, cases=120, seed=3)
    finally:
        service.stop()

    assert report.problems == []
    assert len(report.operations) >= 25 and report.statuses[200] > 20 and report.statuses[400] > 20
