"""What the routes share: the deployment's parts, and who is calling."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from pipeline.answers import final_body, processing_body, webhook_status
from pipeline.api.queue_stats import QueueStatsReader
from pipeline.api.requests import presented_key, read_object
from pipeline.api.waiting import CompletionWaiter
from pipeline.jobs.api_keys import authenticate
from pipeline.jobs.model import ApiKey, Job
from pipeline.service import Service
from pipeline.storage.base import output_names
from pipeline.storage.encrypted_bucket import decrypt_bucket

Result = TypeVar("Result")

LOOKUPS_AT_ONCE = 16
LOOKUP_S = 5.0
"""How long a submit waits for names to resolve; later ones are checked where they are connected to."""
PROBES_AT_ONCE = 8


class Context:
    """The live parts of a deployment as routes use them; everything that blocks runs beside the event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.settings = service.settings
        self.store = service.store
        self.ends = CompletionWaiter(service.store)
        self.outlook = QueueStatsReader(service.store)
        # Work that others can make slow has threads of its own: it must not use up those that answer everybody.
        self._lookups = anyio.CapacityLimiter(LOOKUPS_AT_ONCE)
        self._probes = anyio.CapacityLimiter(PROBES_AT_ONCE)
        self._restarted_at_s: float | None = None

    async def do(self, work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Run blocking work in a thread."""
        return await run_in_threadpool(work, *arguments, **options)

    async def look_up(self, work: Callable[[], None]) -> None:
        """Run work that asks name servers, and go on without it when it takes longer than `LOOKUP_S`."""
        with anyio.move_on_after(LOOKUP_S):
            await anyio.to_thread.run_sync(work, limiter=self._lookups, abandon_on_cancel=True)

    async def probe(self, work: Callable[[], Result]) -> Result:
        """Run work that asks a customer's server."""
        return await anyio.to_thread.run_sync(work, limiter=self._probes)

    async def restart_workers(self) -> bool:
        """Wish that workers start anew; False where this process did so a moment ago, and so does not again.

        Each fresh worker loads its engine, on the operator's bill: no caller may have that done in a loop.
        """
        now_s, last_s = time.monotonic(), self._restarted_at_s
        if last_s is not None and now_s - last_s < self.settings.restart_pause_s:
            return False
        self._restarted_at_s = now_s
        try:
            await self.do(self.store.request_restart)
        except BaseException:
            self._restarted_at_s = last_s
            raise
        return True

    async def body(self, request: Request) -> dict[str, Any]:
        """The body of the request.

        Raises:
            InvalidRequest: it is no JSON object.
            BodyTooLarge: it is too long.
        """
        return await read_object(request, max_bytes=self.settings.max_body_bytes)

    def authenticate(self, request: Request, body: dict[str, Any]) -> ApiKey:
        """Who calls. Blocks.

        Raises:
            Unauthorized: nobody that we know.
        """
        return authenticate(self.store, presented_key(request, body))

    async def caller(self, request: Request) -> tuple[ApiKey, dict[str, Any]]:
        """Who calls, and the body of the request.

        Raises:
            Unauthorized: nobody that we know.
            InvalidRequest: the body is no JSON object.
        """
        body = await self.body(request)
        return await self.do(self.authenticate, request, body), body

    def base_url(self, request: Request) -> str:
        """What absolute URLs begin with, without a slash at the end."""
        return self.settings.base_url if self.settings.public_url else str(request.base_url).rstrip("/")

    def answer_about(
        self, job: Job, *, fetch_path: str, base_url: str, queue_position: int | None = None
    ) -> dict[str, Any]:
        """The body of the answer about a job, whatever its state. Blocks.

        Args:
            queue_position: asked of the store where it is not known.
        """
        if job.state.is_final:
            tasks = self.store.tasks_of(job.id) if job.webhook_url else []
            return final_body(job, webhook_status=webhook_status(tasks))
        outlook = self.outlook.read()
        return processing_body(
            job,
            queue_position=self.store.queue_position(job) if queue_position is None else queue_position,
            timings=outlook.timings,
            workers=outlook.workers,
            fetch_result=f"{base_url}{fetch_path}/{job.id}",
            future_links=self.future_links(job),
        )

    def future_links(self, job: Job) -> list[str]:
        """The URLs that `output` will hold, model first. Blocks."""
        parameters = job.meta.parameters
        names = [
            name
            for name, kind in output_names(
                str(parameters.get("output_format", "glb")),
                file_prefix=job.file_prefix,
                render=bool(parameters.get("render")),
                is_textured=not parameters.get("no_texture"),
            )
            if kind in ("model", "companion", "turntable")
        ]
        encrypted = None if parameters.get("temp") else self.store.s3_of(job.api_key_id)
        if encrypted is not None:
            bucket = decrypt_bucket(encrypted, owner=job.api_key_id, secret_box=self.service.secret_box)
            return [bucket.url_of(name) for name in names]
        temporary = self.service.temporary
        return temporary.predict_urls(names, file_prefix=job.file_prefix, created_at=job.created_at)


def context_of(request: Request) -> Context:
    """The context that `create_app` made."""
    return request.app.state.context
