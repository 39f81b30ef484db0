"""The service below a path of nginx behind TLS, with the location that docs/deploy-docker.md gives."""

from __future__ import annotations

import re
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from playwright.sync_api import expect

from tests.e2e.faults import KEY, ROOT, SUBMIT, Receiver, Service
from tests.e2e.playground import NEEDS_CHROMIUM, Deployment, Visit
from tests.fakes.images import disc_as_base64
from tests.servers.nginx import nginx
from tests.servers.s3 import free_port
from tests.servers.tls import self_signed_certificate

pytest.importorskip("PIL", reason="needs the extra 'local'")
pytest_plugins = ("tests.e2e.playground_fixtures",)
pytestmark = [
    pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="needs Debian's nginx-light"),
    pytest.mark.xdist_group("playground"),
]

EVENTS = "/api/v1/enterprise/3d/events"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed_certificate(tmp_path_factory.mktemp("tls") / "server.pem")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Deployment]:
    """The service at the address that its callers know."""
    folder, port = tmp_path_factory.mktemp("studio"), free_port()
    behind = Service(folder / "data", workers=1, public_url=f"https://127.0.0.1:{port}/studio")
    behind.start()
    try:
        behind.wait_until_ready()
        location = documented_location().replace(":8000", f":{behind.port}")
        with nginx(location, port=port, certificate=certificate) as url:
            yield Deployment(f"{url}/studio/", KEY, behind.data)
    finally:
        behind.stop()


@pytest.fixture
def studio(service: Deployment) -> str:
    """The address without a slash at its end."""
    return service.address.rstrip("/")


@pytest.fixture
def http(certificate: Path) -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120, verify=ssl.create_default_context(cafile=str(certificate))) as client:
        yield client


def documented_location() -> str:
    blocks = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "deploy-docker.md").read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "/studio/" in block)


def test_a_job_goes_from_submit_to_webhook_and_download_below_the_path(studio: str, http: httpx.Client) -> None:
    http.headers["key"] = KEY
    with Receiver() as receiver:
        body = {"image": disc_as_base64(), "resolution": 64, "texture_size": 512, "padding": "x" * 3_000_000}
        said = http.post(studio + SUBMIT, json={**body, "webhook": receiver.url}, headers={"prefer": "wait=0"}).json()
        assert said["fetch_result"].startswith(f"{studio}/api/")
        with http.stream("GET", f"{studio}{EVENTS}/{said['id']}") as events:
            lines = [line for line in events.iter_lines() if line.startswith("event:")]
        fetched = http.post(said["fetch_result"], json={}).json()
        sent = receiver.wait_for(said["id"])

    assert lines[-1] == "event: end" and "event: progress" in lines
    assert fetched["status"] == "success"
    assert sent["output"] == fetched["output"]
    for url in fetched["output"]:
        assert url.startswith(f"{studio}/files/")
        assert http.get(url, headers={"range": "bytes=0-9"}).status_code == 206


@pytest.mark.parametrize("page", ["/", "/docs"])
def test_everything_that_a_page_names_is_below_the_path(studio: str, http: httpx.Client, page: str) -> None:
    text = http.get(studio + page).text
    named = {urljoin(studio + page, link) for link in re.findall(r'(?:href|src)="([^"#]+)"', text)}
    ours = {link for link in named if link.startswith(studio.removesuffix("/studio"))}

    assert len(ours) >= 4
    assert {link: http.get(link).status_code for link in ours if not link.startswith(f"{studio}/")} == {}
    assert {link for link in ours if http.get(link).status_code != 200} == set()


def test_the_path_without_its_slash_leads_to_the_page(studio: str, http: httpx.Client) -> None:
    assert http.get(studio, follow_redirects=True).url == f"{studio}/"


def test_the_documented_location_has_what_events_and_images_need() -> None:
    location = documented_location()

    assert "proxy_buffering off;" in location and "client_max_body_size 32m;" in location


@NEEDS_CHROMIUM
def test_the_playground_makes_and_shows_a_model_below_the_path(
    visit: Callable[..., Visit], studio: str, figure: bytes, tmp_path: Path
) -> None:
    answers: list[tuple[str, int]] = []
    here = visit(ignore_https_errors=True)  # the visit itself asserts that nothing outside the path was requested
    page = here.page
    page.on("response", lambda answer: answers.append((answer.url, answer.status)))
    here.drop(("figure.png", figure))
    here.choose_smallest_asset()
    page.click("#submit")
    here.expect_state("done")

    assert here.canvas().size > 0
    with page.expect_download() as coming:
        page.get_by_role("link", name="Download model, textured, GLB").click()
    coming.value.save_as(tmp_path / "figure.glb")
    address = page.url
    page.reload()  # the job's own address
    here.expect_state("done")
    expect(page.locator("#jobs a")).not_to_have_count(0)

    assert (tmp_path / "figure.glb").read_bytes()[:4] == b"glTF"
    assert address.startswith(f"{studio}/#job/")
    asked = {url.removeprefix(studio).split("?")[0] for url, _ in answers}
    assert {SUBMIT.replace("v1/enterprise", "v6"), "/api/v1/enterprise/3d/list"} <= asked
    assert any(path.startswith(f"{EVENTS}/") for path in asked) and any(path.startswith("/files/") for path in asked)
    assert [answer for answer in answers if answer[1] >= 400] == []


@NEEDS_CHROMIUM
def test_the_reference_reads_its_document_below_the_path(visit: Callable[..., Visit], studio: str) -> None:
    here = visit(path="docs", shows=".opblock-summary", has_key=False, ignore_https_errors=True)

    assert f"{studio}/openapi.json" in here.urls
