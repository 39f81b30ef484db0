"""The service below a path of nginx, with the location that docs/deploy-docker.md gives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import pytest

from tests.e2e.faults import KEY, ROOT, SUBMIT, Service
from tests.fakes.images import disc_as_base64
from tests.servers.nginx import nginx
from tests.servers.s3 import free_port

pytest.importorskip("PIL", reason="needs the extra 'local'")
pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="needs Debian's nginx-light"
)

EVENTS = "/api/v1/enterprise/3d/events"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the service as its callers know it."""
    folder, port = tmp_path_factory.mktemp("studio"), free_port()
    service = Service(folder / "data", workers=1, public_url=f"http://127.0.0.1:{port}/studio")
    service.start()
    try:
        service.wait_until_ready()
        with nginx(documented_location().replace(":8000", f":{service.port}"), port=port) as url:
            yield f"{url}/studio"
    finally:
        service.stop()


def documented_location() -> str:
    blocks = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "deploy-docker.md").read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "/studio/" in block)


def test_a_job_goes_from_submit_to_download_below_the_path(studio: str) -> None:
    with httpx.Client(timeout=120, headers={"key": KEY}) as http:
        body = {"image": disc_as_base64(), "resolution": 64, "texture_size": 512, "padding": "x" * 3_000_000}
        said = http.post(studio + SUBMIT, json=body, headers={"prefer": "wait=0"}).json()
        assert said["fetch_result"].startswith(f"{studio}/api/")
        with http.stream("GET", f"{studio}{EVENTS}/{said['id']}") as events:
            lines = [line for line in events.iter_lines() if line.startswith("event:")]
        fetched = http.post(said["fetch_result"], json={}).json()

        assert lines[-1] == "event: end" and "event: progress" in lines
        assert fetched["status"] == "success"
        for url in fetched["output"]:
            assert url.startswith(f"{studio}/files/")
            assert http.get(url, headers={"range": "bytes=0-9"}).status_code == 206


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_everything_that_a_page_names_is_below_the_path(studio: str, page: str) -> None:
    with httpx.Client(timeout=60) as http:
        text = http.get(studio + page).text
        named = {urljoin(studio + page, link) for link in re.findall(r'(?:href|src)="([^"#]+)"', text)}
        ours = {link for link in named if link.startswith(studio.removesuffix("/studio"))}

        assert len(ours) >= 4
        assert {link: http.get(link).status_code for link in ours if not link.startswith(f"{studio}/")} == {}
        assert {link for link in ours if http.get(link).status_code != 200} == set()


def test_the_path_without_its_slash_leads_to_the_page(studio: str) -> None:
    assert httpx.get(studio, follow_redirects=True, timeout=30).url == f"{studio}/"


def test_the_documented_location_has_what_events_and_images_need() -> None:
    location = documented_location()

    assert "proxy_buffering off;" in location and "client_max_body_size 32m;" in location


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_a_browser_finds_everything_below_the_path(studio: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    answers: list[tuple[str, int]] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.on("response", lambda answer: answers.append((answer.url, answer.status)))
        page.goto(f"{studio}/")
        page.locator("#option-resolution").wait_for(state="attached", timeout=60_000)  # read from the contract
        page.goto(f"{studio}/docs")
        page.locator(".opblock-summary").first.wait_for(timeout=60_000)
        browser.close()

    assert f"{studio}/openapi.json" in {url for url, _ in answers}
    assert [answer for answer in answers if answer[1] >= 400 or not answer[0].startswith(f"{studio}/")] == []
