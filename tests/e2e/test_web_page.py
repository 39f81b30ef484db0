"""A page of another origin in a real browser: from its file input to the downloaded asset, with a token.

One page uses `fetch` alone, the other the TypeScript client of docs/examples, compiled to a module.
"""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.docs.typescript import NoPackages, compile_client
from tests.e2e.faults import KEY, Service

CHROMIUM = shutil.which("chromium")
SAMPLE = Path(__file__).resolve().parents[2] / "pipeline" / "api" / "playground" / "sample.png"
PAGE = b"<!doctype html><title>app</title><input type=file id=file>"
APP = """async ([url, token]) => {
  const headers = { authorization: `Bearer ${token}`, prefer: "wait=0", "idempotency-key": "one" };
  const form = new FormData();
  form.append("image", document.getElementById("file").files[0]);
  const fields = { output_format: "glb", resolution: "64", texture_size: "512", webhook: "" };
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const submit = () => fetch(`${url}/api/v6/3d/image_to_3d/`, { method: "POST", headers, body: form });
  const job = await (await submit()).json();
  const replayed = (await submit()).headers.get("idempotent-replayed");
  const events = await (await fetch(`${url}/api/v1/enterprise/3d/events/${job.id}`, { headers })).text();
  const done = JSON.parse(events.split("event: end")[1].match(/data: (.*)/)[1]);
  const model = new Uint8Array(await (await fetch(done.output[0])).arrayBuffer());
  const usage = await fetch(`${url}/api/v1/usage`, { headers });
  return { replayed, status: done.status, magic: String.fromCharCode(...model.slice(0, 4)), usage: usage.status };
}"""
CLIENT_APP = """async ([url, token, key]) => {
  const { ApiError, Client } = await import("/client.js");
  const client = new Client(url, token);
  const file = document.getElementById("file").files[0];
  const options = { resolution: 64, texture_size: 512 };
  const start = async (blob) => String.fromCharCode(...new Uint8Array(await blob.slice(0, 4).arrayBuffer()));
  const refusal = async (answer) => {
    const error = await answer.then(() => null, (reason) => reason);
    return [error instanceof ApiError, error.status, error.error_code];
  };
  const { engine } = await client.estimate(file, options);
  const percents = [];
  const submitted = await client.submit(file, options, { idempotency_key: "one" });
  const again = await client.submit(file, options, { idempotency_key: "one" });
  const job = await client.wait(submitted, { on_progress: ({ progress }) => percents.push(progress) });
  const model = await client.download(job.files.find(({ kind }) => kind === "model"));
  const exported = await new Client(url, key).exportAgain(job, { output_format: "stl", target_faces: 500 });
  const solid = (await new Client(url, key).wait(exported)).files[0];
  return {
    engine,
    isOneJob: submitted.id === again.id,
    hasProgress: percents.length > 0 && percents.every((percent) => percent >= 0 && percent <= 100),
    magic: await start(model),
    isWhole: model.size === job.files.find(({ kind }) => kind === "model").bytes,
    solid: [solid.format, solid.faces <= 500, (await client.download(solid)).size === solid.bytes],
    refused: await refusal(client.submit(file, { mesh_simplify: 0.5 })),
    export: await refusal(client.exportAgain(job, { output_format: "stl" })),
    unknown: await refusal(client.wait(12)),
    wrong: await refusal(new Client(url, "wrong").estimate(file)),
  };
}"""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.xdist_group("playground"),
]


@dataclass(frozen=True)
class Setting:
    """A service, the origin of a page that may call it, and a token for pages of that origin."""

    url: str
    origin: str
    token: str


@contextmanager
def app_serving(files: dict[str, tuple[str, bytes]]) -> Iterator[str]:
    """A server of a page and its modules; yields its origin.

    Args:
        files: media type and content by path.
    """

    class App(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            media_type, content = files.get(self.path, ("text/plain", b""))
            self.send_response(200 if self.path in files else 404)
            self.send_header("content-type", media_type)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    app = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=app.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{app.server_port}"
    finally:
        app.shutdown()
        app.server_close()


@pytest.fixture(scope="module")
def client_module(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The TypeScript client as JavaScript; empty where npm has no compiler for it."""
    try:
        return (compile_client(tmp_path_factory.mktemp("client")) / "client.js").read_bytes()
    except NoPackages:
        return b""


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, client_module: bytes) -> Iterator[Setting]:
    files = {"/": ("text/html", PAGE), "/client.js": ("text/javascript", client_module)}
    with app_serving(files) as origin:
        service = Service(tmp_path_factory.mktemp("web") / "data", workers=1, cors_origins=origin)
        service.start()
        try:
            service.wait_until_ready()
            request = urllib.request.Request(
                f"{service.address}/api/v1/enterprise/3d/tokens",
                data=json.dumps({"key": KEY, "origin": origin, "max_submits": 5}).encode(),
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                yield Setting(service.address, origin, json.load(answer)["token"])
        finally:
            service.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def open_app(browser: Browser, origin: str) -> Page:
    """The page, with a file chosen."""
    page = browser.new_page()
    page.goto(origin)
    page.set_input_files("#file", SAMPLE)
    return page


def test_a_page_of_another_origin_makes_a_model_with_a_token(setting: Setting, browser: Browser) -> None:
    seen: dict[str, Any] = open_app(browser, setting.origin).evaluate(APP, [setting.url, setting.token])

    assert seen == {"replayed": "true", "status": "success", "magic": "glTF", "usage": 401}


def test_a_page_of_another_origin_uses_the_typescript_client(
    setting: Setting, browser: Browser, client_module: bytes
) -> None:
    if not client_module:
        pytest.skip("npm has no TypeScript compiler")

    seen: dict[str, Any] = open_app(browser, setting.origin).evaluate(CLIENT_APP, [setting.url, setting.token, KEY])

    assert seen == {
        "engine": "preview",
        "isOneJob": True,
        "hasProgress": True,
        "magic": "glTF",
        "isWhole": True,
        "solid": ["stl", True, True],
        "refused": [True, 400, "invalid_request"],
        "export": [True, 401, "unauthorized"],
        "unknown": [True, 404, "not_found"],
        "wrong": [True, 401, "unauthorized"],
    }


def test_a_page_of_an_origin_that_is_not_named_reads_no_answer(
    setting: Setting, browser: Browser, client_module: bytes
) -> None:
    if not client_module:
        pytest.skip("npm has no TypeScript compiler")
    script = """([url, token]) => import("/client.js")
        .then(({ Client }) => new Client(url, token, { retries: 0 }).wait(12)).then(() => "", (error) => error.name)"""

    with app_serving({"/": ("text/html", PAGE), "/client.js": ("text/javascript", client_module)}) as origin:
        seen = open_app(browser, origin).evaluate(script, [setting.url, setting.token])

    assert seen == "TypeError"  # what `fetch` raises for an answer that the browser keeps from the page
