"""Dicts and queues: key-value maps and lists of opaque bytes, with the atomic create that Modal promises.

Every handler runs to its end on the server's one event loop, so an update with `if_not_exists` is atomic.
"""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.fakes.modal.state import DEFAULT_ENVIRONMENT, Container, Signal, new_id

Caller = Container | None


DICT_EXPIRY_S = 7 * 86_400.0
"""After how long without a read or a write an entry of a Dict is gone."""


@dataclass
class NamedDict:
    """One Dict: serialised keys to serialised values, and when each was read or written last by the server's clock."""

    dict_id: str
    name: str
    environment: str
    entries: dict[bytes, bytes] = field(default_factory=dict)
    used_at: dict[bytes, float] = field(default_factory=dict)
    created_at: float = field(default_factory=time.time)


@dataclass
class NamedQueue:
    """One Queue: a list per partition."""

    queue_id: str
    name: str
    environment: str
    partitions: dict[bytes, deque[bytes]] = field(default_factory=dict)
    filled: Signal = field(default_factory=Signal)

    def partition(self, key: bytes) -> deque[bytes]:
        return self.partitions.setdefault(key, deque())


class DictHandlers:
    """Everything `modal.Dict` asks for. `get`, `put` and `update` use an entry; `contains`, `len` and listings do not.

    Args:
        clock: seconds since 1970, by which entries expire.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.dicts: dict[str, NamedDict] = {}
        self._clock = clock

    async def DictGetOrCreate(
        self, request: api_pb2.DictGetOrCreateRequest, _: Caller
    ) -> api_pb2.DictGetOrCreateResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        found = [
            each
            for each in self.dicts.values()
            if (each.name, each.environment) == (request.deployment_name, environment)
        ]
        if request.deployment_name and found:
            if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                raise GRPCError(Status.ALREADY_EXISTS, f"Dict '{request.deployment_name}' already exists")
            kept = found[0]
        elif request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Dict '{request.deployment_name}' not found in '{environment}'")
        else:
            kept = NamedDict(new_id("di"), request.deployment_name, environment)
            self._put(kept, {entry.key: entry.value for entry in request.data})
            self.dicts[kept.dict_id] = kept
        return api_pb2.DictGetOrCreateResponse(dict_id=kept.dict_id, metadata=_metadata(kept))

    async def DictGetById(self, request: api_pb2.DictGetByIdRequest, _: Caller) -> api_pb2.DictGetByIdResponse:
        kept = self._dict(request.dict_id)
        return api_pb2.DictGetByIdResponse(dict_id=kept.dict_id, metadata=_metadata(kept))

    async def DictList(self, request: api_pb2.DictListRequest, _: Caller) -> api_pb2.DictListResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        return api_pb2.DictListResponse(
            dicts=[
                api_pb2.DictListResponse.DictInfo(
                    name=kept.name, created_at=kept.created_at, dict_id=kept.dict_id, metadata=_metadata(kept)
                )
                for kept in self.dicts.values()
                if kept.name and kept.environment == environment
            ],
            environment_name=environment,
        )

    async def DictDelete(self, request: api_pb2.DictDeleteRequest, _: Caller) -> Empty:
        self.dicts.pop(request.dict_id, None)
        return Empty()

    async def DictHeartbeat(self, _: api_pb2.DictHeartbeatRequest, __: Caller) -> Empty:
        return Empty()

    async def DictClear(self, request: api_pb2.DictClearRequest, _: Caller) -> Empty:
        kept = self._dict(request.dict_id)
        kept.entries.clear()
        kept.used_at.clear()
        return Empty()

    async def DictGet(self, request: api_pb2.DictGetRequest, _: Caller) -> api_pb2.DictGetResponse:
        kept = self._dict(request.dict_id)
        value = kept.entries.get(request.key)
        if value is not None:
            kept.used_at[request.key] = self._clock()
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    async def DictContains(self, request: api_pb2.DictContainsRequest, _: Caller) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(found=request.key in self._dict(request.dict_id).entries)

    async def DictLen(self, request: api_pb2.DictLenRequest, _: Caller) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse(len=len(self._dict(request.dict_id).entries))

    async def DictUpdate(self, request: api_pb2.DictUpdateRequest, _: Caller) -> api_pb2.DictUpdateResponse:
        kept = self._dict(request.dict_id)
        if request.if_not_exists and any(update.key in kept.entries for update in request.updates):
            return api_pb2.DictUpdateResponse(created=False)
        self._put(kept, {update.key: update.value for update in request.updates})
        return api_pb2.DictUpdateResponse(created=True)

    async def DictPop(self, request: api_pb2.DictPopRequest, _: Caller) -> api_pb2.DictPopResponse:
        kept = self._dict(request.dict_id)
        value = kept.entries.pop(request.key, None)
        kept.used_at.pop(request.key, None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def DictContents(self, request: api_pb2.DictContentsRequest, _: Caller) -> AsyncIterator[api_pb2.DictEntry]:
        for key, value in list(self._dict(request.dict_id).entries.items()):
            yield api_pb2.DictEntry(key=key if request.keys else b"", value=value if request.values else b"")

    def _put(self, kept: NamedDict, entries: dict[bytes, bytes]) -> None:
        kept.entries.update(entries)
        kept.used_at.update(dict.fromkeys(entries, self._clock()))

    def _dict(self, dict_id: str) -> NamedDict:
        """The Dict of that id, without the entries that have expired."""
        if dict_id not in self.dicts:
            raise GRPCError(Status.NOT_FOUND, f"Dict {dict_id} not found")
        kept, now = self.dicts[dict_id], self._clock()
        if now - min(kept.used_at.values(), default=now) > DICT_EXPIRY_S:
            for key in [key for key, used_at in kept.used_at.items() if now - used_at > DICT_EXPIRY_S]:
                kept.used_at.pop(key)
                kept.entries.pop(key, None)
        return kept


def _metadata(kept: NamedDict) -> api_pb2.DictMetadata:
    return api_pb2.DictMetadata(
        name=kept.name, creation_info=api_pb2.CreationInfo(created_at=kept.created_at, created_by="fake-modal")
    )


class QueueHandlers:
    """What `modal.Queue` asks for, without partition expiry."""

    def __init__(self) -> None:
        self.queues: dict[str, NamedQueue] = {}

    async def QueueGetOrCreate(
        self, request: api_pb2.QueueGetOrCreateRequest, _: Caller
    ) -> api_pb2.QueueGetOrCreateResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        found = [
            each
            for each in self.queues.values()
            if (each.name, each.environment) == (request.deployment_name, environment)
        ]
        if request.deployment_name and found:
            queue = found[0]
        elif request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Queue '{request.deployment_name}' not found in '{environment}'")
        else:
            queue = NamedQueue(new_id("qu"), request.deployment_name, environment)
            self.queues[queue.queue_id] = queue
        return api_pb2.QueueGetOrCreateResponse(
            queue_id=queue.queue_id, metadata=api_pb2.QueueMetadata(name=queue.name)
        )

    async def QueueHeartbeat(self, _: api_pb2.QueueHeartbeatRequest, __: Caller) -> Empty:
        return Empty()

    async def QueuePut(self, request: api_pb2.QueuePutRequest, _: Caller) -> Empty:
        queue = self.queues[request.queue_id]
        queue.partition(request.partition_key).extend(request.values)
        queue.filled.notify()
        return Empty()

    async def QueueGet(self, request: api_pb2.QueueGetRequest, _: Caller) -> api_pb2.QueueGetResponse:
        queue = self.queues[request.queue_id]
        values = queue.partition(request.partition_key)
        await queue.filled.until(lambda: values, request.timeout)
        return api_pb2.QueueGetResponse(values=[values.popleft() for _ in range(min(request.n_values, len(values)))])

    async def QueueLen(self, request: api_pb2.QueueLenRequest, _: Caller) -> api_pb2.QueueLenResponse:
        queue = self.queues[request.queue_id]
        counted = queue.partitions.values() if request.total else [queue.partition(request.partition_key)]
        return api_pb2.QueueLenResponse(len=sum(len(values) for values in counted))

    async def QueueClear(self, request: api_pb2.QueueClearRequest, _: Caller) -> Empty:
        queue = self.queues[request.queue_id]
        for key in list(queue.partitions) if request.all_partitions else [request.partition_key]:
            queue.partition(key).clear()
        return Empty()

    async def QueueDelete(self, request: api_pb2.QueueDeleteRequest, _: Caller) -> Empty:
        self.queues.pop(request.queue_id, None)
        return Empty()
