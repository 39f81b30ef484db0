"""Stage timings, traces and the log format. Knows nothing of what the stages do or of where the numbers are used.

Traces need the extra `tracing` (OpenTelemetry): before `start_tracing` has imported it, every function here that
records a span does nothing and imports nothing. The code that opens a span names each attribute; error messages,
addresses and bodies are never among them.
"""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

Attribute = str | int | float | bool
SetAttributes = Callable[[Mapping[str, Attribute]], None]
SERVICE_NAME = "image-to-3d"
TRACEPARENT = "traceparent"
"""The header (W3C Trace Context) that identifies a trace, and the name under which a job keeps that of its submit."""


class StageTimer:
    """Wall seconds by stage name, in the order in which the stages ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the wall time of the `with` body to `stage`, also if the body raises, and record it as a span."""
        started_s = time.perf_counter()
        try:
            with span(f"stage {stage}"):
                yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started_s


QUIET_LOGGERS = (
    "httpx",
    "httpcore",
    "botocore",
    "boto3",
    "s3transfer",
    "urllib3",
    "alembic",
    "uvicorn.access",
    "numba",
)
"""Loggers of libraries that would write addresses, and with them customers' tokens, for every request."""


LogFormat = Literal["auto", "json", "text"]


def configure_logging(level: str, log_format: LogFormat = "auto", *, stream: TextIO = sys.stderr) -> None:
    """Write every log message of this process, those of libraries included, as one line.

    Each line contains what `structlog.contextvars` binds, such as the job's id. Tracebacks contain no local variables.
    For the service's processes; the command line keeps Python's defaults.

    Args:
        log_format: `json` writes one JSON object per line, `text` a line for people, `auto` the latter on a terminal.
    """
    import structlog  # not needed by the command line

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    is_terminal = stream.isatty()
    if log_format == "text" or (log_format == "auto" and is_terminal):
        rendering: list[structlog.typing.Processor] = [
            structlog.dev.ConsoleRenderer(
                colors=is_terminal, exception_formatter=structlog.dev.plain_traceback, pad_event_to=24
            )
        ]
    else:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class _Tracing:
    """The receiver of spans. The provider belongs to this module and is never the process's global one: libraries that
    create spans by themselves would record the paths of signed links."""

    provider: TracerProvider
    tracer: Tracer


_tracing: _Tracing | None = None


def start_tracing(*, exporter: SpanExporter | None = None) -> Callable[[], None]:
    """Record spans from now on. The SDK reads OTEL_* for the endpoint, the sampler and the service's name.

    Args:
        exporter: gets each span as soon as it ends; None sends them in batches by OTLP over HTTP.

    Returns:
        A function that sends the remaining spans and stops the tracing.
    """
    global _tracing
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError:
        logging.getLogger(__name__).warning(
            "an OTLP endpoint is configured, but the extra 'tracing' is not installed: no traces are sent"
        )
        return lambda: None
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    processor = BatchSpanProcessor(OTLPSpanExporter()) if exporter is None else SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    _tracing = _Tracing(provider, provider.get_tracer(SERVICE_NAME))

    def stop() -> None:
        global _tracing
        _tracing = None
        provider.shutdown()

    return stop


@cache
def start_telemetry(log_level: str, log_format: LogFormat, *, is_traced: bool) -> None:
    """Configure the log and, if wanted, start tracing; once per process, for a container that handles many inputs.

    Spans are sent every few seconds; the remaining ones are sent when the process exits.
    """
    configure_logging(log_level, log_format)
    if is_traced:
        atexit.register(start_tracing())


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    kind: Literal["internal", "server", "consumer"] = "internal",
    parent: str | None = None,
) -> Iterator[SetAttributes]:
    """Record the `with` body as a span; yields a function that adds attributes. Does nothing without tracing.

    Args:
        parent: a `traceparent` (W3C Trace Context) from another process; None means the enclosing span.
    """
    if _tracing is None:
        yield lambda _: None
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None if parent is None else TraceContextTextMapPropagator().extract({TRACEPARENT: parent})
    with _tracing.tracer.start_as_current_span(
        name,
        context=context,
        kind=SpanKind[kind.upper()],
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current.set_attributes
        except BaseException as error:  # only its type: a message may contain an address
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(StatusCode.ERROR)
            raise


def note_on_span(attributes: Mapping[str, Attribute]) -> None:
    """Add attributes to the enclosing span, if there is one."""
    if _tracing is None:
        return
    from opentelemetry.trace import get_current_span

    get_current_span().set_attributes(attributes)


def current_traceparent() -> str | None:
    """The `traceparent` of the current span, for a job's `meta`; None where traces are off."""
    if _tracing is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT)
