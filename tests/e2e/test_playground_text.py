"""The playground's second tab in a real browser: a text becomes a model, in a deployment whose engine takes texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from schemas.text import OLDER_NAMES, TextTo3DRequest
from tests.e2e.playground import NEEDS_CHROMIUM, Deployment, Visit
from tests.e2e.test_serve_command import serving

pytest.importorskip("torch")
pytest_plugins = ("tests.e2e.playground_fixtures",)

pytestmark = NEEDS_CHROMIUM
PROMPT = "a wooden chair 🪑\nwith a blanket"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running service whose default engine takes images, and a further one texts."""
    data = tmp_path_factory.mktemp("playground_text") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGE_TO_3D_ENGINES", "trellis-text")
        patch.setenv("IMAGE_TO_3D_WEIGHTS", "tiny")
        with serving(data) as (_, port, output):
            key = re.search(r"shown this once: (\S+)", "\n".join(output))
            assert key is not None
            yield Deployment(f"http://127.0.0.1:{port}/", key[1], data)


def open_text(visit: Callable[..., Visit]) -> Visit:
    here = visit()
    here.page.get_by_role("tab", name="Text").click()
    return here


def test_a_text_becomes_a_model(visit: Callable[..., Visit]) -> None:
    here = open_text(visit)
    page = here.page
    sent: list[dict[str, object]] = []
    page.on(
        "request", lambda each: each.url.endswith("/text_to_3d") and sent.append(json.loads(each.post_data or "{}"))
    )

    page.fill("#prompt", PROMPT)
    here.choose_smallest_asset()
    page.click("#more summary")
    page.fill("#option-seed", "5")
    page.fill("#option-negative_prompt", "blurry")
    for name in ("ss_sampling_steps", "slat_sampling_steps"):
        page.fill(f"#option-{name}", "3")
    page.click("#submit")
    here.expect_state("done")

    assert here.submits == []  # nothing was sent to image_to_3d
    assert sent[0] == {
        "prompt": PROMPT,
        "negative_prompt": "blurry",
        "track_id": "a wooden chair 🪑 with a blanket",
        "resolution": 64,
        "texture_size": 512,
        "seed": 5,
        "ss_sampling_steps": 3,
        "slat_sampling_steps": 3,
    }
    for code in ("curl", "python", "javascript"):
        shown = page.locator(f"#{code}").text_content() or ""
        assert "text_to_3d" in shown and "image_to_3d" not in shown and '"image"' not in shown


def test_a_missing_or_refused_text_is_told_beside_it(visit: Callable[..., Visit]) -> None:
    here = open_text(visit)
    page = here.page

    page.click("#submit")
    expect(page.locator("#prompt-problem")).to_have_text("prompt is required")
    expect(page.locator("#prompt")).to_be_focused()
    page.fill("#prompt", "x" * 1001)
    page.click("#submit")
    expect(page.locator("#prompt-problem")).to_have_text("prompt must have 1 to 1000 characters, got 1001")


def test_each_tab_has_the_fields_and_the_engines_of_its_input(visit: Callable[..., Visit]) -> None:
    page = visit().page
    fields = "(fields) => fields.map((one) => one.dataset.field)"
    engines = "(all) => all.map((one) => one.textContent)"
    expect(page.locator("#panel-image")).to_be_visible()
    expect(page.locator("#panel-text")).to_be_hidden()
    of_images = page.locator("#option-engine option").evaluate_all(engines)

    page.get_by_role("tab", name="Text").click()

    expect(page.locator("#panel-image")).to_be_hidden()
    shown = page.locator("[data-field]").evaluate_all(fields)
    assert set(shown) == TextTo3DRequest.model_fields.keys() - {"key", "prompt", *OLDER_NAMES}
    assert page.locator("#option-engine option").evaluate_all(engines) == ["trellis-text"]
    assert "preview" in of_images and not any(name.startswith("trellis-text") for name in of_images)
    expect(page.locator("#option-ss_sampling_steps")).to_have_value("25")
    page.get_by_role("tab", name="Image").click()
    expect(page.locator("#option-ss_sampling_steps")).to_have_value("12")
