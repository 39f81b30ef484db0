"""Jobs in the playground: addresses, history, links, files made afterwards, cancelling, refusals, lost models."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from playwright.sync_api import Page, expect

from pipeline.engines.registry import ENGINES
from tests.e2e.playground import JOB_WAIT_MS, NEEDS_CHROMIUM, TINY, Deployment, Visit, count_red
from tests.fakes.images import encode

pytest_plugins = ("tests.e2e.playground_fixtures",)
pytestmark = [NEEDS_CHROMIUM, pytest.mark.xdist_group("playground")]

SLOW_BYTES_PER_S = 100_000
PASTE = """(text) => {
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", text);
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""


def make(here: Visit, figure: bytes, *, name: str = "robot.png", output_format: str = "glb") -> int:
    """Make a model on the page; returns the job's id."""
    here.drop((name, figure))
    here.choose_smallest_asset()
    here.page.locator(f"input[name=output_format][value={output_format}]").check(force=True)
    here.page.click("#submit")
    here.expect_state("done")
    return job_of(here.page)


def job_of(page: Page) -> int:
    found = re.search(r"#job/(\d+)$", page.url)
    assert found is not None, page.url
    return int(found[1])


def noise(width: int, height: int) -> bytes:
    """A JPEG that cannot be compressed well."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def post(deployment: Deployment, page: Page, path: str) -> dict[str, Any]:
    return page.request.post(f"{deployment.address}{path}", headers={"key": deployment.key}).json()


def test_a_job_has_an_address_a_history_and_a_link_that_needs_no_key(
    visit: Callable[..., Visit], service: Deployment, figure: bytes, tmp_path: Path
) -> None:
    here = visit(viewport=TINY)
    page = here.page
    job_id = make(here, figure)
    expect(page.locator("#jobs a[aria-current]")).to_have_attribute("href", f"#job/{job_id}")
    expect(page.locator("#draft")).to_contain_text("This is a draft")
    expect(page.locator("#draft")).to_be_visible()
    assert "This is a draft" not in page.locator("#warning").inner_text()
    assert page.locator("model-viewer").get_attribute("ar-modes") == "webxr scene-viewer quick-look"
    page.click("#share")
    link = page.evaluate("navigator.clipboard.readText()")
    page.reload()
    here.expect_state("done")
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download model, textured, GLB").click()
    assert coming.value.suggested_filename == "robot.glb"
    page.go_back()
    here.expect_state("empty")
    page.locator(f"#jobs a[href='#job/{job_id}']").click()
    here.expect_state("done")

    visitor = visit(viewport=TINY, has_key=False, path=link.removeprefix(service.address))
    visitor.expect_state("done")
    expect(visitor.page.locator("#panels")).to_be_in_viewport()
    assert count_red(visitor.canvas()) > 0
    assert service.key not in link and visitor.page.input_value("#key") == ""
    with visitor.page.expect_download() as coming:
        visitor.page.get_by_role("link", name="Download model").click()
    assert coming.value.suggested_filename == "robot.glb"
    coming.value.save_as(tmp_path / "robot.glb")
    assert len(trimesh.load_mesh(tmp_path / "robot.glb").faces) > 100


def test_an_stl_has_a_model_to_look_at_and_other_files_are_made_afterwards(
    visit: Callable[..., Visit], figure: bytes
) -> None:
    here = visit(viewport=TINY)
    page = here.page
    job_id = make(here, figure, output_format="stl")
    assert count_red(here.canvas()) > 0
    assert len(here.submits) == 1

    page.select_option("#again-format", "obj")
    page.fill("#again-faces", "150")
    page.click("#again-go")
    expect(page.locator("#files .kind").first).to_have_text("obj", timeout=JOB_WAIT_MS)
    expect(page.locator("#again-go")).to_have_text("Make these files")
    names = page.locator("#files a").evaluate_all("(links) => links.map((link) => link.download)")

    assert job_of(page) != job_id and names[0] == "robot.obj"
    assert len(here.submits) == 1  # the engine ran once
    # An OBJ names its material, so that keeps its name.
    assert [name for name in names if name.endswith(".mtl")] != ["robot.mtl"]
    expect(page.locator("#facts")).to_contain_text(re.compile(r"Faces\s*1[0-5]\d(?!\d)"))


@pytest.mark.parametrize(("compression", "texture"), [("quantize", "jpeg"), ("meshopt", "webp"), ("draco", "png")])
def test_a_small_glb_can_be_looked_at(
    visit: Callable[..., Visit], figure: bytes, compression: str, texture: str
) -> None:
    here = visit(viewport=TINY)
    for field, word in (("compression", compression), ("texture_format", texture)):
        here.page.locator(f"input[name={field}][value={word}]").evaluate("(radio) => radio.click()")
    make(here, figure)

    assert (here.submits[0]["compression"], here.submits[0].get("texture_format", "png")) == (compression, texture)
    assert count_red(here.canvas()) > 0
    assert here.browser_errors == []
    # The viewer has no decoder of Draco: the page had another GLB made for it.
    assert len([url for url in here.urls if "/export/" in url]) == (compression == "draco")


def test_sending_shows_its_progress_and_can_be_cancelled(
    visit: Callable[..., Visit], service: Deployment, figure: bytes
) -> None:
    here = visit(viewport=TINY)
    page = here.page
    job_id = make(here, figure)
    here.drop(("noise.jpg", noise(1000, 1000)))
    page.get_by_role("button", name="Remove view 1").click()
    network = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": SLOW_BYTES_PER_S}
    network.send("Network.emulateNetworkConditions", slow)
    page.click("#submit")
    expect(page.locator("#message")).to_have_text(re.compile(r"Sending the image: \d+ kB of [\d.]+ MB"))
    page.click("#cancel")

    expect(page.locator("#notice-title")).to_have_text("Cancelled")
    here.expect_state("done")  # the first result is still there
    assert job_of(page) == job_id
    assert post(service, page, "api/v1/enterprise/3d/list")["calls"][0]["id"] == job_id


def test_a_running_job_is_followed_again_after_a_reload_and_cancelled(
    visit: Callable[..., Visit], service: Deployment, figure: bytes
) -> None:
    here = visit(viewport=TINY)
    page = here.page
    here.drop(("slow.png", figure))
    page.fill("#option-resolution", "512")
    page.check("#option-render")
    page.click("#submit")
    page.wait_for_url("**/#job/*")
    job_id = job_of(page)
    page.reload()
    here.expect_state("running")
    page.click("#cancel")
    here.expect_state("failed")

    expect(page.locator("#failure-title")).to_have_text("Cancelled")
    assert post(service, page, f"api/v6/3d/fetch/{job_id}")["error_code"] == "cancelled"
    expect(page.locator(f"#jobs a[href='#job/{job_id}']")).to_contain_text("cancelled")


def test_a_refused_submit_leaves_the_result_and_counts_down(
    visit: Callable[..., Visit], service: Deployment, figure: bytes
) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "keys", "create", "slow", "--per-minute", "1"]
    created = subprocess.check_output([*command, "--data", str(service.data)], text=True)
    key = re.search(r"\bi3d_\S+", created)
    assert key is not None
    here = visit(viewport=TINY, has_key=False)
    page = here.page
    page.fill("#key", key[0])
    # A key's minute is one of the clock: both submits must fall into one.
    if (left_s := 60 - time.time() % 60) < 40:
        time.sleep(left_s)
    job_id = make(here, figure)
    page.click("#submit")

    expect(page.locator("#notice")).to_contain_text("Rate limit exceeded")
    expect(page.locator("#notice-hint")).to_have_text(re.compile(r"^You can send it again in \d+ s\.$"))
    first = page.locator("#notice-hint").inner_text()
    expect(page.locator("#notice-hint")).not_to_have_text(first)  # it counts
    here.expect_state("done")
    assert job_of(page) == job_id and page.locator("model-viewer").is_visible()
    page.fill("#option-resolution", "1")
    page.click("#submit")
    expect(page.locator("[data-field=resolution] .problem")).to_contain_text("resolution must be between")


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/hook?secret=1", "http://127.1/hook", "http://user:pass@[::1]:9/", "HTTP://LocalHost/hook"],
)
def test_a_webhook_to_a_private_address_is_told_beside_the_webhook(
    visit: Callable[..., Visit], figure: bytes, address: str
) -> None:
    here = visit(viewport=TINY)
    page = here.page
    here.drop(("figure.png", figure))
    page.click("#more summary")
    page.fill("#option-webhook", address)
    page.click("#more summary")
    page.click("#submit")
    here.expect_state("failed")

    expect(page.locator("[data-field=webhook] .problem")).to_have_text(
        re.compile(r"^[\w.:]+ leads to an address that is not public$")
    )
    expect(page.locator("[data-field=webhook] .problem")).to_be_visible()
    expect(page.locator("#option-webhook")).to_be_focused()
    expect(page.locator("#image-problem")).to_have_text("")
    expect(page.locator("#failure-hint")).to_contain_text("IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES=yes")
    page.fill("#option-webhook", "")
    here.choose_smallest_asset()
    page.click("#submit")
    here.expect_state("done")
    expect(page.locator("[data-field=webhook] .problem")).to_have_text("")


def test_an_image_at_a_private_address_is_told_beside_the_images(visit: Callable[..., Visit]) -> None:
    here = visit(viewport=TINY)
    page = here.page
    page.evaluate(PASTE, "http://127.1:9/figure.png")
    page.click("#more summary")
    page.fill("#option-webhook", "http://127.1:9/hook")
    page.click("#submit")
    here.expect_state("failed")

    expect(page.locator("#image-problem")).to_have_text("127.1 leads to an address that is not public")
    expect(page.locator("[data-field=webhook] .problem")).to_have_text("")


def test_a_model_that_cannot_be_loaded_is_told_and_loaded_again(visit: Callable[..., Visit], figure: bytes) -> None:
    here = visit(viewport=TINY)
    page = here.page
    page.route("**/files/**/*.glb", lambda route: route.abort())
    make(here, figure)
    expect(page.locator("#panels .message")).to_contain_text("The model cannot be loaded")
    page.unroute("**/files/**/*.glb")
    page.get_by_role("button", name="Try again").click()

    assert count_red(here.canvas()) > 0


def test_a_large_image_is_shrunk_and_keeps_its_transparency(visit: Callable[..., Visit]) -> None:
    here = visit(viewport=TINY)
    page = here.page
    large = np.random.default_rng(2).integers(0, 256, (2100, 300, 4), np.uint8)
    here.drop(("photo.jpg", noise(2400, 1200)), ("cut.png", encode(large)))
    expect(page.locator("#shrunk")).to_contain_text("photo.jpg: Shrunk from 2400 × 1200")
    expect(page.locator("#shrunk")).to_contain_text("to 2048 × 1024")
    page.route("**/image_to_3d", lambda route: route.abort())
    page.click("#submit")
    here.expect_state("failed")

    photo, cut = [sent_image(uri) for uri in here.submits[0]["image"]]
    assert photo.size == (2048, 1024) and photo.format == "JPEG"
    assert cut.size == (293, 2048) and cut.mode == "RGBA" and np.asarray(cut.getchannel("A")).min() < 100
    expect(page.locator("#failure")).to_contain_text("does not answer")


def sent_image(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_the_engine_decides_which_options_are_shown_and_angles_are_stated_by_view(
    visit: Callable[..., Visit], figure: bytes
) -> None:
    here = visit(viewport=TINY)
    page = here.page
    page.click("#more summary")
    expect(page.locator("[data-field=depth]")).to_be_visible()
    for name in ("ss_sampling_steps", "slat_guidance_strength", "splat", "multi_image_mode", "view_angles"):
        expect(page.locator(f"[data-field={name}]")).to_be_hidden()
    others = [spec.name for spec in ENGINES if "image" in spec.inputs and spec.name != "preview"]
    expect(page.locator("#option-engine option[disabled]")).to_have_count(len(others))
    expect(page.locator("#option-engine-hint")).to_contain_text(f"Not offered here: {', '.join(others)}.")
    here.drop(("front.png", figure), ("back.png", figure), ("side.png", figure))
    page.get_by_label("Taken from: view 3").select_option("left")
    page.fill("#option-depth", "0.3")
    page.route("**/image_to_3d", lambda route: route.abort())
    page.click("#submit")
    here.expect_state("failed")

    assert here.submits[0]["view_angles"] == ["front", "right", "left"]
    assert here.submits[0]["depth"] == 0.3
    page.get_by_label("Taken from: view 1").select_option("auto")
    expect(page.get_by_label("Taken from: view 3")).to_have_value("auto")


def test_an_engine_that_uses_neither_angles_nor_depth_hides_them(visit: Callable[..., Visit], figure: bytes) -> None:
    def offer_all(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        for entry in body["engines"]:
            entry["offered"] = True
        route.fulfill(response=answer, json=body)

    here = visit(viewport=TINY, has_key=False, before=lambda page: page.route("**/engines", offer_all))
    page = here.page
    here.drop(("front.png", figure), ("back.png", figure))
    page.click("#more summary")
    page.select_option("#option-engine", "trellis")

    expect(page.locator("[data-field=ss_sampling_steps]")).to_be_visible()
    expect(page.locator("[data-field=depth]")).to_be_hidden()
    expect(page.get_by_label("Taken from: view 1")).to_have_count(0)
    expect(page.locator("#option-engine-hint")).to_contain_text("Runs on 4.4 GB of weights and a GPU with 16 GB.")


def test_a_key_in_the_address_leaves_it_and_is_kept_by_choice(visit: Callable[..., Visit], service: Deployment) -> None:
    here = visit(viewport=TINY, has_key=False)
    page = here.page
    # Not `here.urls`: the browser states the fragment of a navigation, though it never sends it.
    page.remove_listener("request", here.note_url)
    page.goto("about:blank")
    page.goto(f"{service.address}#key={service.key}")
    page.wait_for_selector("#option-seed", state="attached")

    stored = "[Object.values(localStorage), Object.values(sessionStorage)]"
    assert page.url == service.address and page.input_value("#key") == service.key
    assert page.evaluate(stored) == [[], [service.key]]
    page.check("#remember")
    assert page.evaluate(stored) == [[service.key], []]
    page.uncheck("#remember")
    assert page.evaluate(stored) == [[], [service.key]]
    assert json.dumps(service.key) not in page.content()
    assert service.key not in (service.data.parent / "service.log").read_text()
