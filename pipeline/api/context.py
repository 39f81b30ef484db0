"""What the routes share: the deployment's parts, and who is calling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from pipeline.api.bodies import final_body, processing_body, webhook_status
from pipeline.api.requests import presented_key, read_object
from pipeline.api.waiting import EndWatch
from pipeline.jobs.keys import authenticate
from pipeline.jobs.record import ApiKey, Job
from pipeline.service import Service
from pipeline.storage.base import output_names
from pipeline.storage.saved_bucket import open_bucket

Result = TypeVar("Result")


class Context:
    """The live parts of a deployment as routes use them; everything that blocks runs beside the event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.settings = service.settings
        self.store = service.store
        self.ends = EndWatch(service.store)

    async def do(self, work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Run blocking work in a thread."""
        return await run_in_threadpool(work, *arguments, **options)

    async def caller(self, request: Request) -> tuple[ApiKey, dict[str, Any]]:
        """Who calls, and the body of the request.

        Raises:
            Unauthorized: nobody that we know.
            InvalidRequest: the body is no JSON object.
        """
        body = await read_object(request, max_bytes=self.settings.max_body_bytes)
        return await self.do(authenticate, self.store, presented_key(request, body)), body

    def base_url(self, request: Request) -> str:
        """What absolute URLs begin with, without a slash at the end."""
        return self.settings.base_url if self.settings.public_url else str(request.base_url).rstrip("/")

    def answer_about(self, job: Job, *, fetch_path: str, base_url: str) -> dict[str, Any]:
        """The body of the answer about a job, whatever its state. Blocks."""
        if job.state.is_final:
            tasks = self.store.tasks_of(job.id) if job.webhook_url else []
            return final_body(job, webhook_status=webhook_status(tasks))
        return processing_body(
            job,
            queue_position=self.store.queue_position(job),
            timings=self.store.timings(),
            workers=len(self.store.workers()),
            fetch_result=f"{base_url}{fetch_path}/{job.id}",
            future_links=self.future_links(job),
        )

    def future_links(self, job: Job) -> list[str]:
        """The URLs that `output` will hold, model first. Blocks."""
        names = [
            name
            for name, kind in output_names(
                str(job.meta.get("output_format", "glb")),
                file_prefix=job.file_prefix,
                render=bool(job.meta.get("render")),
                is_textured=not job.meta.get("no_texture"),
            )
            if kind in ("model", "companion", "turntable")
        ]
        sealed = None if job.meta.get("temp") else self.store.s3_of(job.key_id)
        if sealed is not None:
            bucket = open_bucket(sealed, owner=job.key_id, vault=self.service.vault)
            return [bucket.url_of(name) for name in names]
        temporary = self.service.temporary
        return temporary.predict_urls(names, file_prefix=job.file_prefix, created_at=job.created_at)


def context_of(request: Request) -> Context:
    """The context that `create_app` made."""
    return request.app.state.context
