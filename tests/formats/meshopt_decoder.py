"""meshoptimizer's own decoder, in a node process that stays open; skips the test where node or npm is missing."""

from __future__ import annotations

import base64
import json
import subprocess
from functools import cache
from typing import Any

import pytest

from tests.npm import NoPackages, packages

MANIFEST = b'{"private": true, "dependencies": {"meshoptimizer": "1.3.0"}}'
SCRIPT = """
import { createInterface } from 'node:readline';
import { createRequire } from 'node:module';
const { MeshoptDecoder } = createRequire(process.argv[1] + '/')('meshoptimizer/decoder');
await MeshoptDecoder.ready;
for await (const line of createInterface({ input: process.stdin })) {
  const { code, count, stride, mode, filter } = JSON.parse(line);
  const decoded = new Uint8Array(count * stride);
  let answer;
  try {
    MeshoptDecoder.decodeGltfBuffer(decoded, count, stride, Buffer.from(code, 'base64'), mode, filter);
    answer = { decoded: Buffer.from(decoded).toString('base64') };
  } catch (error) {
    answer = { error: error.message };
  }
  console.log(JSON.stringify(answer));
}
"""


@cache
def _process() -> subprocess.Popen[str]:
    try:
        folder = packages(MANIFEST)
    except NoPackages as reason:
        pytest.skip(str(reason))
    command = ["node", "--input-type=module", "-e", SCRIPT, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def decode(code: bytes, *, mode: str, count: int, stride: int, filter_name: str = "NONE") -> bytes:
    """What meshoptimizer makes of a buffer view.

    Raises:
        ValueError: it refuses the data.
    """
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    request: dict[str, Any] = {"code": base64.b64encode(code).decode(), "count": count, "stride": stride}
    process.stdin.write(json.dumps({**request, "mode": mode, "filter": filter_name}) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    if "error" in answer:
        raise ValueError(answer["error"])
    return base64.b64decode(answer["decoded"])
