"""What a deployment decides, read from the environment once and passed down as values.

The only module that reads the environment. Every setting is `IMAGE_TO_3D_` + its name in capitals. Reading makes no
folder and no file; `load_master_keys` is the one function here that may.

`Settings` are those of the service's processes, wherever they run. `ScalingSettings` are those of a deployment whose
containers come and go; they are read where it is deployed from, and `environment_of_containers` carries both there.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.jobs.model import KeyLimits

MIB = 2**20
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
MIN_SECRET_CHARS = 16

Time = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """One deployment's decisions; frozen after reading."""

    model_config = SettingsConfigDict(
        env_prefix="IMAGE_TO_3D_",
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    # Where things are kept.
    data_dir: Path = Path("data")
    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("IMAGE_TO_3D_DATABASE_URL", "DATABASE_URL")
    )
    """Postgres as `postgresql://…`; None is an SQLite file in `data_dir`."""

    # Who may call, and what a key may have unless it says otherwise. 0 or less is no limit.
    api_key: SecretStr | None = None
    """A key that exists from the start."""
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), validation_alias=AliasChoices("IMAGE_TO_3D_SECRET_KEYS", "IMAGE_TO_3D_MASTER_KEY")
    )
    """Master secrets separated by commas, the current one first; none: one is made in `data_dir`."""
    max_queued: int = 1000
    max_running: int = 0
    max_per_minute: int = 600
    max_per_month: int = 0

    # The web process.
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_url: str | None = None
    """What callers reach this service under, for URLs of files; None is host and port."""
    submit_wait_s: float = Field(default=20.0, ge=0, le=120)
    fetch_wait_s: float = Field(default=20.0, ge=0, le=120)
    max_body_bytes: int = Field(default=32 * MIB, ge=1024)
    restart_pause_s: float = Field(default=60.0, ge=0)
    """How long after a restart of the workers a further wish for one changes nothing: any caller may wish."""
    errors_as_200: bool = False
    """Answer the API's errors with HTTP 200, for old clients."""
    metrics_token: SecretStr | None = None
    """What `/metrics` wants as bearer token; None opens it to this machine alone."""

    # Workers.
    engine: str = "preview"
    """Runs calls that name none."""
    engines: Annotated[tuple[str, ...], NoDecode] = ()
    """Further engines that calls may name, separated by commas."""
    weights: str = "weights"
    """The folder of the engines' weights, or "tiny" for random ones of small shapes."""
    trellis_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Precision inside TRELLIS' heavy blocks; None is float16 on a GPU, as it was released, and float32 on a CPU."""
    trellis_multi_image_mode: Literal["stochastic", "multidiffusion"] = "stochastic"
    """How it joins several views where a call says nothing."""
    trellis_ss_cfg_interval: Annotated[tuple[Time, Time], NoDecode] = (0.5, 1.0)
    """First and last time at which guidance acts in its stage 1, 1 being noise, as two numbers with a comma."""
    trellis_ss_rescale_t: float = Field(default=3.0, gt=0)
    """How far the times of its stage 1 are bent towards noise."""
    trellis_slat_cfg_interval: Annotated[tuple[Time, Time], NoDecode] = (0.5, 1.0)
    trellis_slat_rescale_t: float = Field(default=3.0, gt=0)
    matting_model: str | None = None
    """The model that removes backgrounds, by rembg's name for it; None is the fetched one, or no model."""
    workers: int = Field(default=1, ge=0, le=256)
    lease_s: float = Field(default=30.0, ge=1)
    """How long a silent worker keeps its job."""
    call_timeout_s: float = Field(default=HOUR_S, ge=1)
    """Longest time for one attempt at a call; then its worker ends itself, and another one tries."""
    stop_grace_s: float = Field(default=20.0, ge=0)
    """How long a running call may go on after the service was told to stop."""

    # Addresses, outputs, webhooks.
    allow_private_addresses: bool = False
    """Admit loopback and private addresses for pictures, webhooks and buckets; never link-local or metadata ones."""
    output_lifetime_s: float = Field(default=DAY_S, ge=1)
    record_lifetime_s: float = Field(default=7 * DAY_S, ge=1)
    """How long an ended job's record can be read."""
    webhook_attempts: int = Field(default=10, ge=1)
    webhook_window_s: float = Field(default=2 * HOUR_S, ge=1)
    webhook_connect_timeout_s: float = Field(default=10.0, gt=0)
    webhook_timeout_s: float = Field(default=30.0, gt=0)

    log_level: str = "INFO"
    otlp_endpoint: str | None = Field(
        default=None,
        repr=False,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    """Where traces go (extra `tracing`); the other OTEL_* variables are read by OpenTelemetry itself."""

    @field_validator("secret_keys", "engines", "trellis_ss_cfg_interval", "trellis_slat_cfg_interval", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _parts(value) if isinstance(value, str) else value

    @field_validator("secret_keys")
    @classmethod
    def _check_length(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(secret) < MIN_SECRET_CHARS for secret in value):
            raise ValueError(f"each secret needs at least {MIN_SECRET_CHARS} characters")
        return value

    @property
    def offered_engines(self) -> tuple[str, ...]:
        """Names of the engines that calls may name, the default first."""
        return tuple(dict.fromkeys((self.engine, *self.engines)))

    @property
    def engine_arguments(self) -> dict[str, dict[str, Any]]:
        """What an engine's class is made with beyond the weights, by the engine's name."""
        return {
            "trellis": {
                "dtype": self.trellis_dtype,
                "multi_image_mode": self.trellis_multi_image_mode,
                "ss_cfg_interval": self.trellis_ss_cfg_interval,
                "ss_rescale_t": self.trellis_ss_rescale_t,
                "slat_cfg_interval": self.trellis_slat_cfg_interval,
                "slat_rescale_t": self.trellis_slat_rescale_t,
            }
        }

    @property
    def is_traced(self) -> bool:
        """Whether traces are kept."""
        return self.otlp_endpoint is not None

    @property
    def sql_url(self) -> str:
        """The database's address as SQLAlchemy reads it; holds a password perhaps, so it is never logged."""
        if self.database_url is None:
            return f"sqlite:///{(self.data_dir / 'jobs.sqlite').absolute()}"
        url = self.database_url.get_secret_value()
        for scheme in ("postgres://", "postgresql://"):
            if url.startswith(scheme):
                return f"postgresql+psycopg://{url.removeprefix(scheme)}"
        return url

    @property
    def base_url(self) -> str:
        """What absolute URLs of this service begin with, where no request tells it; without a slash at its end."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def work_dir(self) -> Path:
        """Holds one folder per unfinished job, with what its finished stages left."""
        return self.data_dir / "work"

    @property
    def files_dir(self) -> Path:
        """Holds the temporary outputs."""
        return self.data_dir / "files"

    @property
    def default_limits(self) -> KeyLimits:
        """Limits of a key that was made without any."""
        return KeyLimits(
            queued=_limit(self.max_queued),
            running=_limit(self.max_running),
            per_minute=_limit(self.max_per_minute),
            per_month=_limit(self.max_per_month),
        )


class ScalingSettings(BaseSettings):
    """How the containers of one deployment come and go; frozen after reading."""

    model_config = SettingsConfigDict(env_prefix="IMAGE_TO_3D_", frozen=True, extra="ignore", env_ignore_empty=True)

    engine: str = "trellis"
    """Runs calls that name none."""
    engines: Annotated[tuple[str, ...], NoDecode] = ()
    """Further engines that calls may name, separated by commas; each has containers of its own."""
    gpus: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Accelerators for every engine, the best first, separated by commas, or "none"; by default each engine's own."""
    gpu_min_containers: int = Field(default=0, ge=0)
    """Containers of the default engine that wait for calls day and night."""
    gpu_buffer_containers: int = Field(default=0, ge=0)
    """Containers that wait beside the busy ones while there are any."""
    gpu_max_containers: int = Field(default=10, ge=1)
    gpu_scaledown_s: int = Field(default=60, ge=2)
    """How long an idle container waits for its next call."""
    gpu_snapshot: bool = False
    """Take the device's memory into the snapshot too; of the vendor's making, and not yet dependable."""
    web_min_containers: int = Field(default=0, ge=0)
    region: str | None = None
    """Where all containers run; by default wherever there is room."""

    @field_validator("engines", "gpus", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if value == "none":
            return ()
        return _parts(value) if isinstance(value, str) else value

    @property
    def further_engines(self) -> tuple[str, ...]:
        """The offered engines but for the default one."""
        return tuple(dict.fromkeys(name for name in self.engines if name != self.engine))


LOCAL_ONLY_SETTINGS = {"data_dir", "host", "port", "workers", "api_key", "secret_keys", "database_url"}
"""Settings that no deployment carries from where it is deployed to its containers: places, and what is secret."""


OTEL_VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
)
"""What OpenTelemetry reads by itself; not its headers, which hold credentials."""


def environment_of_containers(**places: str) -> dict[str, str]:
    """The environment that makes a container decide as this process does: its settings, no secret among them.

    Args:
        places: further settings, by field name, unless the environment says them.
    """
    names = (set(Settings.model_fields) | set(ScalingSettings.model_fields)) - LOCAL_ONLY_SETTINGS
    variables = (*(_variable(name) for name in sorted(names)), *OTEL_VARIABLES)
    given = {variable: os.environ[variable] for variable in variables if os.environ.get(variable)}
    return {_variable(name): value for name, value in places.items()} | given


def load_master_keys(settings: Settings) -> tuple[bytes, ...]:
    """The secrets from which signing and encryption keys are derived, the current one first.

    Without any in the settings, one is made once and kept in `data_dir/secret.key`, readable by its owner alone;
    processes that start at the same time agree on one.
    """
    if settings.secret_keys:
        return tuple(secret.get_secret_value().encode() for secret in settings.secret_keys)
    path = settings.data_dir / "secret.key"
    if not path.exists():
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".secret-{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)  # unlike a rename, this refuses to replace another process's secret
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return (path.read_text().strip().encode(),)


def _limit(number: int) -> int | None:
    return number if number > 0 else None


def _parts(text: str) -> tuple[str, ...]:
    """The parts of a list that is written with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _variable(name: str) -> str:
    return f"IMAGE_TO_3D_{name.upper()}"
