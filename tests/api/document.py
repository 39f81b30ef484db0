"""The contract as the application states it, and the copy of it that is kept under version control.

`python -m tests.api.document` renews the copy, and `scripts/check --fix` does so too; its difference is what callers
will notice.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from pipeline.api.app import create_app
from pipeline.service import open_service
from pipeline.settings import Settings
from tests.reference.memory_store import MemoryStore

COPY = Path(__file__).parent / "openapi.json"


@cache
def openapi_document() -> dict[str, Any]:
    """What `/openapi.json` answers, whatever the environment says."""
    with tempfile.TemporaryDirectory() as folder:
        service = open_service(Settings(data_dir=Path(folder), database_url=None), store=MemoryStore())
        try:
            return TestClient(create_app(service.settings, service=service)).get("/openapi.json").json()
        finally:
            service.close()


def without_version(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the release that it belongs to: a release alone is no change of the contract."""
    return {**document, "info": {name: text for name, text in document["info"].items() if name != "version"}}


def as_text(document: dict[str, Any]) -> str:
    """The document as it is kept: sorted, so that a difference is a change."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    stated = as_text(without_version(openapi_document()))
    if not COPY.exists() or stated != COPY.read_text(encoding="utf-8"):
        COPY.write_text(stated, encoding="utf-8")
        print(f"{COPY.name} is renewed: its difference is what callers will notice")
