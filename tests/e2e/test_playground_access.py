"""The playground for everybody: axe's rules in each state, and what is in view on a low screen and on a phone."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.playground import NEEDS_CHROMIUM, Visit

pytest_plugins = ("tests.e2e.playground_fixtures",)
pytestmark = [NEEDS_CHROMIUM, pytest.mark.xdist_group("playground")]

AXE = "axe-core@4.14.1"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "image-to-3d-tests"
LOW, PHONE = {"width": 1280, "height": 640}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which npm fetches once."""
    kept = CACHE / f"{AXE}.js"
    if not kept.exists():
        if shutil.which("npm") is None:
            pytest.skip("needs npm")
        CACHE.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", AXE], cwd=CACHE, capture_output=True, text=True, check=False
        )
        if packed.returncode:
            pytest.skip(f"npm does not fetch {AXE}")
        archive = CACHE / packed.stdout.strip()
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as files:
            source = files.extractfile("package/axe.min.js")
            assert source is not None
            kept.write_bytes(source.read())
        archive.unlink()
    return kept.read_text(encoding="utf-8")


def findings(page: Page, axe: str) -> list[str]:
    """The serious and critical findings of axe, with the first element of each."""
    page.evaluate(axe)
    violations = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then((found) => found.violations)")
    serious = [one for one in violations if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in serious]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_of_the_page_has_a_serious_finding(
    visit: Callable[..., Visit], figure: bytes, axe: str, scheme: str
) -> None:
    here = visit(viewport={"width": 1000, "height": 500}, color_scheme=scheme)
    page = here.page
    page.click("#more summary")
    assert findings(page, axe) == []
    here.drop(("front.png", figure), ("back.png", figure))
    page.fill("#option-resolution", "1")
    page.click("#submit")
    here.expect_state("failed")
    assert findings(page, axe) == []
    page.get_by_role("button", name="Remove view 2").click()
    here.choose_smallest_asset()
    page.click("#submit")
    here.expect_state("done")
    expect(page.locator("#jobs a")).not_to_have_count(0)
    page.wait_for_selector("model-viewer")
    assert findings(page, axe) == []


def test_a_cancelled_upload_is_told_in_view_and_marks_no_field(visit: Callable[..., Visit], figure: bytes) -> None:
    here = visit(viewport=PHONE)
    page = here.page
    page.route("**/3d/image_to_3d", lambda route: None)  # never answered, so the image is still being sent
    here.drop(("figure.png", figure))
    page.click("#submit")

    page.click("#cancel")

    here.expect_state("failed")
    expect(page.locator("#failure")).to_have_text("The image was not sent, and no job was made.")
    expect(page.locator("#failure-title")).to_be_in_viewport(ratio=1)
    expect(page.locator("[aria-invalid]")).to_have_count(0)


@pytest.mark.parametrize("viewport", [LOW, PHONE], ids=["low", "phone"])
def test_key_button_and_result_are_in_view_without_scrolling(
    visit: Callable[..., Visit], figure: bytes, viewport: dict[str, int]
) -> None:
    here = visit(viewport=viewport)
    page = here.page
    for selector in ("#choose", "#key", "#submit"):
        expect(page.locator(selector)).to_be_in_viewport(ratio=1)
    here.drop(("figure.png", figure))
    page.get_by_role("radio", name=re.compile("glb")).focus()
    page.click("#submit")

    expect(page.locator("#cancel")).to_be_in_viewport(ratio=1)
    if viewport is LOW:
        expect(page.locator("#submit")).to_be_in_viewport(ratio=1)
    page.click("#cancel")
    here.expect_state("failed")
    expect(page.locator("#failure-title")).to_be_in_viewport(ratio=1)
