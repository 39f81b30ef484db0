"""Submits a local file, waits for the result and saves the files: `python submit.py robot.png out/`."""

import base64
import os
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import httpx

image, folder = Path(sys.argv[1]), Path(sys.argv[2])
api = httpx.Client(
    base_url=os.environ["IMAGE_TO_3D_URL"],
    headers={"key": os.environ["IMAGE_TO_3D_KEY"]},
    timeout=60,  # longer than the service waits for a result
)


def call(path, body, headers=None):
    """POST and return the body; a refusal ends the program with its message."""
    answer = api.post(path, json=body, headers=headers)
    body = answer.json()
    if body["status"] == "error":
        sys.exit(f"refused ({body['error_code']}): {body['message']}")
    return body


# The same Idempotency-Key gives the same job, so a submit can be repeated after a lost connection.
submit = {"image": base64.b64encode(image.read_bytes()).decode(), "output_format": "glb", "seed": 1}
job = call("/api/v6/3d/image_to_3d", submit, {"Idempotency-Key": str(uuid.uuid4())})

while job["status"] == "processing":
    print(f"job {job['id']}: {job['message']}", file=sys.stderr)
    job = call(f"/api/v6/3d/fetch/{job['id']}", {})  # answers as soon as the job ends, after 20 s at the latest

if job["status"] == "failed":
    sys.exit(f"job {job['id']} failed ({job['error_code']}): {job['message']}")
folder.mkdir(parents=True, exist_ok=True)
for url in [*job["output"], *job["extra_assets"]]:
    path = folder / Path(urlsplit(url).path).name
    path.write_bytes(httpx.get(url).raise_for_status().content)
    print(path)
