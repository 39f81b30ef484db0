"""The gRPC service: every method of Modal's ClientService, dispatched to the handler with a function of that name.

The methods come from the protobuf descriptor, so a handler is a plain `async def Name(request, caller)` that returns
the response (or yields responses where the method streams). A method without a handler is answered UNIMPLEMENTED and
counted, so that a test can see what the client asked for. Knows nothing of what the methods mean.
"""

import asyncio
import traceback
from collections import Counter
from collections.abc import Mapping
from typing import Any

import grpclib.const
import grpclib.server
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.fakes.modal.conditions import FaultCounter, lost, throttled
from tests.fakes.modal.state import Container, State

TASK_HEADER = "x-fake-modal-task"

# A function with `restrict_modal_access` reaches its own inputs, outputs and volumes, and nothing else.
ALLOWED_TO_UNTRUSTED = frozenset(
    {
        "AuthTokenGet",
        "BlobCreate",
        "BlobGet",
        "ClientHello",
        "ContainerCheckpoint",
        "ContainerHeartbeat",
        "ContainerHello",
        "ContainerStop",
        "FunctionCallGetDataIn",
        "FunctionCallPutDataOut",
        "FunctionGetDynamicConcurrency",
        "FunctionGetInputs",
        "FunctionPutOutputs",
        "TaskResult",
        "VolumeCommit",
        "VolumeReload",
    }
)


class Service:
    """What `grpclib.server.Server` serves: a mapping from method path to handler."""

    def __init__(self, state: State, handlers: list[object], *, token: tuple[str, str], faults: FaultCounter) -> None:
        self._state = state
        self._handlers = handlers
        self._token = token
        self._faults = faults
        self.calls: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.failures: list[str] = []

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        service = api_pb2.DESCRIPTOR.services_by_name["ModalClient"]
        mapping = {}
        for method in service.methods:
            streams = method.server_streaming
            mapping[f"/{service.full_name}/{method.name}"] = grpclib.const.Handler(
                self._serve(method.name, streams),
                grpclib.const.Cardinality.UNARY_STREAM if streams else grpclib.const.Cardinality.UNARY_UNARY,
                GetMessageClass(method.input_type),
                GetMessageClass(method.output_type),
            )
        return mapping

    def _serve(self, name: str, streams: bool) -> Any:
        implementation = next((getattr(each, name) for each in self._handlers if hasattr(each, name)), None)

        async def serve(stream: grpclib.server.Stream[Message, Message]) -> None:
            request = await stream.recv_message()
            assert request is not None
            if implementation is None:
                self.unanswered[name] += 1
                raise GRPCError(Status.UNIMPLEMENTED, f"the fake Modal server does not implement {name}")
            self.calls[name] += 1
            caller = self._admit(name, stream.metadata or {})
            fault = await self._meet_conditions(name)
            try:
                if streams:
                    async for response in implementation(request, caller):
                        await stream.send_message(response)
                else:
                    response = await implementation(request, caller)
                    if fault == "lost_after":
                        raise lost()
                    await stream.send_message(response)
            except GRPCError:
                raise
            except Exception as error:
                self.failures.append(f"{name}: {traceback.format_exc()}")
                # DATA_LOSS, for one, is a status that the client does not retry.
                raise GRPCError(Status.DATA_LOSS, f"the fake Modal server failed in {name}: {error!r}") from error

        return serve

    async def _meet_conditions(self, name: str) -> str | None:
        """Wait, or raise, as the conditions say of this call; returns its fault."""
        conditions = self._faults.conditions
        if not conditions.applies_to(name):
            return None
        await asyncio.sleep(conditions.latency_s)
        fault = self._faults.next_fault(name)
        if fault == "lost_before":
            raise lost()
        if fault == "throttled":
            raise throttled(conditions.retry_after_s)
        if fault == "late":
            await asyncio.sleep(conditions.late_s)
        return fault

    def _admit(self, name: str, metadata: Mapping[str, Any]) -> Container | None:
        """The caller: a container of this server, or None for a client with the right token."""
        if metadata.get("x-modal-client-type") == str(api_pb2.CLIENT_TYPE_CONTAINER):
            container = self._state.containers.get(metadata.get(TASK_HEADER, ""))
            if container is None:
                raise GRPCError(Status.UNAUTHENTICATED, "no container of this server")
            if container.definition.function.untrusted and name not in ALLOWED_TO_UNTRUSTED:
                raise GRPCError(Status.PERMISSION_DENIED, f"{name}: this function has restrict_modal_access")
            return container
        if (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret")) != self._token:
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed or unknown")
        return None
