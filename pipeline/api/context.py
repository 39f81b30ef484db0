"""What the routes share: the deployment's parts, and authentication."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import anyio
import structlog
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from pipeline.answers import final_body, processing_body, webhook_status
from pipeline.api.browser_tokens import PREFIX as TOKEN_PREFIX
from pipeline.api.browser_tokens import Caller, read_token
from pipeline.api.call_limits import CallLimit
from pipeline.api.form_fields import has_files, inline_files
from pipeline.api.own_host import is_forwarded, is_own_host
from pipeline.api.queue_stats import QueueStatsReader
from pipeline.api.refusals import Refusals
from pipeline.api.request_body import BodyReader
from pipeline.api.requests import header_key, presented_key
from pipeline.api.upload_allowance import UploadAllowance
from pipeline.api.waiting import CompletionWaiter, Followers
from pipeline.errors import NotFound, RateLimited, Unauthorized
from pipeline.jobs.api_keys import authenticate, authenticate_by_hash
from pipeline.jobs.model import ApiKey, Job
from pipeline.net.deadline import IsCancelled
from pipeline.service import Service
from pipeline.storage.base import output_names
from pipeline.storage.encrypted_bucket import decrypt_bucket
from pipeline.storage.s3 import PROBE_PATIENCE
from schemas.request import formats_of

Args = ParamSpec("Args")
Result = TypeVar("Result")

MAX_RESOLVE_THREADS = 16
RESOLVE_TIMEOUT_S = 5.0
"""How long a submit waits for names to resolve; names that take longer are checked when the job connects to them."""
MAX_PROBE_THREADS = 32
MAX_PROBES_PER_KEY = 2
CLIENT_POLL_S = 0.25
FOLLOW_POLL_S = 0.4
"""Pause between two looks at a followed job, where looks are cheap; longer where `Service.poll_s` is."""
REDELIVERIES_PER_JOB, REDELIVERIES_PER_KEY = 5, 60
"""Per minute: each sends a request to a third party."""

log = structlog.get_logger()


class Context:
    """The live parts of a deployment as routes use them; everything that blocks runs in threads."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.settings = service.settings
        self.store = service.store
        self.completions = CompletionWaiter(service.store, poll_s=service.poll_s)
        self.followers = Followers(self.completions, pause_s=max(FOLLOW_POLL_S, 2 * service.poll_s))
        self.queue_stats = QueueStatsReader(service.store)
        self.refusals = Refusals()
        settings = service.settings
        self.uploads = UploadAllowance(max_bytes=settings.max_upload_bytes, lifetime_s=settings.output_lifetime_s)
        # Work that outsiders can slow down has threads of its own, so that it cannot occupy those of other requests.
        self._resolve_limiter = anyio.CapacityLimiter(MAX_RESOLVE_THREADS)
        self._probe_limiter = anyio.CapacityLimiter(MAX_PROBE_THREADS)
        self._probing: Counter[str] = Counter()
        self._bodies = BodyReader(max_bytes=self.settings.max_body_bytes, is_known_key=self._is_known_key)
        self._was_proxy_named = False
        self.redeliveries_of_job = CallLimit(REDELIVERIES_PER_JOB, what="Sending a job's webhook again")
        self.redeliveries_of_key = CallLimit(REDELIVERIES_PER_KEY, what="Sending webhooks again with one key")
        self._restarted_at_s: float | None = None

    async def in_thread(self, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Run blocking work in a thread."""
        return await run_in_threadpool(work, *args, **kwargs)

    async def resolve(self, work: Callable[[], None]) -> None:
        """Run work that asks name servers; continue without it when it takes longer than `RESOLVE_TIMEOUT_S`."""
        with anyio.move_on_after(RESOLVE_TIMEOUT_S):
            await anyio.to_thread.run_sync(work, limiter=self._resolve_limiter, abandon_on_cancel=True)

    async def probe(self, request: Request, key: ApiKey, work: Callable[[IsCancelled], Result]) -> Result:
        """Run work that connects to a customer's server, while the caller waits.

        Args:
            work: called with what tells it that the caller has hung up.

        Raises:
            RateLimited: the key has `MAX_PROBES_PER_KEY` of these running.
            ClientDisconnect: the caller has hung up.
        """
        if self._probing[key.id] >= MAX_PROBES_PER_KEY:
            raise RateLimited(
                f"Rate limit exceeded. {MAX_PROBES_PER_KEY} buckets of this key are being tried already.",
                limit=MAX_PROBES_PER_KEY,
                remaining=0,
                reset_at=time.time() + PROBE_PATIENCE.base_s,
                retry_after_s=math.ceil(PROBE_PATIENCE.base_s),
            )
        has_hung_up = threading.Event()
        results: list[Result] = []
        errors: list[Exception] = []

        async def run() -> None:
            try:
                results.append(await anyio.to_thread.run_sync(work, has_hung_up.is_set, limiter=self._probe_limiter))
            except Exception as error:  # noqa: BLE001  # raised again below, outside of the task group
                errors.append(error)
            tasks.cancel_scope.cancel()

        self._probing[key.id] += 1
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                while not await request.is_disconnected():
                    await anyio.sleep(CLIENT_POLL_S)
                has_hung_up.set()
                tasks.cancel_scope.cancel()
        finally:
            self._probing[key.id] -= 1
        if has_hung_up.is_set():
            raise ClientDisconnect
        if errors:
            raise errors[0]
        return results[0]

    async def restart_workers(self) -> bool:
        """Request a restart of the workers; returns False, and does nothing, where one was requested a moment ago.

        Each fresh worker loads its engine at the operator's expense: no caller may cause that in a loop.
        """
        now_s, last_s = time.monotonic(), self._restarted_at_s
        if last_s is not None and now_s - last_s < self.settings.restart_pause_s:
            return False
        self._restarted_at_s = now_s
        try:
            await self.in_thread(self.store.request_restart)
        except BaseException:
            self._restarted_at_s = last_s
            raise
        return True

    async def body(self, request: Request) -> dict[str, Any]:
        """The fields of the request's body, as JSON has them; the files of a form as base64 in `image`.

        Raises:
            InvalidRequest: it is neither a JSON object nor a form.
            BodyTooLarge: it is too long.
            BodyTooSlow: it did not arrive in time.
            UnsupportedMediaType: it has another type.
            Unauthorized: it is a large one without a known key.
        """
        body = await self.body_with_files(request)
        if has_files(body):
            return await self.in_thread(inline_files, body)
        return body

    async def body_with_files(self, request: Request, *, takes_raw: bool = False) -> dict[str, Any]:
        """The body, with the files of a form as `FilePart` in `image` and `init_mesh`.

        Args:
            takes_raw: the bytes of an image are accepted as the whole body.
        """
        return await self._bodies.read(request, header_key=header_key(request), takes_raw=takes_raw)

    async def _is_known_key(self, key: str) -> bool:
        """Whether an API key exists and may be used; so may a browser token, whatever page sends it."""
        try:
            await self.in_thread(self._identify, key, None, is_origin_checked=False)
        except Unauthorized:
            return False
        return True

    def authenticate(self, request: Request, body: dict[str, Any]) -> ApiKey:
        """The API key of the request. Blocks.

        Raises:
            Unauthorized: it is missing, unknown or revoked.
        """
        presented = presented_key(request, body)
        if presented is not None and presented.startswith(TOKEN_PREFIX):
            raise Unauthorized("A browser token is not accepted here; send the API key.")
        return authenticate(self.store, presented)

    def identify(self, request: Request, body: dict[str, Any]) -> Caller:
        """The API key of the request, which a browser token may stand for. Blocks.

        Raises:
            Unauthorized: the key is missing, unknown or revoked, or the token is not valid here and now.
        """
        return self._identify(presented_key(request, body), request.headers.get("origin"))

    def _identify(self, presented: str | None, origin: str | None, *, is_origin_checked: bool = True) -> Caller:
        if presented is None or not presented.startswith(TOKEN_PREFIX):
            return Caller(authenticate(self.store, presented))
        token = read_token(self.service.secret_box, presented, origin=origin, is_origin_checked=is_origin_checked)
        return Caller(authenticate_by_hash(self.store, token.key_sha256), token)

    async def user(self, request: Request) -> tuple[Caller, dict[str, Any]]:
        """As `caller`, for routes about single jobs, which also take browser tokens."""
        body = await self.body(request)
        return await self.in_thread(self.identify, request, body), body

    def job_of(self, caller: Caller, job_id: int) -> Job:
        """A job that the caller may see. Blocks.

        Raises:
            NotFound: there is none.
        """
        job = self.store.get(job_id, api_key_id=caller.key.id)
        if caller.token is not None and not caller.token.may_see(job):
            raise NotFound(f"There is no job with the id {job_id}.")
        return job

    async def caller(self, request: Request) -> tuple[ApiKey, dict[str, Any]]:
        """The API key of the request, and its body.

        Raises:
            Unauthorized: the key is missing, unknown or revoked.
            InvalidRequest: the body is not a JSON object.
        """
        body = await self.body(request)
        return await self.in_thread(self.authenticate, request, body), body

    async def caller_with_files(self, request: Request, *, takes_raw: bool = True) -> tuple[ApiKey, dict[str, Any]]:
        """As `caller`, with the files of a form as `FilePart`; the arguments are those of `body_with_files`."""
        body = await self.body_with_files(request, takes_raw=takes_raw)
        return await self.in_thread(self.authenticate, request, body), body

    def base_url(self, request: Request) -> str:
        """What absolute URLs begin with, without a slash at the end; see `own_host` for the rule."""
        if self.settings.public_url is not None:
            return self.settings.base_url
        if not self._was_proxy_named and is_forwarded(request):
            self._was_proxy_named = True
            log.warning("requests come through a proxy, but PUBLIC_URL is not set: links may not lead back to it")
        if is_own_host(request, self.settings):
            return str(request.base_url).rstrip("/")
        return self.settings.base_url + request.scope.get("root_path", "").rstrip("/")

    def job_body(
        self, job: Job, *, fetch_path: str, base_url: str, queue_position: int | None = None
    ) -> dict[str, Any]:
        """The response body about a job in any state. Blocks.

        Args:
            queue_position: read from the store where it is not given.
        """
        if job.state.is_final:
            tasks = self.store.tasks_of(job.id) if job.webhook_url else []
            return final_body(job, webhook_status=webhook_status(tasks))
        stats = self.queue_stats.read()
        return processing_body(
            job,
            queue_position=self.store.queue_position(job) if queue_position is None else queue_position,
            timings=stats.timings,
            workers=stats.workers,
            fetch_result=f"{base_url}{fetch_path}/{job.id}",
            future_links=self.future_links(job),
        )

    def future_links(self, job: Job) -> list[str]:
        """The URLs that `output` will hold, model first. Blocks."""
        parameters = job.meta.parameters
        names = [
            name
            for name, kind in output_names(
                formats_of(parameters),
                file_prefix=job.file_prefix,
                lods=len(parameters.get("lods") or ()),
                render=bool(parameters.get("render")),
                is_textured=not parameters.get("no_texture"),
                texture_format=parameters.get("texture_format") or "png",  # version 0.1.0 had no other
                has_normal_map=bool(parameters.get("normal_map")) and not parameters.get("no_texture"),
            )
            if kind in ("model", "companion", "lod", "turntable")
        ]
        encrypted = None if parameters.get("temp") else self.store.s3_of(job.api_key_id)
        if encrypted is not None:
            bucket = decrypt_bucket(encrypted, owner=job.api_key_id, secret_box=self.service.secret_box)
            return [bucket.url_of(name) for name in names]
        temporary = self.service.temporary
        return temporary.predict_urls(
            names,
            file_prefix=job.file_prefix,
            created_at=job.created_at,
            lifetime_s=parameters.get("retention_s"),
        )


def context_in(request: Request) -> Context:
    """The context that `create_app` made."""
    return request.app.state.context


async def context_of(request: Request) -> Context:  # FastAPI runs a plain function in a thread, for each request
    """`context_in`, as a dependency of routes."""
    return context_in(request)
