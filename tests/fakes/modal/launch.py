"""Starting a container: its files, its view of each Volume, its environment, and Modal's own entry point as a process.

The process gets a mount namespace of its own (`unshare --mount`), in which the views are bound to their mount paths and
read-only ones are read-only; it dies with the server (`setpriv --pdeathsig`). A function with `block_network` also gets
a network namespace of its own, from which only the server's Unix socket can be reached. Knows nothing of inputs.
"""

import asyncio
import contextlib
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from modal_proto import api_pb2

from tests.fakes.modal.grpc_service import TASK_HEADER
from tests.fakes.modal.state import Container, State
from tests.fakes.modal.volumes import VolumeHandlers

MARK = ".held-by-fake-modal-"


def reason_unavailable() -> str | None:
    """Why containers cannot be started on this machine; None where they can."""
    try:
        subprocess.run(
            ["unshare", "--mount", "--net", "setpriv", "--pdeathsig", "KILL", "true"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"containers need mount and network namespaces (root, util-linux): {error}"
    return None


class MountPoints:
    """The folders of this machine at which containers see their Volumes, kept while a fake server runs.

    The kernel lets any process remove an empty folder that is a mount point in another namespace, and then undoes that
    mount (Linux 3.18 on): the container would write into the machine's folder and commit nothing. So each folder that
    fake servers created holds one mark per server that uses it, and the last server removes it.
    """

    def __init__(self) -> None:
        self._mark = f"{MARK}{uuid.uuid4().hex}"
        self._held: list[Path] = []

    def hold(self, path: Path) -> None:
        """Creates a folder, and keeps it until `release`."""
        while not all(self._holds(folder) for folder in (*reversed(path.parents), path)):
            pass  # another server has just removed one

    def _holds(self, folder: Path) -> bool:
        """Whether a folder stays: it carries our mark, or no fake server created it."""
        if folder in self._held:
            return True
        try:
            is_new = not folder.exists()
            folder.mkdir(exist_ok=True)
            if is_new or any(folder.glob(f"{MARK}*")):
                (folder / self._mark).touch()
                self._held.append(folder)
        except FileNotFoundError:
            return False
        return True

    def release(self) -> None:
        """Removes the marks, and the folders that no other server uses; innermost first."""
        for folder in reversed(self._held):
            (folder / self._mark).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another server uses it, or it is not empty
                folder.rmdir()
        self._held.clear()


class Launcher:
    """Starts container processes for one server, and keeps the mount points that they need."""

    def __init__(self, state: State, volumes: VolumeHandlers, extra_environment: Mapping[str, str]) -> None:
        self._state = state
        self._volumes = volumes
        self._extra_environment = dict(extra_environment)
        self._mount_points = MountPoints()
        self._root = state.folder / "root"
        self.server_url = self.socket_url = ""

    async def launch(self, container: Container, layout: api_pb2.AppLayout) -> asyncio.subprocess.Process:
        """Prepares the container's folder and starts its process."""
        self._root.mkdir(parents=True, exist_ok=True)
        code = self._place_files(container)
        await self._volumes.mount(container)
        for name in ("home", "tmp"):
            (container.folder / name).mkdir(parents=True)
        arguments = self._arguments(container, layout)
        arguments_path = container.folder / "arguments.pb"
        arguments_path.write_bytes(arguments.SerializeToString())
        isolation = ("--net",) if arguments.function_def.block_network else ()
        return await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", *isolation),
            *("sh", "-euc", self._script(container, code)),
            env=self._environment(
                container, arguments_path, snapshots=arguments.function_def.is_checkpointing_function
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    def _place_files(self, container: Container) -> Path:
        """Places the mounted files under the container's folder; returns the folder that holds the files of /root."""
        code = container.folder / "files" / "root"
        code.mkdir(parents=True)
        for mount_id in container.definition.function.mount_ids:
            for file in self._state.mounts[mount_id]:
                target = container.folder / "files" / file.filename.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    os.link(self._state.content(file.sha256_hex), target)
        return code

    def _arguments(self, container: Container, layout: api_pb2.AppLayout) -> api_pb2.ContainerArguments:
        function = container.function
        arguments = api_pb2.ContainerArguments(
            task_id=container.task_id,
            function_id=function.function_id,
            app_id=function.app.app_id,
            function_def=container.definition.function,
            serialized_params=function.serialized_params,
            environment_name=function.app.environment,
            checkpoint_id=f"ch-{container.task_id[3:]}",
            app_layout=layout,
        )
        for dependency in arguments.function_def.object_dependencies:
            volume = self._volumes.volumes.get(dependency.object_id)
            metadata = volume.metadata() if volume else None
            arguments.app_layout.objects.append(
                api_pb2.Object(object_id=dependency.object_id, volume_metadata=metadata)
            )
        # The client asks for snapshots with `checkpointing_enabled`; the server takes them of deployed apps only.
        arguments.function_def.is_checkpointing_function = (
            arguments.function_def.checkpointing_enabled and function.app.state == api_pb2.APP_STATE_DEPLOYED
        )
        return arguments

    def _environment(self, container: Container, arguments_path: Path, *, snapshots: bool) -> dict[str, str]:
        function = container.definition.function
        environment = {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "LANG": "C.UTF-8",
            "HOME": str(container.folder / "home"),
            "TMPDIR": str(container.folder / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            **self._extra_environment,
        }
        image = self._state.images.get(function.image_id)
        if image is not None:
            # PATH of the image names folders that only the image has.
            environment.update((key, value) for key, value in image.environment.items() if key != "PATH")
        for secret_id in function.secret_ids:
            environment.update(self._state.secrets[secret_id].values)
        return environment | {
            "PYTHONPATH": str(self._root),
            "MODAL_SERVER_URL": self.socket_url if function.block_network else self.server_url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(arguments_path),
            "MODAL_TASK_ID": container.task_id,
            "MODAL_IMAGE_ID": function.image_id,
            "MODAL_ENVIRONMENT": container.function.app.environment,
            "MODAL_OVERRIDE_HEADERS": f"{TASK_HEADER}:{container.task_id}",
            "MODAL_RESTORE_STATE_PATH": str(restore_state_path(container)),
            "MODAL_ENABLE_SNAP_RESTORE": "1" if snapshots else "0",
        }

    def _script(self, container: Container, code: Path) -> str:
        # Compiled kernels and bytecode are cached by the source's path, so every container gets the same one.
        lines = [f"mount --bind {shlex.quote(str(code))} {shlex.quote(str(self._root))}"]
        for view in container.views.values():
            self._mount_points.hold(Path(view.mount_path))
            source, target = shlex.quote(str(view.source)), shlex.quote(view.mount_path)
            lines.append(f"mount --bind {source} {target}")
            if view.read_only:
                lines.append(f"mount -o remount,bind,ro {target}")
        lines.append(f"cd {shlex.quote(str(self._root))}")
        lines.append(f"exec {shlex.quote(sys.executable)} -m modal._container_entrypoint")
        return "\n".join(lines)

    def close(self) -> None:
        """Releases the mount points."""
        self._mount_points.release()


def restore_state_path(container: Container) -> Path:
    """The file whose appearance tells a container that it has been restored from its memory snapshot."""
    return container.folder / "restore-state.json"
