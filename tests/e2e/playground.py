"""A browser on the playground of a running service: what tests do with a page."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, Request, expect

CHROMIUM = shutil.which("chromium")
# The sandbox needs more rights than a container has; the canvas is rendered on the CPU.
CHROMIUM_OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
SMALL = {"width": 480, "height": 720}  # the CPU renders every pixel
TINY = {"width": 320, "height": 460}
JOB_WAIT_MS = 120_000  # far longer than a job takes here; only a failing test waits so long
WAIT_S = 60.0  # for what a page shows; Playwright's own 5 s are short where several browsers share two cores
expect.set_options(timeout=WAIT_S * 1000)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
DROP = """([files]) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type: "image/png" }));
  }
  return transfer;
}"""


@dataclass
class Deployment:
    """A running service: its address, a key, and its folder of data."""

    address: str
    key: str
    data: Path


@dataclass
class Visit:
    """A page, and what the browser recorded about it."""

    page: Page
    key: str
    urls: list[str] = field(default_factory=list)
    submits: list[dict[str, Any]] = field(default_factory=list)
    browser_errors: list[str] = field(default_factory=list)

    def note_url(self, request: Request) -> None:
        """Note the URL of a request."""
        self.urls.append(request.url)

    def drop(self, *files: tuple[str, bytes]) -> None:
        """Drop files on the page."""
        coded = [(name, base64.b64encode(content).decode()) for name, content in files]
        transfer = self.page.evaluate_handle(DROP, [coded])
        for event in ("dragenter", "dragover", "drop"):
            self.page.dispatch_event("#result", event, {"dataTransfer": transfer})

    def choose_smallest_asset(self) -> None:
        """Choose the smallest asset that the contract allows."""
        self.page.fill("#option-resolution", "64")
        self.page.fill("#option-texture_size", "512")

    def expect_state(self, state: str) -> None:
        expect(self.page.locator("body")).to_have_attribute("data-state", state, timeout=JOB_WAIT_MS)

    def canvas(self) -> NDArray[np.uint8]:
        """(H, W, 3) the pixels of the viewer, once it has loaded its model."""
        viewer = self.page.locator("model-viewer")
        wait_until(lambda: viewer.evaluate("(viewer) => viewer.loaded && viewer.modelIsVisible"))
        wait_until(lambda: count_red(pixels_of(viewer)) > 0)
        return pixels_of(viewer)


def wait_until(condition: Callable[[], Any]) -> None:
    """Poll until a condition holds. Playwright's own wait in the page uses eval, which the page forbids."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not hold in time"
        time.sleep(0.05)


def pixels_of(element: Locator) -> NDArray[np.uint8]:
    """(H, W, 3) the screen where the element is; the element's own screenshot would wait for animations to end."""
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    assert box is not None
    return np.asarray(Image.open(io.BytesIO(element.page.screenshot(clip=box))).convert("RGB"))


def count_red(pixels: NDArray[np.uint8]) -> int:
    """Pixels in the colour of the figure's body, which no part of the page has."""
    red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
    return int(((red > 120) & (red > 2 * green) & (red > 2 * blue)).sum())
