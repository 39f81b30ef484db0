"""The pages in a real browser, with a real service and a real model on the canvas."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from playwright.sync_api import Page, expect

from schemas.request import ImageTo3DRequest
from tests.api.document import openapi_document
from tests.e2e.playground import JOB_WAIT_MS, NEEDS_CHROMIUM, Deployment, Visit, count_red, pixels_of, wait_until
from tests.fakes.images import draw_figure, encode

pytest_plugins = ("tests.e2e.playground_fixtures",)
pytestmark = [NEEDS_CHROMIUM, pytest.mark.xdist_group("playground")]


def luminance(css_colour: str) -> float:
    """Relative luminance of an opaque `rgb(…)`. Source: WCAG 2.2, definition of relative luminance."""
    channels = np.array([int(part) for part in re.findall(r"\d+", css_colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_a_dropped_image_becomes_a_model_that_turns_and_can_be_downloaded(
    visit: Callable[..., Visit], figure: bytes, tmp_path: Path
) -> None:
    here = visit()
    page = here.page
    here.drop(("figure.png", figure))
    here.choose_smallest_asset()
    page.check("#option-render")
    page.click("#submit")
    here.expect_state("done")

    front = here.canvas()
    page.locator("model-viewer").evaluate("(viewer) => viewer.shadowRoot.querySelector('.userInput').focus()")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    wait_until(lambda: (np.abs(pixels_of(page.locator("model-viewer")).astype(int) - front) > 32).mean() > 0.005)
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download model, textured, GLB").click()
    coming.value.save_as(tmp_path / "figure.glb")
    page.get_by_role("tab", name="Turntable").click()
    film = page.locator("video")
    wait_until(lambda: film.evaluate("(film) => film.videoWidth") > 0)
    page.get_by_role("tab", name="Thumbnail").click()
    thumbnail = page.get_by_alt_text("Thumbnail of the model")
    wait_until(lambda: thumbnail.evaluate("(image) => image.naturalWidth") > 0)

    assert count_red(front) > 0.005 * front.shape[0] * front.shape[1]
    mesh = trimesh.load_mesh(tmp_path / "figure.glb")
    assert len(mesh.faces) > 100 and mesh.visual.material.baseColorTexture is not None
    assert re.search(r"[1-9]\d* kB", page.locator("#files").inner_text())
    expect(page.locator("#said")).to_have_text(re.compile(r"^Done in [\d.]+ seconds\.$"))


def test_the_copied_requests_work_unchanged(visit: Callable[..., Visit], figure: bytes, tmp_path: Path) -> None:
    here = visit()
    page = here.page
    name = "the figure's $HOME `x`.png"
    (tmp_path / name).write_bytes(figure)
    here.drop((name, figure))
    here.choose_smallest_asset()
    page.click("#more summary")
    page.fill("#option-track_id", 'a "mark" worth $5 \\ `now`')
    page.click("#submit")
    here.expect_state("done")

    page.click("#copy")
    curl = page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("tab", name="Python").click()
    page.click("#copy")
    python = page.evaluate("navigator.clipboard.readText()")
    page.get_by_role("tab", name="JavaScript").click()
    page.click("#copy")
    (tmp_path / "job.mjs").write_text(page.evaluate("navigator.clipboard.readText()"))
    answer = json.loads(subprocess.check_output(["bash", "-c", curl], cwd=tmp_path, text=True))
    saved = subprocess.check_output([sys.executable, "-c", python], cwd=tmp_path, text=True).split("\n")

    assert (tmp_path / "the figure_s _HOME _x_.glb").read_bytes()[:4] == b"glTF"  # saved by curl
    if shutil.which("node") is not None:
        saved_by_node = subprocess.check_output(["node", "job.mjs"], cwd=tmp_path, text=True).split("\n")
        assert (tmp_path / saved_by_node[0]).read_bytes()[:4] == b"glTF"
    assert answer["status"] == "success"
    assert answer["track_id"] == 'a "mark" worth $5 \\ `now`' and answer["meta"]["resolution"] == 64
    assert (tmp_path / saved[0]).read_bytes()[:4] == b"glTF"
    assert here.key in curl and here.key in python and here.key not in page.content()


def test_the_keyboard_alone_is_enough(visit: Callable[..., Visit], figure: bytes, tmp_path: Path) -> None:
    here = visit(has_key=False)
    page = here.page
    (tmp_path / "figure.png").write_bytes(figure)

    def tab_to(target: str) -> list[str]:
        passed: list[str] = []
        for _ in range(60):
            page.keyboard.press("Tab")
            passed.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
            if passed[-1] == target:
                return passed
        raise AssertionError(f"{target} is not reached: {passed}")

    # Listen for file choosers from here on: a listener that is added at the key press may be too late.
    page.on("filechooser", lambda _: None)
    passed = tab_to("choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "figure.png")
    expect(page.locator("#views li")).to_have_count(1)
    passed += tab_to("output_format")
    passed += tab_to("option-resolution")
    page.keyboard.press("Control+A")
    page.keyboard.type("74")
    page.keyboard.press("PageDown")
    passed += tab_to("key")
    page.keyboard.type(here.key)
    passed += tab_to("submit")
    page.keyboard.press("Enter")
    here.expect_state("done")

    assert passed.index("choose") < passed.index("output_format") < passed.index("key") < passed.index("submit")
    assert here.submits[0]["resolution"] == 64
    assert page.evaluate("[localStorage.length, Object.values(sessionStorage)]") == [0, [here.key]]
    page.reload()
    assert page.input_value("#key") == here.key


def test_several_images_are_sent_as_views_in_the_order_shown(visit: Callable[..., Visit], figure: bytes) -> None:
    here = visit()
    page = here.page
    back = encode(draw_figure(256)[:, ::-1])
    here.drop(("back.png", back), ("front.png", figure))
    here.choose_smallest_asset()
    page.get_by_role("button", name="Move earlier view 2").click()
    page.click("#more summary")

    expect(page.get_by_role("switch", name="Multi image")).to_be_checked()
    page.click("#submit")
    here.expect_state("done")

    (sent,) = here.submits
    assert sent["multi_image"] is True
    assert [base64.b64decode(uri.split(",")[1]) for uri in sent["image"]] == [figure, back]
    assert count_red(here.canvas()) > 0


def test_a_wrong_key_is_reported_beside_the_key(visit: Callable[..., Visit], figure: bytes) -> None:
    here = visit(has_key=False)
    page = here.page
    page.fill("#key", "wrong")
    here.drop(("figure.png", figure))
    page.click("#submit")
    here.expect_state("failed")

    expect(page.locator("#key-problem")).to_have_text("Invalid API key")
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#key")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#said")).to_contain_text("Invalid API key")


def test_a_file_that_is_not_an_image_is_reported_beside_the_images(visit: Callable[..., Visit]) -> None:
    here = visit()
    page = here.page
    here.drop(("notes.png", b"not an image"))
    page.click("#submit")
    here.expect_state("failed")

    expect(page.locator("#image-problem")).to_contain_text("not a readable image")
    assert page.locator("#image-problem").inner_text() == page.locator("#failure").inner_text()
    page.get_by_role("button", name="Remove the image").click()
    page.click("#submit")
    expect(page.locator("#image-problem")).to_have_text("image is required")


def test_a_refused_option_is_reported_beside_it_with_the_message_of_the_api(
    visit: Callable[..., Visit], figure: bytes
) -> None:
    here = visit()
    page = here.page
    here.drop(("figure.png", figure))
    page.click("#more summary")
    page.fill("#option-mesh_simplify", "0.5")
    page.click("#more summary")
    page.click("#submit")

    problem = page.locator("[data-field=mesh_simplify] .problem")
    expect(problem).to_have_text("mesh_simplify must be between 0.9 and 0.98, got 0.5")
    expect(problem).to_be_visible()
    expect(page.locator("#option-mesh_simplify")).to_be_focused()


def test_every_field_of_the_contract_has_a_control_with_a_name(visit: Callable[..., Visit]) -> None:
    page = visit().page
    page.click("#more summary")
    shown = page.locator("[data-field]").evaluate_all("(fields) => fields.map((one) => one.dataset.field)")

    assert set(shown) == ImageTo3DRequest.model_fields.keys() - {"key", "image"}
    for control in page.locator("main :is(input, select, button):visible:not([aria-hidden=true])").all():
        label = control.evaluate(
            "(one) => one.ariaLabel || [...(one.labels ?? [])].map((label) => label.innerText).join() || one.innerText"
        )
        assert label.strip(), control.evaluate("(one) => one.outerHTML")


@pytest.fixture
def reference(visit: Callable[..., Visit]) -> Visit:
    """The reference in the dark colour scheme, which Swagger UI's own style sheet does not cover."""
    return visit(path="docs", shows=".opblock", has_key=False, color_scheme="dark")


def enter_key(here: Visit, scheme: str) -> None:
    """Enter the key in the reference, for one security scheme."""
    page = here.page
    page.locator(".scheme-container button.authorize").click()
    form = page.locator(".auth-container", has=page.get_by_role("heading", name=scheme))
    form.get_by_role("textbox").fill(here.key)
    form.get_by_role("button", name="Apply credentials").click()
    form.get_by_role("button", name="Close").click()


def try_out(page: Page, path: str) -> dict[str, Any]:
    """The response of an operation to the request that the reference offers."""
    operation = page.locator(".opblock", has=page.locator(f'[data-path="{path}"]'))
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response")
    expect(answer.locator(".response-col_status")).to_have_text(re.compile("^200"), timeout=JOB_WAIT_MS)
    return json.loads(answer.locator(".response-col_description pre").first.inner_text())


def test_the_reference_shows_every_operation_and_requests_no_other_host(reference: Visit) -> None:
    page = reference.page
    document = openapi_document()
    paths = {**document["paths"], **document["webhooks"]}
    operations = [f"{method} {path}" for path, ways in paths.items() for method in ways]
    shown = page.locator(".opblock-summary").evaluate_all(
        "(all) => all.map((one) => one.querySelector('.opblock-summary-method').innerText.toLowerCase() + ' ' +"
        " one.querySelector('[data-path]').dataset.path)"
    )

    assert sorted(shown) == sorted(operations)
    expect(page.locator(".errors-wrapper")).to_have_count(0)
    assert "/docs/swagger-ui-bundle.js" in " ".join(
        reference.urls
    )  # the fixture asserts that no other host was requested


def test_the_request_that_the_reference_offers_generates_a_model(reference: Visit, service: Deployment) -> None:
    page = reference.page
    enter_key(reference, "key")

    job_id = try_out(page, "/api/v6/3d/image_to_3d")["id"]

    def fetch() -> dict[str, Any]:
        return page.request.post(f"{service.address}api/v6/3d/fetch/{job_id}", headers={"key": reference.key}).json()

    wait_until(lambda: fetch()["status"] != "processing")
    assert fetch()["status"] == "success"
    label = page.locator(".examples-select__section-label").first.evaluate("(one) => getComputedStyle(one).color")
    assert luminance(label) > 0.5


def test_the_reference_accepts_the_key_as_a_bearer_token_too(reference: Visit) -> None:
    enter_key(reference, "bearer")

    assert try_out(reference.page, "/api/v1/enterprise/3d/system_details")["status"] == "ok"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_a_phones_width_pages_scroll_only_down_and_texts_have_contrast(
    visit: Callable[..., Visit], figure: bytes, scheme: str
) -> None:
    here = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_key=False)
    page = here.page
    here.drop(*[(f"{'a-long-name-' * 6}{number}.png", figure) for number in range(3)])
    page.click("#more summary")
    page.click("#submit")
    here.expect_state("failed")

    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ground = luminance(page.evaluate("getComputedStyle(document.querySelector('#job')).backgroundColor"))
    assert (ground < 0.05) == (scheme == "dark")
    for selector in ("h1", "h2", "small", ".problem:not(:empty)", "#sample", ".api-name", ".segments span"):
        ink = luminance(page.evaluate("(one) => getComputedStyle(document.querySelector(one)).color", selector))
        contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert contrast >= 4.5, selector  # WCAG 2.2, 1.4.3 for text of normal size
