"""The TypeScript client of docs/examples: its types are those of the service, and it runs in node against one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.conftest import IMAGE, Endpoint
from tests.docs.typescript import (
    CLIENT,
    SCHEMA,
    NoPackages,
    client_packages,
    compile_client,
    generated_schema,
    run_tool,
)

PROGRAM = Path(__file__).with_name("typescript_client.mjs")
SCENARIOS = ("submit_to_download", "texts_and_views", "refusals", "failures", "lost_answers", "webhooks")
pytestmark = pytest.mark.xdist_group("docs_examples")


@pytest.fixture(scope="module", autouse=True)
def installed() -> Path:
    try:
        return client_packages()
    except NoPackages as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def compiled(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_client(tmp_path_factory.mktemp("typescript"))


def test_the_types_are_those_of_the_document() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == generated_schema(), "renew them: python -m tests.docs.typescript"


def test_the_client_needs_nothing_but_what_browsers_have(compiled: Path) -> None:
    project = compiled.parent / "browser.json"
    options = {"types": [], "noEmit": True}
    project.write_text(json.dumps({"extends": "./tsconfig.json", "compilerOptions": options, "files": ["client.ts"]}))

    run_tool("tsc", "--project", project)

    assert not re.search(r"^import\b|\brequire\(|\bprocess\b", (compiled / "client.js").read_text(), re.MULTILINE)


def test_the_packages_are_pinned_and_no_registry_is_named() -> None:
    manifest = (CLIENT / "package.json").read_text()

    assert re.findall(r'"(?:typescript|openapi-typescript|@types/node)": "\d+\.\d+\.\d+"', manifest)
    assert "dependencies" not in manifest.replace("devDependencies", "")
    assert not any((CLIENT / name).exists() for name in ("package-lock.json", ".npmrc", "node_modules"))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_client_runs_in_node(scenario: str, compiled: Path, endpoint: Endpoint) -> None:
    endpoint.run(str(PROGRAM), scenario, compiled / "client.js", IMAGE)


def test_every_scenario_of_the_program_is_run() -> None:
    assert set(re.findall(r"^  async (\w+)\(\) \{", PROGRAM.read_text(), re.MULTILINE)) == set(SCENARIOS)


def test_the_example_saves_the_files_of_both_jobs(compiled: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    saved = [Path(line) for line in endpoint.run(str(compiled / "example.js"), IMAGE, tmp_path / "out").splitlines()]

    assert {path.suffix for path in saved} >= {".glb", ".stl"}
    assert all(path.is_relative_to(tmp_path) and path.stat().st_size > 0 for path in saved)
