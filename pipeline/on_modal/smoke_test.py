"""Tests a deployment from outside, as a customer uses it: health, a request without a key, a job, files, webhook."""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipeline.settings import Settings

SUBMIT, FETCH = "/api/v6/3d/image_to_3d", "/api/v6/3d/fetch"
JOB_WAIT_S = 720.0
"""A cold start, with weights that are read for the first time, and the job itself."""
WEBHOOK_WAIT_S = 60.0
GLB_MAGIC, JSON_CHUNK = 0x46546C67, 0x4E4F534A

Row = tuple[str, bool, str]


def check(url: str, settings: Settings, *, webhook: str | None, report: Callable[[str], None]) -> int:
    """Run all checks and print a table; returns 0 if all pass, else 1.

    Args:
        settings: its `api_key` authenticates the requests.
        webhook: the job's webhook URL; None skips that check.
        report: prints a line.
    """
    key = "" if settings.api_key is None else settings.api_key.get_secret_value()
    ok = True
    with httpx.Client(base_url=url, timeout=60, follow_redirects=True) as client:
        for name, is_good, found in _checks(client, key, webhook):
            report(f"{'ok' if is_good else 'FAILED':<7} {name:<16} {found}")
            ok = ok and is_good
    report(f"{url} {'works' if ok else 'does not work'}")
    return 0 if ok else 1


def _checks(client: httpx.Client, key: str, webhook: str | None) -> Iterator[Row]:
    """One row per check; stops after a check without which the rest make no sense."""
    started_s = time.monotonic()
    try:
        health = client.get("/health")
    except httpx.HTTPError as error:
        yield "health", False, f"no answer: {type(error).__name__}"
        return
    yield "health", health.status_code == 200, f"{health.status_code} in {time.monotonic() - started_s:.2f} s"
    unauthorized = client.post(SUBMIT, json={"image": "x"})
    yield "without a key", unauthorized.status_code == 401, f"{unauthorized.status_code}"

    started_s = time.monotonic()
    submitted = client.post(SUBMIT, json={"key": key, "image": sample(), "webhook": webhook, "seed": 1})
    body = submitted.json()
    is_accepted = submitted.status_code == 200 and body.get("status") in ("processing", "success")
    yield (
        "submit",
        is_accepted,
        f"{body.get('status')} after {time.monotonic() - started_s:.1f} s {body.get('message', '')}",
    )
    if not is_accepted:
        return
    while body["status"] == "processing" and time.monotonic() - started_s < JOB_WAIT_S:
        body = client.post(f"{FETCH}/{body['id']}", json={"key": key}).json()
    yield (
        "job",
        body["status"] == "success",
        f"{body['status']} after {time.monotonic() - started_s:.1f} s {body.get('message', '')}",
    )
    if body["status"] != "success":
        return
    yield from _files(client, body)
    if webhook is not None:
        yield _webhook(client, key, body["id"])


def _files(client: httpx.Client, body: dict[str, Any]) -> Iterator[Row]:
    link = body["output"][0]
    answer = client.get(link)
    source = (
        "temporary storage" if link.startswith(str(client.base_url).rstrip("/")) else f"bucket {urlsplit(link).netloc}"
    )
    defect = "" if answer.status_code != 200 else glb_defect(answer.content)
    found = f"{len(answer.content) / 1e6:.2f} MB from {source}"
    yield "model", answer.status_code == 200 and not defect, defect or found
    part = client.get(link, headers={"range": "bytes=0-3"})
    yield "range", part.status_code == 206 and part.content == b"glTF", f"{part.status_code}"


def _webhook(client: httpx.Client, key: str, job_id: int) -> Row:
    deadline_s = time.monotonic() + WEBHOOK_WAIT_S
    status = "pending"
    while status.startswith("pending") and time.monotonic() < deadline_s:
        status = client.post(f"{FETCH}/{job_id}", json={"key": key}).json().get("webhook_status", "")
        time.sleep(1.0)
    return "webhook", status.startswith("delivered"), status


def glb_defect(content: bytes) -> str:
    """The first defect in the structure of a GLB file, "" without one: header, chunks, and every view's bounds.

    Source: Khronos, glTF 2.0 Specification, section 4.4.
    """
    if len(content) < 20:
        return f"{len(content)} bytes are not a GLB file"
    magic, version, length, json_bytes, kind = struct.unpack_from("<5I", content)
    if (magic, version, kind) != (GLB_MAGIC, 2, JSON_CHUNK) or length != len(content):
        return "the header is not that of a GLB file of this length"
    try:
        document = json.loads(content[20 : 20 + json_bytes])
        binary_bytes = struct.unpack_from("<I", content, 20 + json_bytes)[0]
        views = document["bufferViews"]
        faces = sum(
            document["accessors"][part["indices"]]["count"] // 3
            for mesh in document["meshes"]
            for part in mesh["primitives"]
        )
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        return f"the content cannot be read: {type(error).__name__}"
    if any(view.get("byteOffset", 0) + view["byteLength"] > binary_bytes for view in views):
        return "a buffer view ends beyond the buffer"
    return "" if faces else "it contains no face"


def sample(side: int = 128) -> str:
    """An image that every engine can use, as base64: a disc on a transparent background, a PNG with alpha."""
    radius = side * 0.35
    rows = []
    for y in range(side):
        row = bytearray(b"\0")
        for x in range(side):
            inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < radius**2
            row += bytes((200, 60 + y, 40 + x, 255)) if inside else b"\0\0\0\0"
        rows.append(bytes(row))
    chunks = [
        (b"IHDR", struct.pack(">2I5B", side, side, 8, 6, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    packed = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + packed).decode()
