"""Volumes: the committed files of each, for the CLI and the client; commit and reload, for containers."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.fakes.modal.conditions import FaultCounter
from tests.fakes.modal.state import DEFAULT_ENVIRONMENT, Container, State, new_id
from tests.fakes.modal.volume_view import VolumeView, replace_file, session_pids
from tests.fakes.modal.web import WebServer

Caller = Container | None
BLOCK_BYTES = 8 * 1024 * 1024
"""The block size in which the client reads files and writes version 2 (`modal._utils.blob_utils.BLOCK_SIZE`)."""


@dataclass
class Volume:
    """A Volume and the folder of its committed files."""

    volume_id: str
    name: str
    environment: str
    version: int
    committed: Path
    created_at: float = field(default_factory=time.time)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def path(self, inside: str) -> Path:
        """The committed file at a path inside the Volume; a path that leaves it is refused."""
        parts = PurePosixPath("/", inside).parts[1:]
        if ".." in parts:
            raise GRPCError(Status.INVALID_ARGUMENT, f"path {inside!r} leaves the volume")
        return self.committed.joinpath(*parts)

    def metadata(self) -> api_pb2.VolumeMetadata:
        """The Volume as its handle knows it."""
        creation = api_pb2.CreationInfo(created_at=self.created_at, created_by="fake-modal")
        return api_pb2.VolumeMetadata(version=self.version, name=self.name, creation_info=creation)


class VolumeHandlers:
    """Everything `modal.Volume` and `modal volume` ask for."""

    def __init__(self, state: State, web_server: WebServer, faults: FaultCounter) -> None:
        self._state = state
        self._web = web_server
        self._faults = faults
        self.volumes: dict[str, Volume] = {}

    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest, _: Caller
    ) -> api_pb2.VolumeGetOrCreateResponse:
        volume = self.named(request.deployment_name, request.environment_name)
        if volume is not None:
            if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
                raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{volume.name}' already exists")
            if request.version and request.version != volume.version:
                raise GRPCError(
                    Status.FAILED_PRECONDITION,
                    f"Volume '{volume.name}' has version {volume.version}, requested {request.version}",
                )
        elif request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found")
        else:
            volume_id = new_id("vo")
            volume = Volume(
                volume_id,
                request.deployment_name,
                request.environment_name or DEFAULT_ENVIRONMENT,
                request.version or api_pb2.VOLUME_FS_VERSION_V1,
                self._state.folder / "volumes" / volume_id,
            )
            volume.committed.mkdir(parents=True)
            self.volumes[volume_id] = volume
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.volume_id, version=volume.version, metadata=volume.metadata()
        )

    def named(self, name: str, environment: str = "") -> Volume | None:
        """The Volume of that name, if there is one."""
        key = (name, environment or DEFAULT_ENVIRONMENT)
        return next((each for each in self.volumes.values() if name and (each.name, each.environment) == key), None)

    async def VolumeGetById(self, request: api_pb2.VolumeGetByIdRequest, _: Caller) -> api_pb2.VolumeGetByIdResponse:
        volume = self._volume(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.volume_id, metadata=volume.metadata())

    async def VolumeList(self, request: api_pb2.VolumeListRequest, _: Caller) -> api_pb2.VolumeListResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        return api_pb2.VolumeListResponse(
            items=[
                api_pb2.VolumeListItem(
                    label=volume.name,
                    volume_id=volume.volume_id,
                    created_at=volume.created_at,
                    metadata=volume.metadata(),
                )
                for volume in self.volumes.values()
                if volume.name and volume.environment == environment
            ],
            environment_name=environment,
        )

    async def VolumeHeartbeat(self, _: api_pb2.VolumeHeartbeatRequest, __: Caller) -> Empty:
        return Empty()

    async def VolumeDelete(self, request: api_pb2.VolumeDeleteRequest, _: Caller) -> Empty:
        volume = self.volumes.pop(request.volume_id, None)
        if volume is not None:
            await asyncio.to_thread(shutil.rmtree, volume.committed)
        return Empty()

    async def VolumeRename(self, request: api_pb2.VolumeRenameRequest, _: Caller) -> Empty:
        self._volume(request.volume_id).name = request.name
        return Empty()

    async def mount(self, container: Container) -> None:
        """Gives a new container its view of every Volume that its function mounts."""
        for mount in container.definition.function.volume_mounts:
            volume = self._volume(mount.volume_id)
            async with volume.lock:
                container.views[mount.volume_id] = await asyncio.to_thread(
                    VolumeView,
                    volume.committed,
                    container.folder / "volumes" / mount.volume_id,
                    mount.mount_path,
                    mount.read_only,
                    mount.sub_path,
                )

    async def VolumeCommit(self, request: api_pb2.VolumeCommitRequest, caller: Caller) -> api_pb2.VolumeCommitResponse:
        view = self._view(request.volume_id, caller)
        if view.read_only:
            raise GRPCError(Status.FAILED_PRECONDITION, "volume is mounted read-only")
        await asyncio.sleep(self._faults.conditions.commit_s)
        async with self._volume(request.volume_id).lock:
            await asyncio.to_thread(view.commit)
        return api_pb2.VolumeCommitResponse(skip_reload=False)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest, caller: Caller) -> Empty:
        view = self._view(request.volume_id, caller)
        assert caller is not None
        assert caller.process is not None
        await asyncio.sleep(self._faults.conditions.reload_s)
        async with self._volume(request.volume_id).lock:
            held = await asyncio.to_thread(view.open_file, session_pids(caller.process.pid))
            if held is not None:
                message = f"there are open files preventing the operation: path {held} is open"
                raise GRPCError(Status.FAILED_PRECONDITION, message)
            await asyncio.to_thread(view.reload)
        return Empty()

    def _view(self, volume_id: str, caller: Caller) -> VolumeView:
        if caller is None or volume_id not in caller.views:
            raise GRPCError(Status.FAILED_PRECONDITION, f"volume {volume_id} is not mounted where this was called")
        return caller.views[volume_id]

    async def VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest, _: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        yield api_pb2.VolumeListFilesResponse(entries=await self._entries(request))

    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request, _: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        yield api_pb2.VolumeListFiles2Response(entries=await self._entries(request))

    async def _entries(
        self, request: api_pb2.VolumeListFilesRequest | api_pb2.VolumeListFiles2Request
    ) -> list[api_pb2.FileEntry]:
        volume = self._volume(request.volume_id)
        start = volume.path(request.path)
        if not start.exists():
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path}")
        if start.is_file():
            return [_entry(start, volume.committed)]
        return [
            _entry(path, volume.committed)
            for path in sorted(start.rglob("*") if request.recursive else start.iterdir())
        ]

    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest, _: Caller) -> Empty:
        volume = self._volume(request.volume_id)
        targets = {file.filename: volume.path(file.filename) for file in request.files}
        _refuse_existing(targets, forbidden=request.disallow_overwrite_existing_files)
        for file in request.files:
            content = self._state.content(file.sha256_hex)
            await asyncio.to_thread(replace_file, content, targets[file.filename])
        return Empty()

    async def VolumePutFiles2(
        self, request: api_pb2.VolumePutFiles2Request, _: Caller
    ) -> api_pb2.VolumePutFiles2Response:
        volume = self._volume(request.volume_id)
        targets = {file.path: volume.path(file.path) for file in request.files}
        _refuse_existing(targets, forbidden=request.disallow_overwrite_existing_files)
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(
                file_index=file_index,
                block_index=block_index,
                put_url=self._web.block_url(block.contents_sha256.hex()),
            )
            for file_index, file in enumerate(request.files)
            for block_index, block in enumerate(file.blocks)
            if not self._state.content(block.contents_sha256.hex()).exists()
        ]
        if not missing:
            for file in request.files:
                part = self._state.folder / "content" / new_id("part")
                with part.open("wb") as target:
                    for index, block in enumerate(file.blocks):
                        # A block arrives without its trailing zeros; seeking over them puts them back.
                        target.seek(index * BLOCK_BYTES)
                        target.write(self._state.content(block.contents_sha256.hex()).read_bytes())
                    target.truncate(file.size)
                replace_file(part, targets[file.path], link=True)
                part.unlink()
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    async def VolumeGetFile2(self, request: api_pb2.VolumeGetFile2Request, _: Caller) -> api_pb2.VolumeGetFile2Response:
        path = self._volume(request.volume_id).path(request.path)
        if not path.is_file():
            raise GRPCError(Status.NOT_FOUND, f"No such file: {request.path}")
        size = path.stat().st_size
        end = min(size, request.start + request.len) if request.len else size
        start, urls = min(request.start, end), []
        position = start
        while position < end:
            stop = min(end, (position // BLOCK_BYTES + 1) * BLOCK_BYTES)
            urls.append(self._web.range_url(path, position, stop))
            position = stop
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=start, len=end - start)

    async def VolumeCopyFiles(self, request: api_pb2.VolumeCopyFilesRequest, _: Caller) -> Empty:
        return await self._copy(request)

    async def VolumeCopyFiles2(self, request: api_pb2.VolumeCopyFiles2Request, _: Caller) -> Empty:
        return await self._copy(request)

    async def _copy(self, request: api_pb2.VolumeCopyFilesRequest | api_pb2.VolumeCopyFiles2Request) -> Empty:
        volume = self._volume(request.volume_id)
        target = volume.path(request.dst_path)
        for name in request.src_paths:
            source = volume.path(name)
            if not source.exists() or (source.is_dir() and not request.recursive):
                raise GRPCError(Status.NOT_FOUND, f"No such file: {name}")
            into = target / source.name if target.is_dir() else target
            await asyncio.to_thread(shutil.copytree if source.is_dir() else replace_file, source, into)
        return Empty()

    async def VolumeRemoveFile(self, request: api_pb2.VolumeRemoveFileRequest, _: Caller) -> Empty:
        return await self._remove(request)

    async def VolumeRemoveFile2(self, request: api_pb2.VolumeRemoveFile2Request, _: Caller) -> Empty:
        return await self._remove(request)

    async def _remove(self, request: api_pb2.VolumeRemoveFileRequest | api_pb2.VolumeRemoveFile2Request) -> Empty:
        path = self._volume(request.volume_id).path(request.path)
        if not path.exists():
            raise GRPCError(Status.NOT_FOUND, f"No such file or directory: {request.path}")
        if path.is_file():
            path.unlink()
        elif request.recursive:
            await asyncio.to_thread(shutil.rmtree, path)
        else:
            raise GRPCError(Status.INVALID_ARGUMENT, f"{request.path} is a directory; remove it recursively")
        return Empty()

    def _volume(self, volume_id: str) -> Volume:
        if volume_id not in self.volumes:
            raise GRPCError(Status.NOT_FOUND, f"Volume {volume_id} not found")
        return self.volumes[volume_id]


def _refuse_existing(targets: dict[str, Path], *, forbidden: bool) -> None:
    existing = [name for name, path in targets.items() if path.exists()]
    if forbidden and existing:
        raise GRPCError(Status.ALREADY_EXISTS, f"{existing[0]}: already exists (use --force to overwrite)")


def _entry(path: Path, root: Path) -> api_pb2.FileEntry:
    status = path.lstat()
    kind = api_pb2.FileEntry.SYMLINK if path.is_symlink() else api_pb2.FileEntry.FILE
    return api_pb2.FileEntry(
        path=str(path.relative_to(root)),
        type=api_pb2.FileEntry.DIRECTORY if path.is_dir() and not path.is_symlink() else kind,
        mtime=int(status.st_mtime),
        size=status.st_size,
    )
