"""The OpenAPI document of the application, and the copy of it that is under version control.

`python -m tests.api.document` and `scripts/check --fix` update the copy; its diff shows what callers will notice.
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
    """The response of `/openapi.json`, independent of the environment."""
    with tempfile.TemporaryDirectory() as folder:
        service = open_service(Settings(data_dir=Path(folder), database_url=None), store=MemoryStore())
        try:
            return TestClient(create_app(service.settings, service=service)).get("/openapi.json").json()
        finally:
            service.close()


def without_version(document: dict[str, Any]) -> dict[str, Any]:
    """The document without its version: a release alone does not change the contract."""
    return {**document, "info": {name: text for name, text in document["info"].items() if name != "version"}}


def as_text(document: dict[str, Any]) -> str:
    """The document as the copy stores it: sorted, so that every difference is a change."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    stated = as_text(without_version(openapi_document()))
    if not COPY.exists() or stated != COPY.read_text(encoding="utf-8"):
        COPY.write_text(stated, encoding="utf-8")
        print(f"{COPY.name} is updated: its diff shows what callers will notice")
