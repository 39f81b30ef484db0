"""Settings of a Modal deployment: how many containers of each kind run, and the environment that the containers get.

`ScalingSettings` are read on the machine that deploys. `environment_of_containers` passes them and `Settings` on to the
containers, which import the app file again without the deployer's shell.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.engines.registry import EngineSpec, gpus_of
from pipeline.settings import PREFIX, Settings, present_variables, split_list, unknown_variables, variable_of


class ScalingSettings(BaseSettings):
    """How the containers of one deployment are scaled; frozen after reading."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    engine: str = "trellis"
    """The engine of requests that name none."""
    engines: Annotated[tuple[str, ...], NoDecode] = ()
    """Further engines that requests may name, separated by commas; each has containers of its own."""
    trellis2_detail: int = 1024
    """As in `Settings`: which networks of TRELLIS.2 its containers load, and so which GPUs they can use."""
    gpus: Annotated[tuple[str, ...] | None, NoDecode] = None
    """GPU types for every engine that uses one, the preferred one first, separated by commas, or "none"; None means
    each engine's own list."""
    gpu_min_containers: int = Field(default=0, ge=0)
    """Containers of the default engine that always run."""
    gpu_buffer_containers: int = Field(default=0, ge=0)
    """Idle containers that are kept in addition to the busy ones."""
    gpu_max_containers: int = Field(default=10, ge=1)
    call_max_containers: int | None = Field(default=None, ge=1)
    """CPU containers that run jobs, see `most_job_containers`; None derives it from `gpu_max_containers`."""
    gpu_scaledown_s: int = Field(default=60, ge=2)
    """How long an idle container waits for its next input."""
    gpu_snapshot: bool = False
    """Move the weights to the GPU before the snapshot, which then includes its memory: an alpha feature of Modal."""
    gpu_snapshot_weights: bool = True
    """Load the weights before the snapshot, which then contains them, and not after each restore."""
    web_min_containers: int = Field(default=0, ge=0)
    custom_domains: Annotated[tuple[str, ...], NoDecode] = ()
    """Domains of the web function beside Modal's own, separated by commas."""
    region: str | None = None
    """Where all containers run; None means any region."""

    @field_validator("engines", "gpus", "custom_domains", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if value == "none":
            return ()
        return split_list(value) if isinstance(value, str) else value

    @property
    def further_engines(self) -> tuple[str, ...]:
        """The offered engines except the default one."""
        return tuple(dict.fromkeys(name for name in self.engines if name != self.engine))

    @property
    def most_job_containers(self) -> int:
        """CPU containers that run jobs; jobs beyond wait in Modal's queue, where waiting costs nothing.

        A job's container waits while a GPU works. By default there are three for each GPU container: one whose job is
        there, one that reads the next image, one that exports. A workspace of the smallest plan has 100 containers, and
        those that wait must leave room for the GPU containers that they wait for.
        """
        return self.call_max_containers or min(40, 3 * self.gpu_max_containers + 4)

    def gpus_for(self, spec: EngineSpec) -> tuple[str, ...]:
        """The GPU types of an engine's containers, the preferred one first; none for an engine that uses none."""
        return gpus_of(spec, detail=self.trellis2_detail) if self.gpus is None or not spec.gpus else self.gpus


LOCAL_ONLY_SETTINGS = {
    "data_dir",
    "host",
    "port",
    "workers",
    "api_key",
    "secret_keys",
    "database_url",
    "moderation_token",
    "prompt_blocklist_file",
}
"""Settings that the deploying machine never passes to containers: paths, addresses and secrets."""

OTEL_VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)
"""Variables that OpenTelemetry reads by itself; without its headers, which hold credentials."""


CLIENT_VARIABLES = {"MODAL_MAX_THROTTLE_WAIT": "10"}
"""Settings of Modal's client. It repeats a throttled operation for so many seconds (1.6.4: without limit by default); a
store that answers "unavailable" is better than a change that takes effect minutes later."""


CONTAINER_DEFAULTS = {"database_pool_size": "1", "database_pool_overflow": "1"}
"""What containers use where the deployer sets nothing else. Some 100 containers share one Postgres, which often allows
no more connections than that; a statement takes a few milliseconds, so two are enough for the requests of one."""


def environment_of_containers(**defaults: str) -> dict[str, str]:
    """The environment that gives a container the settings of this process, without its secrets.

    Args:
        defaults: further settings, by field name, which the environment overrides.
    """
    names = (set(Settings.model_fields) | set(ScalingSettings.model_fields)) - LOCAL_ONLY_SETTINGS
    variables = (*(variable_of(name) for name in sorted(names)), *OTEL_VARIABLES)
    given = {variable_of(name): value for name, value in (CONTAINER_DEFAULTS | defaults).items()}
    return CLIENT_VARIABLES | given | present_variables((*variables, *CLIENT_VARIABLES))


def unknown_settings() -> list[str]:
    """A sentence on each variable of the environment that is named like a setting of a deployment and is none."""
    return unknown_variables(Settings, ScalingSettings)
