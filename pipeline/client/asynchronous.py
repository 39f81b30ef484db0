"""The asynchronous client: the methods of `Client` as coroutines."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import httpx

from pipeline.client import messages
from pipeline.client.errors import ApiError, WaitTimedOut
from pipeline.client.messages import (
    API,
    ESTIMATE,
    LIST,
    Call,
    ExportParameters,
    FileSource,
    Job,
    OnProgress,
    SubmitParameters,
    TextParameters,
)
from schemas.responses import EstimateBody, ListBody, ProcessingBody, SuccessBody


class AsyncClient:
    """Calls one deployment with one API key, from one event loop.

    Args:
        url: the address of the service, with the path below which it is served.
        key: an API key.
        transport: for tests and proxies; httpx's own by default.

    Every method that calls the service raises `ApiError` where it refuses, and `httpx.TransportError` where it cannot
    be reached.
    """

    def __init__(self, url: str, key: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._http = httpx.AsyncClient(transport=transport, follow_redirects=False)

    async def submit(
        self,
        image: FileSource | Sequence[FileSource],
        *,
        wait_s: float = 0.0,
        idempotency_key: str | None = None,
        **parameters: Unpack[SubmitParameters],
    ) -> Job:
        """Submit a job.

        Args:
            image: one image, or several views of one subject.
            wait_s: how long the service may hold the answer back until the job ends.
            idempotency_key: the same key and body give the same job; a fresh one by default.
            parameters: the fields of a submit.
        """
        call = messages.submit_call(image, parameters, wait_s=wait_s, idempotency_key=idempotency_key)
        return messages.read_job(await self._send(call))

    async def submit_text(
        self,
        prompt: str,
        *,
        init_mesh: FileSource | None = None,
        wait_s: float = 0.0,
        idempotency_key: str | None = None,
        **parameters: Unpack[TextParameters],
    ) -> Job:
        """Submit a job that makes an asset from a text.

        Args:
            init_mesh: a mesh whose shape is kept, where the deployment allows it.
            wait_s, idempotency_key: as for `submit`.
            parameters: the fields of a submit of a text.
        """
        call = messages.text_call(prompt, init_mesh, parameters, wait_s=wait_s, idempotency_key=idempotency_key)
        return messages.read_job(await self._send(call))

    async def estimate(self, image: FileSource, **parameters: Unpack[SubmitParameters]) -> EstimateBody:
        """What a submit would take; runs nothing."""
        call = messages.submit_call(image, parameters, wait_s=0, idempotency_key=None, path=messages.ESTIMATE_SUBMIT)
        return messages.validated(ESTIMATE, await self._send(call))

    async def upload(self, image: FileSource) -> str:
        """Store a local image for later submits; returns its URL."""
        return str(messages.read_body(await self._send(messages.upload_call(image)))["url"])

    async def fetch(self, job: Job | int, *, wait_s: float = 0.0) -> Job:
        """The job as it is, or as it is after `wait_s` at the latest."""
        return messages.read_job(await self._send(messages.fetch_call(messages.id_of(job), wait_s=wait_s)))

    async def wait(
        self, job: Job | int, *, timeout_s: float | None = None, on_progress: OnProgress | None = None
    ) -> SuccessBody:
        """Wait for the result of a job.

        Args:
            timeout_s: longest time to wait; None waits until the job ends.
            on_progress: called with the job whenever its stage or progress has changed.

        Raises:
            JobFailed: the job failed or was cancelled.
            WaitTimedOut: the time has passed.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        reported: tuple[str, int] | None = None
        current = await self.fetch(job) if isinstance(job, int) else job
        while (result := messages.ended(current)) is None:
            assert isinstance(current, ProcessingBody)
            if on_progress is not None and (current.stage, current.progress) != reported:
                reported = (current.stage, current.progress)
                on_progress(current)
            left_s = float("inf") if deadline_s is None else deadline_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimedOut(f"job {current.id} did not end within {timeout_s:g} s; it goes on")
            # With a listener the answer is held back for a moment only: each one is a report of the progress.
            held_s = messages.FETCH_WAIT_S if on_progress is None else 1.0
            current = await self.fetch(current, wait_s=min(held_s, left_s))
        return result

    async def generate(
        self,
        image: FileSource | Sequence[FileSource],
        *,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
        **parameters: Unpack[SubmitParameters],
    ) -> SuccessBody:
        """Submit a job and wait for its result; see `submit` and `wait`."""
        return await self.wait(await self.submit(image, **parameters), timeout_s=timeout_s, on_progress=on_progress)

    async def generate_from_text(
        self,
        prompt: str,
        *,
        init_mesh: FileSource | None = None,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
        **parameters: Unpack[TextParameters],
    ) -> SuccessBody:
        """Submit a text and wait for its result; see `submit_text` and `wait`."""
        job = await self.submit_text(prompt, init_mesh=init_mesh, **parameters)
        return await self.wait(job, timeout_s=timeout_s, on_progress=on_progress)

    async def export(self, job: Job | int, **parameters: Unpack[ExportParameters]) -> Job:
        """Make other files of a finished job, without its engine; a job of its own, to wait for."""
        return messages.read_job(await self._send(Call(f"{API}/3d/export/{messages.id_of(job)}", parameters)))

    async def cancel(self, job: Job | int) -> Job:
        """Cancel a job; one that has ended stays as it is."""
        return messages.read_job(await self._send(Call(f"{API}/3d/cancel/{messages.id_of(job)}")))

    async def delete(self, job: Job | int) -> None:
        """Delete the files and the record of a job that has ended."""
        messages.read_body(await self._send(Call(f"{API}/3d/delete/{messages.id_of(job)}")))

    async def jobs(self, *, status: str | None = None, track_id: str | int | None = None) -> AsyncIterator[Job]:
        """The key's jobs, newest first; further pages are requested as they are needed.

        Args:
            status: only jobs in this state: processing, success or failed.
            track_id: only jobs with this `track_id`.
        """
        filters = {name: value for name, value in {"status": status, "track_id": track_id}.items() if value is not None}
        before: int | None = None
        while True:
            page_of: Mapping[str, Any] = filters if before is None else {**filters, "before": before}
            page: ListBody = messages.validated(LIST, await self._send(Call(f"{API}/3d/list", page_of)))
            for job in page.calls:
                yield job
            if page.next is None:
                return
            before = page.next

    async def download(self, result: SuccessBody, folder: str | PathLike[str]) -> list[Path]:
        """Download all files of a result into a folder, under their own names; returns the paths, the model first.

        The key is not sent: the URLs may lead to your bucket.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        paths: list[Path] = []
        for url in [*result.output, *result.extra_assets]:
            path = target / messages.file_name(url)
            part = path.with_name(f"{path.name}.part")
            async with self._http.stream("GET", url, timeout=messages.ANSWER_MARGIN_S) as answer:
                if answer.is_error:
                    raise ApiError(f"{path.name} answers HTTP {answer.status_code}", status=answer.status_code)
                with part.open("wb") as file:
                    async for chunk in answer.aiter_bytes():
                        file.write(chunk)
            part.replace(path)
            paths.append(path)
        return paths

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _send(self, call: Call) -> httpx.Response:
        """Send a call, again where the connection or a proxy fails."""
        arguments = call.arguments(self._key)
        for attempt in itertools.count(1):
            answer: httpx.Response | None = None
            try:
                answer = await self._http.post(f"{self._url}{call.path}", **arguments)
            except httpx.TransportError:
                if messages.pause_s(attempt, None) is None:
                    raise
            pause_s = messages.pause_s(attempt, answer)
            if answer is not None and pause_s is None:
                return answer
            await asyncio.sleep(pause_s or 0.0)
        raise AssertionError("the loop ends by return or raise")
