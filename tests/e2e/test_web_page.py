"""A page of another origin in a real browser: from its file input to the downloaded asset, with a token."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

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

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.xdist_group("playground"),
]


class App(http.server.BaseHTTPRequestHandler):
    """The other origin's page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_page_of_another_origin_makes_a_model_with_a_token(tmp_path: Path) -> None:
    app = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=app.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{app.server_port}"
    service = Service(tmp_path / "data", workers=1, cors_origins=origin)
    service.start()
    try:
        service.wait_until_ready()
        request = urllib.request.Request(
            f"{service.address}/api/v1/enterprise/3d/tokens",
            data=json.dumps({"key": KEY, "origin": origin, "max_submits": 1}).encode(),
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            token = json.load(answer)["token"]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(origin)
            page.set_input_files("#file", SAMPLE)
            seen = page.evaluate(APP, [service.address, token])
            browser.close()
    finally:
        service.stop()
        app.shutdown()
        app.server_close()

    assert seen == {"replayed": "true", "status": "success", "magic": "glTF", "usage": 401}
