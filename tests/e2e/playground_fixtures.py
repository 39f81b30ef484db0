"""A pytest plugin with the fixtures of the playground: a running service, a browser, and visits to its pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.e2e.playground import CHROMIUM, CHROMIUM_OPTIONS, SMALL, Deployment, Visit
from tests.e2e.test_serve_command import serving
from tests.fakes.images import draw_figure, encode


@pytest.fixture(scope="module")
def figure() -> bytes:
    return encode(draw_figure(256))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running service."""
    data = tmp_path_factory.mktemp("playground") / "data"
    with serving(data) as (_, port, output):
        key = re.search(r"shown this once: (\S+)", "\n".join(output))
        assert key is not None
        yield Deployment(f"http://127.0.0.1:{port}/", key[1], data)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def visit(service: Deployment, browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens a page, by default the playground with its key; at the end, the browser must have reported no error."""
    address, key = service.address, service.key
    visits: list[Visit] = []

    def open_page(
        *,
        path: str = "",
        shows: str = "#option-seed",
        has_key: bool = True,
        before: Callable[[Page], Any] = lambda page: None,
        **options: Any,
    ) -> Visit:
        context = browser.new_context(**{"viewport": SMALL, "reduced_motion": "reduce", **options})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened = Visit(context.new_page(), key)
        visits.append(opened)
        page = opened.page
        page.on("request", opened.note_url)
        page.on("request", lambda request: _note_submit(opened, request.url, request.post_data))
        page.on("pageerror", lambda error: opened.browser_errors.append(str(error)))
        page.on("console", lambda entry: "Content Security" in entry.text and opened.browser_errors.append(entry.text))
        before(page)
        page.goto(address + path)
        page.wait_for_selector(shows, state="attached")
        if has_key:
            page.fill("#key", key)
        return opened

    yield open_page
    for opened in visits:
        opened.page.context.close()
        assert opened.browser_errors == []
        assert not [url for url in opened.urls if key in url]
        assert not [url for url in opened.urls if not url.startswith((address, "blob:", "data:"))]


def _note_submit(opened: Visit, url: str, body: str | None) -> None:
    if url.endswith("/image_to_3d") and body:
        opened.submits.append(json.loads(body))
