"""What containers are made of: mounted files by their SHA-256, images, and secrets.

Images are never built; only the ENV lines of each count.
"""

import hashlib
import shlex
import shutil
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.fakes.modal.state import DEFAULT_ENVIRONMENT, Container, Image, Secret, State, new_id
from tests.fakes.modal.web import WebServer

Caller = Container | None
IMAGE_BUILDER_VERSION = "2025.06"


class FileHandlers:
    """Mounts (files by their SHA-256), images and secrets."""

    def __init__(self, state: State, web_server: WebServer) -> None:
        self._state = state
        self._web = web_server

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, _: Caller
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [sha256 for sha256 in request.sha256_hex_hashes if not self._state.content(sha256).exists()]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request: api_pb2.MountPutFileRequest, _: Caller) -> api_pb2.MountPutFileResponse:
        path = self._state.content(request.sha256_hex)
        which = request.WhichOneof("data_oneof")
        if not path.exists() and which is not None:
            if which == "data_blob_id":
                shutil.copyfile(self._web.blob_path(request.data_blob_id), path)
            else:
                path.write_bytes(request.data)
            seen = hashlib.sha256(path.read_bytes()).hexdigest()
            if seen != request.sha256_hex:
                path.unlink()
                raise GRPCError(Status.INVALID_ARGUMENT, f"sha256 is {seen}, expected {request.sha256_hex}")
        return api_pb2.MountPutFileResponse(exists=path.exists())

    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest, _: Caller
    ) -> api_pb2.MountGetOrCreateResponse:
        # Mounts found by name are Modal's own (the client, a standalone Python); here the installed ones are used.
        mount_id = new_id("mo")
        self._state.mounts[mount_id] = list(request.files)
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=digest)
        return api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata)

    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, _: Caller
    ) -> api_pb2.ImageGetOrCreateResponse:
        for known in self._state.images.values():
            if known.definition == request.image:
                return _built(known)
        environment: dict[str, str] = {}
        for base in request.image.base_images:
            environment.update(self._state.images[base.image_id].environment)
        for command in request.image.dockerfile_commands:
            if command.startswith("ENV "):
                environment.update(part.split("=", 1) for part in shlex.split(command[4:]) if "=" in part)
        image = Image(new_id("im"), request.image, environment)
        self._state.images[image.image_id] = image
        return _built(image)

    async def ImageFromId(self, request: api_pb2.ImageFromIdRequest, _: Caller) -> api_pb2.ImageFromIdResponse:
        if request.image_id not in self._state.images:
            raise GRPCError(Status.NOT_FOUND, f"Image {request.image_id} not found")
        return api_pb2.ImageFromIdResponse(image_id=request.image_id)

    async def ImageJoinStreaming(
        self, _: api_pb2.ImageJoinStreamingRequest, __: Caller
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        success = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        yield api_pb2.ImageJoinStreamingResponse(result=success, eof=True)

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest, _: Caller
    ) -> api_pb2.SecretGetOrCreateResponse:
        secret = self._named_secret(request) if request.deployment_name else None
        if secret is None:
            environment = request.environment_name or DEFAULT_ENVIRONMENT
            secret = Secret(new_id("st"), request.deployment_name, environment, dict(request.env_dict))
            self._state.secrets[secret.secret_id] = secret
        missing = [key for key in request.required_keys if key not in secret.values]
        if missing:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{secret.name}' is missing key(s) {', '.join(missing)}")
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret.secret_id, metadata=_secret_metadata(secret))

    def _named_secret(self, request: api_pb2.SecretGetOrCreateRequest) -> Secret | None:
        """The secret of that name, after applying the creation type; None where it has to be created."""
        kind, environment = request.object_creation_type, request.environment_name or DEFAULT_ENVIRONMENT
        found = [
            secret
            for secret in self._state.secrets.values()
            if (secret.name, secret.environment) == (request.deployment_name, environment)
        ]
        if not found:
            if kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found in '{environment}'")
            return None
        if kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Secret '{request.deployment_name}' already exists")
        if kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            found[0].values = dict(request.env_dict)
        return found[0]

    async def SecretUpdate(self, request: api_pb2.SecretUpdateRequest, _: Caller) -> Empty:
        values = self._state.secrets[request.secret_id].values
        for update in request.updates:
            if update.HasField("value"):
                values[update.key] = update.value
            else:
                values.pop(update.key, None)
        return Empty()

    async def SecretGetInfo(self, request: api_pb2.SecretGetInfoRequest, _: Caller) -> api_pb2.SecretGetInfoResponse:
        return api_pb2.SecretGetInfoResponse(metadata=_secret_metadata(self._state.secrets[request.secret_id]))

    async def SecretList(self, request: api_pb2.SecretListRequest, _: Caller) -> api_pb2.SecretListResponse:
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        return api_pb2.SecretListResponse(
            items=[
                api_pb2.SecretListItem(
                    label=secret.name,
                    created_at=secret.created_at,
                    environment_name=environment,
                    secret_id=secret.secret_id,
                    metadata=_secret_metadata(secret),
                )
                for secret in self._state.secrets.values()
                if secret.name and secret.environment == environment
            ],
            environment_name=environment,
        )

    async def SecretDelete(self, request: api_pb2.SecretDeleteRequest, _: Caller) -> Empty:
        self._state.secrets.pop(request.secret_id, None)
        return Empty()


def _built(image: Image) -> api_pb2.ImageGetOrCreateResponse:
    return api_pb2.ImageGetOrCreateResponse(
        image_id=image.image_id,
        result=api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS),
        metadata=api_pb2.ImageMetadata(
            python_version_info="Python 3.12.8", image_builder_version=IMAGE_BUILDER_VERSION
        ),
    )


def _secret_metadata(secret: Secret) -> api_pb2.SecretMetadata:
    return api_pb2.SecretMetadata(
        name=secret.name,
        creation_info=api_pb2.CreationInfo(created_at=secret.created_at, created_by="fake-modal"),
        keys=sorted(secret.values),
        environment_name=secret.environment,
    )
