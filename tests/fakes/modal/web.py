"""The HTTP listeners: one for blobs and blocks, and one per web function, whose requests become inputs.

A request to a web function is sent the way Modal sends it: the ASGI scope is the input, the body's pieces are chunks of
the call's `data_in` stream, and the answer's messages come back on `data_out`. A request that has no answer after 150 s
is redirected (303) to an address that waits for the same call.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from grpclib import GRPCError, Status
from modal._serialization import deserialize_data_format, serialize_data_format
from modal_proto import api_pb2
from multidict import CIMultiDict

from tests.fakes.modal.conditions import FaultCounter
from tests.fakes.modal.state import Call, Container, Function, State, new_id, stream

CALL_PARAMETER = "__modal_function_call_id"
PIECE_BYTES = 1024 * 1024
Enqueue = Callable[[Function, dict[str, Any]], Call]
"""Starts a call of a web function with an ASGI scope as its argument."""


class WebServer:
    """Every HTTP listener of one server, all on free loopback ports."""

    def __init__(self, state: State, *, timeout_s: float, proxy_token: tuple[str, str], faults: FaultCounter) -> None:
        self._state = state
        self._faults = faults
        self._timeout_s = timeout_s
        self._proxy_token = proxy_token
        self._ranges: dict[str, tuple[Path, int, int]] = {}
        self._servers: list[tuple[asyncio.Server, web.Server[Any]]] = []
        self._port = 0
        self.enqueue: Enqueue | None = None

    async def open(self) -> None:
        """Opens the listener for blobs and blocks."""
        for name in ("blobs", "content"):
            (self._state.folder / name).mkdir(parents=True)
        self._port = await self._listen(self._serve_bytes)

    async def open_for(self, function: Function) -> int:
        """Opens a listener for a web function; returns its port."""
        return await self._listen(partial(self._serve_function, function))

    async def _listen(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> int:
        protocol = web.Server(handler, handler_cancellation=True, access_log=None)
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        self._servers.append((server, protocol))
        return server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Closes every listener and ends open requests."""
        for server, protocol in self._servers:
            server.close()
            await protocol.shutdown(0.2)
            await server.wait_closed()

    # Blobs, blocks, ranges

    def blob_path(self, blob_id: str) -> Path:
        """The file of a blob."""
        return self._state.folder / "blobs" / blob_id

    def blob_url(self, blob_id: str) -> str:
        """The URL to upload and download a blob."""
        return f"http://127.0.0.1:{self._port}/blob/{blob_id}"

    def block_url(self, sha256_hex: str) -> str:
        """Where a block of a Volume's file is put."""
        return f"http://127.0.0.1:{self._port}/block/{sha256_hex}"

    def range_url(self, path: Path, start: int, stop: int) -> str:
        """Where some bytes of a file are got."""
        token = secrets.token_hex(8)
        self._ranges[token] = (path, start, stop)
        return f"http://127.0.0.1:{self._port}/range/{token}"

    async def _serve_bytes(self, request: web.BaseRequest) -> web.StreamResponse:
        kind, name = request.path.strip("/").split("/")
        if request.method == "PUT":
            target = self.blob_path(name) if kind == "blob" else self._state.content(name)
            etag = await _receive(request, target)
            await self._transfer(target.stat().st_size)
            return web.Response(headers={"ETag": f'"{etag}"'})
        if kind == "range":
            path, start, stop = self._ranges[name]
            with path.open("rb") as source:
                source.seek(start)
                return web.Response(body=source.read(stop - start))
        path = self.blob_path(name)
        if not path.exists():
            return web.Response(status=404)
        await self._transfer(path.stat().st_size)
        return web.Response(body=path.read_bytes())

    async def _transfer(self, size_bytes: int) -> None:
        """Take as long as the conditions say that so many bytes take."""
        if self._faults.conditions.blob_bytes_per_s is not None:
            await asyncio.sleep(size_bytes / self._faults.conditions.blob_bytes_per_s)

    # Web functions

    async def _serve_function(self, function: Function, request: web.BaseRequest) -> web.StreamResponse:
        if function.definition is None or not function.app.is_live:
            return web.Response(status=404, text="modal-http: app for invoked web endpoint is stopped")
        credentials = request.headers.get("Modal-Key"), request.headers.get("Modal-Secret")
        is_guarded = function.definition.function.webhook_config.requires_proxy_auth
        if is_guarded and credentials != self._proxy_token:
            return web.Response(status=401, text="modal-http: missing credentials for proxy authorization")
        call = self._state.calls.get(request.query.get(CALL_PARAMETER, ""))
        if call is None or call.function is not function:
            assert self.enqueue is not None
            call = self.enqueue(function, _scope(request))
            body = asyncio.ensure_future(_send_body(call, request))
        else:
            body = asyncio.ensure_future(asyncio.sleep(0))
        try:
            if not await call.changed.until(lambda: call.data_out or call.is_finished, self._timeout_s):
                location = f"{request.path}?{CALL_PARAMETER}={call.call_id}"
                return web.Response(status=303, headers={"Location": location})
            if not call.data_out:
                return web.Response(status=500, text="modal-http: internal error: the function failed")
            return await self._answer(call, request)
        except (asyncio.CancelledError, ConnectionError):
            _send_message(call, {"type": "http.disconnect"})
            raise
        finally:
            body.cancel()

    async def _answer(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        async for chunk in stream(call, call.data_out):
            data = self.blob_path(chunk.data_blob_id).read_bytes() if chunk.data_blob_id else chunk.data
            message = deserialize_data_format(data, chunk.data_format, None)
            if message["type"] == "http.response.start":
                pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
                response = web.StreamResponse(status=message["status"], headers=CIMultiDict(pairs))
                await response.prepare(request)
            elif message["type"] == "http.response.body":
                if message.get("body"):
                    await response.write(message["body"])
                if not message.get("more_body"):
                    await response.write_eof()
                    return response
        # The function ended without the last piece: abort the connection, so that the client sees it.
        assert request.transport is not None
        request.transport.abort()
        return response


def _scope(request: web.BaseRequest) -> dict[str, Any]:
    return {
        "type": "http",
        "http_version": f"{request.version.major}.{request.version.minor}",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "query_string": request.raw_path.partition("?")[2].encode(),
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        "client": (request.remote or "127.0.0.1", 0),
    }


def _send_message(call: Call, message: dict[str, Any]) -> None:
    data = serialize_data_format(message, api_pb2.DATA_FORMAT_ASGI)
    index = len(call.data_in) + 1
    call.data_in.append(api_pb2.DataChunk(data_format=api_pb2.DATA_FORMAT_ASGI, data=data, index=index))
    call.changed.notify()


async def _send_body(call: Call, request: web.BaseRequest) -> None:
    if request.can_read_body:
        async for piece in request.content.iter_chunked(PIECE_BYTES):
            _send_message(call, {"type": "http.request", "body": piece, "more_body": True})
    _send_message(call, {"type": "http.request", "body": b"", "more_body": False})


async def _receive(request: web.BaseRequest, target: Path) -> str:
    """Writes a request's body to a file in one step; returns its MD5, which object stores give back as the ETag."""
    digest = hashlib.md5(usedforsecurity=False)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    with part.open("wb") as sink:
        async for piece in request.content.iter_chunked(PIECE_BYTES):
            digest.update(piece)
            sink.write(piece)
    part.replace(target)
    return digest.hexdigest()


class BlobHandlers:
    """Arguments, results and files too large for a message, transferred by HTTP."""

    def __init__(self, web_server: WebServer) -> None:
        self._web = web_server

    async def BlobCreate(self, _: api_pb2.BlobCreateRequest, __: Container | None) -> api_pb2.BlobCreateResponse:
        blob_id = new_id("bl")
        urls = api_pb2.UploadUrlList(items=[self._web.blob_url(blob_id)])
        return api_pb2.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id], upload_urls=urls)

    async def BlobGet(self, request: api_pb2.BlobGetRequest, _: Container | None) -> api_pb2.BlobGetResponse:
        if not self._web.blob_path(request.blob_id).exists():
            raise GRPCError(Status.NOT_FOUND, f"Blob {request.blob_id} not found")
        return api_pb2.BlobGetResponse(download_url=self._web.blob_url(request.blob_id))
