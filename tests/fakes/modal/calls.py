"""Function calls from both sides: the client's (map, outputs, cancel) and the container's (inputs, outputs, life)."""

import asyncio
import json
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.fakes.modal.conditions import FaultCounter
from tests.fakes.modal.launch import restore_state_path
from tests.fakes.modal.runner import Runner
from tests.fakes.modal.state import Call, Container, Function, Input, State, new_id, put_chunk, stream

Caller = Container | None
HEARTBEAT_HOLD_S = 10.0
"""How long a container's heartbeat request stays open to carry a cancellation: below the client's timeout of 15 s."""


def new_call(state: State, function: Function, invocation_type: int, parent_input_id: str = "") -> Call:
    """A new call without inputs, registered by its id."""
    call = Call(new_id("fc"), function, invocation_type, parent_input_id)
    state.calls[call.call_id] = call
    return call


def add_input(state: State, call: Call, payload: api_pb2.FunctionInput, index: int = 0) -> Input:
    """Adds an input to a call; it runs once it is enqueued."""
    given = Input(new_id("in"), call, index, payload)
    call.inputs.append(given)
    state.inputs[given.input_id] = given
    return given


class CallHandlers:
    """The client's side of a function call."""

    def __init__(self, state: State, runner: Runner) -> None:
        self._state = state
        self._runner = runner

    async def FunctionMap(self, request: api_pb2.FunctionMapRequest, _: Caller) -> api_pb2.FunctionMapResponse:
        function = self._state.functions.get(request.function_id)
        if function is None or not function.app.is_live:
            raise GRPCError(Status.NOT_FOUND, f"Function {request.function_id} not found, or its app is stopped")
        call = new_call(
            self._state, function, request.function_call_invocation_type, parent_input_id=request.parent_input_id
        )
        return api_pb2.FunctionMapResponse(
            function_call_id=call.call_id,
            function_call_jwt=call.call_id,
            pipelined_inputs=self._put(call, list(request.pipelined_inputs)),
            retry_policy=function.effective().function.retry_policy,
            sync_client_retries_enabled=True,
        )

    async def FunctionPutInputs(
        self, request: api_pb2.FunctionPutInputsRequest, _: Caller
    ) -> api_pb2.FunctionPutInputsResponse:
        call = self._call(request.function_call_id)
        return api_pb2.FunctionPutInputsResponse(inputs=self._put(call, list(request.inputs)))

    def _put(
        self, call: Call, items: list[api_pb2.FunctionPutInputsItem]
    ) -> list[api_pb2.FunctionPutInputsResponseItem]:
        put = []
        for item in items:
            given = add_input(self._state, call, item.input, item.idx)
            self._runner.enqueue(given)
            put.append(
                api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=given.input_id, input_jwt=given.input_id)
            )
        return put

    async def FunctionFinishInputs(self, _: api_pb2.FunctionFinishInputsRequest, __: Caller) -> Empty:
        return Empty()

    async def FunctionRetryInputs(
        self, request: api_pb2.FunctionRetryInputsRequest, _: Caller
    ) -> api_pb2.FunctionRetryInputsResponse:
        for item in request.inputs:
            given = self._state.inputs[item.input_jwt]
            given.output = None
            given.retry_count = item.retry_count or given.retry_count + 1
            self._runner.enqueue(given)
        return api_pb2.FunctionRetryInputsResponse(input_jwts=[item.input_jwt for item in request.inputs])

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest, _: Caller
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self._call(request.function_call_id)
        position = int(request.last_entry_id.split("-")[0] or 0)

        def ready() -> list[api_pb2.FunctionGetOutputsItem]:
            if request.HasField("start_idx"):
                wanted = range(request.start_idx, request.end_idx + 1)
                return [each.output for each in call.inputs if each.output is not None and each.index in wanted]
            return call.outputs[position:]

        await call.changed.until(ready, request.timeout)
        outputs = ready()
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs,
            idxs=[output.idx for output in outputs],
            last_entry_id=f"{len(call.outputs)}-0",
            num_unfinished_inputs=sum(given.output is None for given in call.inputs),
        )

    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest, _: Caller) -> Empty:
        self._runner.cancel(self._call(request.function_call_id), terminate_containers=request.terminate_containers)
        return Empty()

    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest, _: Caller
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self._call(request.function_call_id)
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.call_id,
            num_inputs=len(call.inputs),
            metadata=api_pb2.FunctionCallHandleMetadata(
                app_id=call.function.app.app_id, function_id=call.function.function_id
            ),
        )

    async def FunctionCallList(
        self, request: api_pb2.FunctionCallListRequest, _: Caller
    ) -> api_pb2.FunctionCallListResponse:
        calls = [call for call in self._state.calls.values() if call.function.function_id == request.function_id]
        return api_pb2.FunctionCallListResponse(
            function_calls=[
                api_pb2.FunctionCallInfo(
                    function_call_id=call.call_id, created_at=call.created_at, total_inputs=len(call.inputs)
                )
                for call in calls
            ]
        )

    async def FunctionGetCallGraph(
        self, request: api_pb2.FunctionGetCallGraphRequest, _: Caller
    ) -> api_pb2.FunctionGetCallGraphResponse:
        calls = [self._call(request.function_call_id)]
        for call in calls:
            own = {given.input_id for given in call.inputs}
            calls.extend(each for each in self._state.calls.values() if each.parent_input_id in own)
        return api_pb2.FunctionGetCallGraphResponse(
            inputs=[
                api_pb2.InputCallGraphInfo(
                    input_id=given.input_id,
                    status=given.output.result.status if given.output else 0,
                    function_call_id=call.call_id,
                    task_id=given.output.task_id if given.output else "",
                )
                for call in calls
                for given in call.inputs
            ],
            function_calls=[
                api_pb2.FunctionCallCallGraphInfo(
                    function_call_id=call.call_id,
                    parent_input_id=call.parent_input_id,
                    function_name=call.function.tag,
                    module_name=call.function.effective().function.module_name,
                )
                for call in calls
            ],
        )

    async def FunctionCallGetDataOut(
        self, request: api_pb2.FunctionCallGetDataRequest, _: Caller
    ) -> AsyncIterator[api_pb2.DataChunk]:
        call = self._call(request.function_call_id)
        async for chunk in stream(call, call.data_out, request.last_index):
            yield chunk

    def _call(self, call_id: str) -> Call:
        if call_id not in self._state.calls:
            raise GRPCError(Status.NOT_FOUND, f"Function call {call_id} not found")
        return self._state.calls[call_id]


class ContainerHandlers:
    """The container's side of a function call."""

    def __init__(self, state: State, runner: Runner, faults: FaultCounter) -> None:
        self._state = state
        self._runner = runner
        self._faults = faults

    async def ContainerHello(self, _: Empty, __: Caller) -> Empty:
        return Empty()

    async def ContainerHeartbeat(
        self, _: api_pb2.ContainerHeartbeatRequest, caller: Caller
    ) -> api_pb2.ContainerHeartbeatResponse:
        container = _container(caller)
        await container.cancelled.until(lambda: container.cancellations, HEARTBEAT_HOLD_S)
        if not container.cancellations:
            return api_pb2.ContainerHeartbeatResponse()
        input_ids, container.cancellations = container.cancellations, []
        return api_pb2.ContainerHeartbeatResponse(cancel_input_event=api_pb2.CancelInputEvent(input_ids=input_ids))

    async def ContainerCheckpoint(self, _: api_pb2.ContainerCheckpointRequest, caller: Caller) -> Empty:
        container = _container(caller)
        container.note("snapshot")
        await asyncio.sleep(self._faults.conditions.restore_s)
        container.note("restored")
        restore_state_path(container).write_text(json.dumps({"task_id": container.task_id}))
        return Empty()

    async def ContainerStop(self, request: api_pb2.ContainerStopRequest, _: Caller) -> api_pb2.ContainerStopResponse:
        container = self._state.containers.get(request.task_id)
        if container is None:
            raise GRPCError(Status.NOT_FOUND, f"Container {request.task_id} not found")
        self._runner.retire(container)
        if not request.graceful:
            self._runner.kill(container)
        return api_pb2.ContainerStopResponse()

    async def TaskResult(self, request: api_pb2.TaskResultRequest, caller: Caller) -> Empty:
        _container(caller).failure = request.result
        return Empty()

    async def FunctionGetInputs(
        self, _: api_pb2.FunctionGetInputsRequest, caller: Caller
    ) -> api_pb2.FunctionGetInputsResponse:
        attempts = await self._runner.next_attempts(_container(caller))
        if attempts is None:
            return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
        return api_pb2.FunctionGetInputsResponse(
            inputs=[
                api_pb2.FunctionGetInputsItem(
                    input_id=attempt.given.input_id,
                    input=attempt.given.payload,
                    function_call_id=attempt.given.call.call_id,
                    function_call_invocation_type=attempt.given.call.invocation_type,
                    retry_count=attempt.given.retry_count,
                    function_map_idx=attempt.given.index,
                )
                for attempt in attempts
            ]
        )

    async def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest, caller: Caller) -> Empty:
        for item in request.outputs:
            self._runner.finish(_container(caller), item)
        return Empty()

    async def FunctionGetDynamicConcurrency(
        self, request: api_pb2.FunctionGetDynamicConcurrencyRequest, _: Caller
    ) -> api_pb2.FunctionGetDynamicConcurrencyResponse:
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=request.max_concurrency)

    async def FunctionCallGetDataIn(
        self, request: api_pb2.FunctionCallGetDataRequest, _: Caller
    ) -> AsyncIterator[api_pb2.DataChunk]:
        call = self._state.calls[request.function_call_id]
        async for chunk in stream(call, call.data_in, request.last_index):
            yield chunk

    async def FunctionCallPutDataOut(self, request: api_pb2.FunctionCallPutDataRequest, _: Caller) -> Empty:
        call = self._state.calls[request.function_call_id]
        for chunk in request.data_chunks:
            put_chunk(call, call.data_out, chunk)
        return Empty()


def _container(caller: Caller) -> Container:
    if caller is None:
        raise GRPCError(Status.PERMISSION_DENIED, "only a container may call this")
    return caller
