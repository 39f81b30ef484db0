"""`/llms.txt`: what the service is and how to call it, for programs that read text (https://llmstxt.org).

Made from the OpenAPI document, so that it names what is served and nothing else. Knows nothing of requests.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.api.body_schema import JSON_TYPE

SUBMIT, FETCH, EXPORT = "/api/v6/3d/image_to_3d", "/api/v6/3d/fetch/{call_id}", "/api/v6/3d/export/{call_id}"
SECTIONS = {"jobs": "Jobs", "account": "Account", "files": "Files", "service": "Service"}
"""The headings of the operations, by their tags."""
SAMPLE_SUBMIT = {"image": "https://example.com/subject.png", "output_format": "glb", "seed": 1}
SAMPLE_EXPORT = {"output_format": "stl", "target_faces": 20000}


def llms_text(document: dict[str, Any], *, base_url: str) -> str:
    """The text, in Markdown.

    Args:
        document: the OpenAPI document of the service.
        base_url: what the addresses in it begin with, without a slash at the end.
    """
    return (
        "\n\n".join(
            [
                "# image-to-3d",
                f"> Turns an image, or several views of one subject, into a textured 3D asset ({_formats(document)}). "
                "The HTTP bodies are those of ModelsLab's Image to 3D API.",
                _how_to_call(base_url),
                *(_operations(document, tag, heading) for tag, heading in SECTIONS.items()),
                f"## Optional\n\n- [OpenAPI document]({base_url}/openapi.json): every field with its bounds\n"
                f"- [Reference]({base_url}/docs): the same, to read and to try",
            ]
        )
        + "\n"
    )


def _formats(document: dict[str, Any]) -> str:
    body = document["paths"][SUBMIT]["post"]["requestBody"]["content"][JSON_TYPE]["schema"]
    return ", ".join(name.upper() for name in body["properties"]["output_format"]["enum"])


def _how_to_call(base_url: str) -> str:
    """Submit, fetch and webhook in their shortest form."""
    return f"""## How to call it

Send the API key as `Authorization: Bearer KEY`, the header `key`, or the field `key`. Submit an image by URL, `data:`
URI, base64, or as a file of a form:

```sh
curl {base_url}{SUBMIT} -H 'Authorization: Bearer KEY' -H 'Content-Type: application/json' \\
  -H 'Idempotency-Key: ONE-TEXT-PER-JOB' -d '{json.dumps(SAMPLE_SUBMIT)}'
```

The answer has `status`: `processing` with an `id`, `success`, or `failed`. Fetch until it is not `processing`; a
request waits for the end of the job, 20 s by default, so no pause is needed:

```sh
curl -X POST {base_url}{FETCH.format(call_id="ID")} -H 'Authorization: Bearer KEY'
```

`success` has the URLs in `output`, `output[0]` is the model, and `files` describes each with `kind`, `format`, `url`,
`bytes`, `faces` and `expires_at`. Download them without the key. `failed` has `message`, `error_code` and `retryable`.
Another format of a finished job, without generating again:

```sh
curl {base_url}{EXPORT.format(call_id="ID")} -H 'Authorization: Bearer KEY' -H 'Content-Type: application/json' \\
  -d '{json.dumps(SAMPLE_EXPORT)}'
```

With `webhook` in a submit the final body is posted to that URL. The headers `webhook-id`, `webhook-timestamp` and
`webhook-signature` sign it as Standard Webhooks describes: verify it with one of that scheme's libraries and the key's
secret `whsec_…`, and act on each `webhook-id` once.

A refused request has `status` `error`, `message` and `error_code`. After 429 wait `retry_after` seconds; repeat 502,
503, 504 and broken connections with the same `Idempotency-Key`."""


def _operations(document: dict[str, Any], tag: str, heading: str) -> str:
    """A line for each operation with the tag."""
    lines = [
        f"- `{operation['operationId']}`: `{method.upper()} {path}`: {operation['summary'].split('. ')[0]}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if tag in operation.get("tags", ())
    ]
    return "\n".join([f"## {heading}", "", *lines])
