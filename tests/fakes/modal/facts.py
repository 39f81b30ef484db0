"""What tests read from a fake Modal server, as immutable values: functions, containers, calls."""

from collections.abc import Mapping
from dataclasses import dataclass

from modal_proto import api_pb2

from tests.fakes.modal.state import Call, Container, Function, State
from tests.fakes.modal.volumes import Volume


@dataclass(frozen=True)
class FunctionFacts:
    """A function as it was deployed, by the names of its decorator's arguments."""

    app: str
    tag: str
    gpus: tuple[str, ...]
    volumes: dict[str, tuple[str, bool]]
    """Mount path to the Volume's name and whether it is mounted read-only."""
    secrets: tuple[tuple[str, tuple[str, ...]], ...]
    """Name (empty for one made inline) and keys of each secret."""
    timeout_s: int
    startup_timeout_s: int
    retries: int
    autoscaler: api_pb2.AutoscalerSettings
    max_concurrent_inputs: int
    enable_memory_snapshot: bool
    experimental_options: dict[str, str]
    cron: str
    webhook: api_pb2.WebhookConfig
    web_url: str
    block_network: bool
    restrict_modal_access: bool
    methods: tuple[str, ...]
    files: tuple[str, ...]
    """Paths of the files that are mounted into its containers."""
    image_environment: dict[str, str]
    definition: api_pb2.Function


@dataclass(frozen=True)
class ContainerFacts:
    """One container: its process, its events and its output."""

    task_id: str
    function: str
    pid: int | None
    is_ready: bool
    is_ended: bool
    events: tuple[str, ...]
    event_times: tuple[float, ...]
    """Of each event, in seconds since 1970."""
    created_at: float
    output: str


@dataclass(frozen=True)
class CallFacts:
    """One function call: the status of each input (empty while unfinished), and how often its container died."""

    call_id: str
    function: str
    statuses: tuple[str, ...]
    crashes: int
    is_finished: bool


def function_facts(function: Function, state: State, volumes: Mapping[str, Volume]) -> FunctionFacts:
    """A function's facts, from its definition."""
    definition = function.effective()
    first = definition.function
    gpus = [each.resources.gpu_config for each in definition.ranked]
    image = state.images.get(first.image_id)
    held = [state.secrets[each] for each in first.secret_ids]
    return FunctionFacts(
        app=function.app.name,
        tag=function.tag,
        gpus=tuple(gpu.gpu_type for gpu in gpus if gpu.count),
        volumes={mount.mount_path: (volumes[mount.volume_id].name, mount.read_only) for mount in first.volume_mounts},
        secrets=tuple((secret.name, tuple(sorted(secret.values))) for secret in held),
        timeout_s=first.timeout_secs,
        startup_timeout_s=first.startup_timeout_secs,
        retries=first.retry_policy.retries,
        autoscaler=first.autoscaler_settings,
        max_concurrent_inputs=first.max_concurrent_inputs,
        enable_memory_snapshot=first.checkpointing_enabled,
        experimental_options=dict(first.experimental_options),
        cron=first.schedule.cron.cron_string,
        webhook=first.webhook_config,
        web_url=function.metadata.web_url,
        block_network=first.block_network,
        restrict_modal_access=first.untrusted,
        methods=tuple(sorted(first.method_definitions)),
        files=tuple(sorted(file.filename for each in first.mount_ids for file in state.mounts[each])),
        image_environment=dict(image.environment) if image else {},
        definition=first,
    )


def status_name(status: int) -> str:
    """A result's status as a short word."""
    name = api_pb2.GenericResult.GenericStatus.Name(status)
    return name.removeprefix("GENERIC_STATUS_").lower()


def container_facts(container: Container) -> ContainerFacts:
    """A container's facts."""
    return ContainerFacts(
        task_id=container.task_id,
        function=container.function.tag,
        pid=container.process.pid if container.process else None,
        is_ready=container.is_ready,
        is_ended=container.is_ended,
        events=tuple(event for _, event in container.events),
        event_times=tuple(at for at, _ in container.events),
        created_at=container.created_at,
        output="".join(container.lines),
    )


def call_facts(call: Call) -> CallFacts:
    """A call's facts."""
    return CallFacts(
        call_id=call.call_id,
        function=call.function.tag,
        statuses=tuple(status_name(each.output.result.status) if each.output else "" for each in call.inputs),
        crashes=sum(each.crashes for each in call.inputs),
        is_finished=call.is_finished,
    )


def traces(state: State, text: str) -> list[str]:
    """The records and files of a server, other than its secrets, that contain a text."""
    needle = text.encode()
    records: list[tuple[str, bytes]] = [
        *((f"image {key}", image.definition.SerializeToString()) for key, image in state.images.items()),
        *(
            (f"definition of {each.tag}", each.effective().data.SerializeToString())
            for each in state.functions.values()
        ),
        *((f"parameters of {each.tag}", each.serialized_params) for each in state.functions.values()),
        *((f"argument of {each.call.function.tag}", each.payload.args) for each in state.inputs.values()),
        *((f"log of {each.function.tag}", "".join(each.lines).encode()) for each in state.containers.values()),
    ]
    files = [path for name in ("blobs", "content") for path in (state.folder / name).iterdir()]
    records.extend((f"{path.parent.name} {path.name}", path.read_bytes()) for path in files)
    return [name for name, data in records if needle in data]
