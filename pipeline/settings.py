"""The settings of a deployment: each process reads them once from the environment and passes them down as values.

The only module that reads the environment. Every setting is `IMAGE_TO_3D_` + its name in capitals. Reading creates no
folder and no file. Settings for Modal's containers alone are in `pipeline.on_modal.settings`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.jobs.model import KeyLimits
from pipeline.telemetry import LogFormat
from pipeline.version import user_agent
from schemas.contract import is_http_url
from schemas.formats import FORMATS, is_installed
from schemas.origins import read_origin

MIB = 2**20
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
MIN_SECRET_CHARS = 16
PREFIX = "IMAGE_TO_3D_"
CLIENT_VARIABLES = (f"{PREFIX}URL", f"{PREFIX}KEY")
"""By these the examples for clients know the service and their key."""
DATABASE_NAME = "jobs.sqlite"

Time = Annotated[float, Field(ge=0, le=1)]


def _number_in_text(value: object) -> object:
    """The whole number that a text from the environment holds; everything else as it is."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class Settings(BaseSettings):
    """The settings of one deployment; frozen after reading."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    # Where data is kept.
    data_dir: Path = Path("data")
    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("IMAGE_TO_3D_DATABASE_URL", "DATABASE_URL")
    )
    """Postgres as `postgresql://…`; None is an SQLite file in `data_dir`."""
    database_pool_size: int = Field(default=8, ge=1, le=1000)
    """Connections to the database that a process keeps open."""
    database_pool_overflow: int = Field(default=8, ge=0, le=1000)
    """Further connections that a process opens under load."""

    # The bucket that machines share; without it, outputs and checkpoints are in `data_dir`.
    outputs_url: str | None = None
    """`s3://bucket/prefix` for temporary outputs, uploads and checkpoints."""
    outputs_endpoint_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("IMAGE_TO_3D_OUTPUTS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    )
    """The S3-compatible service; None is AWS."""
    outputs_region: str = Field(
        default="us-east-1",
        validation_alias=AliasChoices("IMAGE_TO_3D_OUTPUTS_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
    )
    outputs_access_key_id: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("IMAGE_TO_3D_OUTPUTS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID")
    )
    outputs_secret_access_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("IMAGE_TO_3D_OUTPUTS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY")
    )

    # Access, and the default limits of a key. 0 or less means no limit.
    api_key: SecretStr | None = None
    """An API key that exists from the start."""
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), validation_alias=AliasChoices("IMAGE_TO_3D_SECRET_KEYS", "IMAGE_TO_3D_MASTER_KEY")
    )
    """Master keys separated by commas, the current one first; without any, one is generated in `data_dir`."""
    max_queued: int = 1000
    max_running: int = 0
    max_per_minute: int = 600
    max_per_month: int = 0

    # The web process.
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_url: str | None = None
    """The address at which callers reach this service, used in the URLs of files; None means host and port."""
    submit_wait_s: float = Field(default=20.0, ge=0, le=120)
    fetch_wait_s: float = Field(default=20.0, ge=0, le=120)
    max_body_bytes: int = Field(default=32 * MIB, ge=1024)
    max_upload_bytes: int = Field(default=2048 * MIB, ge=0)
    """Uploads that a key may have in temporary storage, as each web process counts them; 0 is no limit."""
    restart_pause_s: float = Field(default=60.0, ge=0)
    """For how long after a restart of the workers another restart request is ignored: any caller may send one."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose pages may call the API, separated by commas; `*` for all. None by default."""
    errors_as_200: bool = False
    """Answer the API's errors with HTTP 200, for old clients."""
    metrics_token: SecretStr | None = None
    """The bearer token that `/metrics` requires; None admits requests from this machine only."""

    # Workers.
    engine: str = "preview"
    """The engine of requests that name none."""
    engines: Annotated[tuple[str, ...], NoDecode] = ()
    """Further engines that requests may name, separated by commas."""
    output_formats: Annotated[tuple[str, ...], NoDecode] = ()
    """The file formats that requests may name, separated by commas; none means all that the workers can write."""
    weights: str = "weights"
    """The folder of the engines' weights, or "tiny" for random ones of small shapes."""
    trellis_dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Precision inside TRELLIS' heavy blocks; None means float16 on a GPU, as released, and float32 on a CPU."""
    trellis_multi_image_mode: Literal["stochastic", "multidiffusion"] = "stochastic"
    """How several views are combined if the request does not say."""
    trellis_ss_cfg_interval: Annotated[tuple[Time, Time], NoDecode] = (0.5, 1.0)
    """First and last time at which guidance applies in stage 1 (1 is noise), as two numbers separated by a comma."""
    trellis_ss_rescale_t: float = Field(default=3.0, gt=0)
    """How far the sampling times of stage 1 are shifted towards noise."""
    trellis_slat_cfg_interval: Annotated[tuple[Time, Time], NoDecode] = (0.5, 1.0)
    trellis_slat_rescale_t: float = Field(default=3.0, gt=0)
    trellis_text_size: Literal["base", "large", "xlarge"] | None = None
    """Which of the text models is loaded; None means the largest whose weights are there."""
    trellis2_detail: Annotated[Literal[512, 1024, 1536], BeforeValidator(_number_in_text)] = 1024
    """Which networks of TRELLIS.2 are loaded at start; a finer request loads the rest when it comes."""
    trellis2_offload: bool = False
    """Networks of TRELLIS.2 that do not compute wait in host memory."""
    trellis2_encoder: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+(@[\w.-]+)?$")
    """The repository with the image encoder of TRELLIS.2, `owner/name` or `owner/name@revision`; None means the
    original, whose owner asks for consent."""
    init_mesh: bool = False
    """Allow a submit of a text to give a mesh, whose shape is kept."""
    prompt_blocklist_file: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("IMAGE_TO_3D_PROMPT_BLOCKLIST_FILE", "PROMPT_BLOCKLIST_FILE"),
    )
    """Words and phrases, one a line, that no prompt may hold; None means no such list."""
    moderation_url: str | None = None
    """A service that is asked about every prompt; None means none."""
    moderation_token: SecretStr | None = None
    """The bearer token that the moderation service requires."""
    matting_model: str | None = None
    """The background removal model, by rembg's name for it; None means the best fetched one, if there is one."""
    workers: int = Field(default=1, ge=0, le=256)
    worker_engines: Annotated[tuple[str, ...], NoDecode] = ()
    """The engines of this machine's workers, separated by commas; none means all that the deployment offers."""
    worker_gpus: Annotated[tuple[str, ...], NoDecode] = ()
    """This machine's GPUs by index or UUID, separated by commas: one worker process for each, instead of `workers`."""
    lease_s: float = Field(default=30.0, ge=1)
    """How long a worker keeps its job without a heartbeat."""
    call_timeout_s: float = Field(default=HOUR_S, ge=1)
    """Longest time for one attempt at a job; then the worker exits, and another worker tries again."""
    stop_grace_s: float = Field(default=20.0, ge=0)
    """How long a running job may continue after the service was told to stop."""

    # Addresses, outputs, webhooks.
    allow_private_addresses: bool = False
    """Allow loopback and private addresses for images, webhooks and buckets; never link-local or metadata addresses."""
    contact_url: str | None = None
    """Where the operator can be reached, in the User-Agent of outgoing requests; None means `public_url`."""
    output_lifetime_s: float = Field(default=DAY_S, ge=1)
    max_retention_s: float = Field(default=7 * DAY_S, ge=60)
    """The longest lifetime of temporary outputs that a request may ask for."""
    generation_lifetime_s: float = Field(default=HOUR_S, ge=0)
    """How long the generation of a finished job is kept, for further exports; 0 keeps none."""
    max_generations_bytes: int = Field(default=4096 * MIB, ge=0)
    """What all kept generations together may occupy; the oldest are deleted first."""
    record_lifetime_s: float = Field(default=7 * DAY_S, ge=1)
    """How long the record of a finished job is kept."""
    max_failed_requests_bytes: int = Field(default=2048 * MIB, ge=0)
    """What the requests of failed jobs, kept for `jobs retry`, may occupy together; the oldest are deleted first."""
    max_failed_requests_bytes_per_key: int = Field(default=256 * MIB, ge=0)
    """The same for the jobs of one key."""
    webhook_attempts: int = Field(default=10, ge=1)
    webhook_window_s: float = Field(default=2 * HOUR_S, ge=1)
    webhook_connect_timeout_s: float = Field(default=10.0, gt=0)
    webhook_timeout_s: float = Field(default=30.0, gt=0)

    # Prices, for estimates alone: the service charges nothing.
    prices: Annotated[tuple[str, ...], NoDecode] = ()
    """Price of a job by engine, `trellis=0.05`, separated by commas."""
    price_per_second: float = Field(default=0.0, ge=0)
    """Price of a second of work, added to that of the engine."""
    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")

    log_level: str = "INFO"
    log_format: LogFormat = "auto"
    """JSON lines, or lines for people; `auto` is the latter on a terminal."""
    otlp_endpoint: str | None = Field(
        default=None,
        repr=False,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    )
    """Where traces are sent (extra `tracing`); OpenTelemetry itself reads the other OTEL_* variables."""

    @field_validator(
        "secret_keys",
        "cors_origins",
        "engines",
        "output_formats",
        "prices",
        "worker_engines",
        "worker_gpus",
        "trellis_ss_cfg_interval",
        "trellis_slat_cfg_interval",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value) if isinstance(value, str) else value

    @field_validator("secret_keys")
    @classmethod
    def _check_length(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(secret) < MIN_SECRET_CHARS for secret in value):
            raise ValueError(f"each secret needs at least {MIN_SECRET_CHARS} characters")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        origins = [read_origin(origin) for origin in value]
        if None in origins:
            raise ValueError("each origin is a scheme, a host and perhaps a port, as in https://app.example.com")
        return tuple(filter(None, origins))

    @field_validator("output_formats")
    @classmethod
    def _check_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= FORMATS.keys():
            raise ValueError(f"each format must be one of {', '.join(FORMATS)}")
        return value

    @field_validator("prices")
    @classmethod
    def _check_prices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"[a-z0-9_-]+=\d+(\.\d+)?", item, re.ASCII) for item in value):
            raise ValueError("each price is an engine and a number, as in trellis=0.05")
        return value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is not None and (not is_http_url(value) or urlsplit(value).query or urlsplit(value).fragment):
            raise ValueError("it must be an http or https address, without a query: paths are put behind it")
        return value

    @field_validator("contact_url")
    @classmethod
    def _check_contact(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and (is_http_url(value) or value.startswith("mailto:"))):
            raise ValueError("it must be an http, https or mailto address")
        return value

    @property
    def user_agent(self) -> str:
        """What this deployment calls itself in outgoing requests."""
        address = self.contact_url or self.public_url
        return user_agent(address if address is not None and address.isascii() else None)

    @property
    def offered_engines(self) -> tuple[str, ...]:
        """Names of the engines that requests may name, the default first."""
        return tuple(dict.fromkeys((self.engine, *self.engines)))

    @property
    def offered_formats(self) -> tuple[str, ...]:
        """The file formats that requests may name.

        Where the export can run, and so the workers of one machine, the default is what is installed. A web process
        without it cannot know what the workers have: there, the default is all.
        """
        if self.output_formats:
            return self.output_formats
        can_export = is_installed("numpy")
        return tuple(name for name, spec in FORMATS.items() if spec.is_writable or not can_export)

    @property
    def engines_of_worker(self) -> tuple[str, ...]:
        """Names of the engines that this machine's workers have; they leave jobs of others to other machines."""
        return self.worker_engines or self.offered_engines

    def weights_wanted(self, engine: str) -> dict[str, Any]:
        """Which of an engine's weights this deployment needs: arguments of its `missing_bytes`."""
        return {"detail": self.trellis2_detail} if engine == "trellis2" else {}

    def weights_source(self, engine: str) -> dict[str, Any]:
        """Where an engine's weights come from, if not from where they are published: arguments of `fetch_weights`."""
        is_elsewhere = engine == "trellis2" and self.trellis2_encoder is not None
        return {"encoder_repo": self.trellis2_encoder} if is_elsewhere else {}

    @property
    def engine_arguments(self) -> dict[str, dict[str, Any]]:
        """Constructor arguments of an engine's class beyond the weights, by the engine's name."""
        return {
            "trellis": {
                "dtype": self.trellis_dtype,
                "multi_image_mode": self.trellis_multi_image_mode,
                "ss_cfg_interval": self.trellis_ss_cfg_interval,
                "ss_rescale_t": self.trellis_ss_rescale_t,
                "slat_cfg_interval": self.trellis_slat_cfg_interval,
                "slat_rescale_t": self.trellis_slat_rescale_t,
            },
            "trellis-text": {"dtype": self.trellis_dtype, "size": self.trellis_text_size},
            "trellis2": {
                "dtype": self.trellis_dtype,
                "multi_image_mode": self.trellis_multi_image_mode,
                "detail": self.trellis2_detail,
                "offload": self.trellis2_offload,
            },
        }

    def price_of(self, engine: str, *, seconds: float) -> float | None:
        """The price of a job of so many seconds, None where the operator set none for this engine."""
        prices = {name: float(price) for name, _, price in (item.partition("=") for item in self.prices)}
        if engine not in prices and not self.price_per_second:
            return None
        return round(prices.get(engine, 0.0) + self.price_per_second * seconds, 6)

    @property
    def longest_retention_s(self) -> int:
        """The upper bound of `retention_s`: files are deleted with their job's record at the latest."""
        return int(min(self.max_retention_s, self.record_lifetime_s))

    @property
    def is_traced(self) -> bool:
        """Whether traces are sent."""
        return self.otlp_endpoint is not None

    @property
    def sql_url(self) -> str:
        """The database's address as SQLAlchemy reads it; it may hold a password, so it is never logged."""
        if self.database_url is None:
            return f"sqlite:///{(self.data_dir / DATABASE_NAME).absolute()}"
        url = self.database_url.get_secret_value()
        for scheme in ("postgres://", "postgresql://"):
            if url.startswith(scheme):
                return f"postgresql+psycopg://{url.removeprefix(scheme)}"
        return url

    @property
    def base_url(self) -> str:
        """The start of absolute URLs of this service where no request provides it; without a trailing slash."""
        if self.public_url is not None:
            return self.public_url.rstrip("/")
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def work_dir(self) -> Path:
        """Holds one folder per unfinished job, with the checkpoints of its finished stages."""
        return self.data_dir / "work"

    @property
    def files_dir(self) -> Path:
        """Holds the temporary outputs."""
        return self.data_dir / "files"

    @property
    def default_limits(self) -> KeyLimits:
        """Limits of a key that was created without any."""
        return KeyLimits(
            queued=_limit(self.max_queued),
            running=_limit(self.max_running),
            per_minute=_limit(self.max_per_minute),
            per_month=_limit(self.max_per_month),
        )


def _limit(number: int) -> int | None:
    return number if number > 0 else None


def split_list(text: str) -> tuple[str, ...]:
    """The items of a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def unknown_variables(*models: type[BaseSettings]) -> list[str]:
    """A sentence on each variable of the environment that is named like a setting and is none of these models."""
    names: set[str] = {*CLIENT_VARIABLES}
    for model in models:
        for field_name, field in model.model_fields.items():
            alias = field.validation_alias
            names.update(map(str, alias.choices) if isinstance(alias, AliasChoices) else [variable_of(field_name)])
    known = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
    sentences = []
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX)
        if name == variable.upper() or name in known:
            continue
        nearest = get_close_matches(name, known, n=1)
        hint = f": did you mean {PREFIX}{nearest[0]}?" if nearest else "."
        sentences.append(f"{variable} is not a setting of this version{hint}")
    return sentences


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process: that of this process, and these variables."""
    return {**os.environ, **variables}


def present_variables(names: Iterable[str]) -> dict[str, str]:
    """Those of these environment variables that are set and not empty."""
    return {name: os.environ[name] for name in names if os.environ.get(name)}
