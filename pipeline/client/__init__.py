"""A typed client of the HTTP API, synchronous and asynchronous, on httpx.

    from pipeline.client import Client

    with Client("https://3d.example.com", key="i3d_…") as client:
        job = client.submit("robot.png", output_format="glb", seed=1)
        result = client.wait(job, on_progress=lambda job: print(job.stage, job.progress))
        client.download(result, "out/")

`AsyncClient` has the same methods as coroutines. `verify_webhook` checks what a receiver of webhooks gets. A refused
request raises `ApiError`, a job that fails `JobFailed`. Connections that break and answers 502 to 504 are tried again;
a submit carries an Idempotency-Key, so that a repeated one makes no second job.

Knows the API's bodies (`schemas`) and nothing else of this project; imports no numpy.
"""

from __future__ import annotations

from pipeline.client.asynchronous import AsyncClient
from pipeline.client.errors import ApiError, ClientError, JobFailed, WaitTimedOut
from pipeline.client.messages import ExportParameters, SubmitParameters, TextParameters
from pipeline.client.synchronous import Client
from pipeline.client.webhooks import InvalidWebhook, verify_webhook
from schemas.responses import EstimateBody, FailedBody, FileEntry, ListBody, ProcessingBody, SuccessBody

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "ClientError",
    "EstimateBody",
    "ExportParameters",
    "FailedBody",
    "FileEntry",
    "InvalidWebhook",
    "JobFailed",
    "ListBody",
    "ProcessingBody",
    "SubmitParameters",
    "SuccessBody",
    "TextParameters",
    "WaitTimedOut",
    "verify_webhook",
]
