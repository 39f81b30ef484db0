"""Stage timings, traces and the form of the log. Knows nothing of what the stages do, nor where the numbers end up.

Traces are OpenTelemetry's, behind the extra `tracing`: until `start_tracing` has found it, everything here that makes
a span does nothing and imports nothing. What a span says is chosen name by name where it is made; messages of errors,
addresses and bodies are never among it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

Attribute = str | int | float | bool
SetAttributes = Callable[[Mapping[str, Attribute]], None]
SERVICE_NAME = "image-to-3d"
TRACEPARENT = "traceparent"
"""The header (W3C Trace Context) that tells of a trace, and where a job's `meta` keeps the one of its submit."""


class StageTimer:
    """Wall seconds by stage name, kept in the order in which the stages ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the wall time of the `with` body to `stage`, also when the body raises; a span where traces are kept."""
        started_s = time.perf_counter()
        try:
            with span(f"stage {stage}"):
                yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started_s

    @property
    def total_s(self) -> float:
        """Seconds of all stages together."""
        return sum(self.seconds.values())


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
"""Foreign loggers that would write addresses, and with them other people's tokens, for every request."""


def configure_logging(level: str, *, stream: TextIO = sys.stderr) -> None:
    """Write every log line of this process, foreign ones included, as one JSON object per line.

    What `structlog.contextvars` binds, such as the job's id, stands in each line. Tracebacks carry no local variables.
    For the service's processes; the command line keeps Python's defaults.
    """
    import structlog  # the command line starts without it

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
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


@dataclass(frozen=True)
class _Tracing:
    """Where spans go. The provider is this module's own, never the process's global one: libraries that trace by
    themselves would write the paths of signed links."""

    provider: TracerProvider
    tracer: Tracer


_tracing: _Tracing | None = None


def start_tracing(*, exporter: SpanExporter | None = None) -> Callable[[], None]:
    """Keep spans from now on; OTEL_*, as the SDK reads it, says where they go, which are kept, and what the service is.

    Args:
        exporter: takes each span as soon as it ends; None sends them in batches by OTLP over HTTP.

    Returns:
        Sends what is still here and ends the tracing.
    """
    global _tracing
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError:
        logging.getLogger(__name__).warning("traces are asked for, but the extra 'tracing' is not installed")
        return lambda: None
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    made = BatchSpanProcessor(OTLPSpanExporter()) if exporter is None else SimpleSpanProcessor(exporter)
    provider.add_span_processor(made)
    _tracing = _Tracing(provider, provider.get_tracer(SERVICE_NAME))

    def stop() -> None:
        global _tracing
        _tracing = None
        provider.shutdown()

    return stop


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, Attribute] | None = None,
    *,
    kind: Literal["internal", "server", "consumer"] = "internal",
    parent: str | None = None,
) -> Iterator[SetAttributes]:
    """Trace the `with` body; yields a function that adds attributes. Does nothing while no traces are kept.

    Args:
        parent: a `traceparent` (W3C Trace Context) that came from elsewhere; None is the span around this one.
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
        except BaseException as error:  # its type alone: a message may hold an address
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(StatusCode.ERROR)
            raise


def note_on_span(attributes: Mapping[str, Attribute]) -> None:
    """Add attributes to the span around this, where there is one."""
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
