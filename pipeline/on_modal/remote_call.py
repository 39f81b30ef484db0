"""A call that runs in another container, as its client waits for it. Knows nothing of Modal but the shape of a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import structlog

PATIENCE_S = 120.0
"""How long the connection may fail without a break before its error counts. The platform keeps results for days, and
its client retries for less than a second by itself."""

log = structlog.get_logger()


class RemoteCall(Protocol):
    """A call that runs in another container; `modal.FunctionCall` is one."""

    @property
    def object_id(self) -> str:
        """The id by which the call can be found again."""
        ...

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the result.

        Raises:
            TimeoutError: the call is still running; any other exception is what ended it.
        """
        ...

    def cancel(self) -> None:
        """Cancel the call."""
        ...


class PatientCall:
    """A `RemoteCall` that reads an error of the connection as "still running", so that it ends no job.

    Args:
        call: asked for its result.
        transient: the errors of a connection or a server that may be in order again a moment later.
        patience_s: as `PATIENCE_S`.
        clock: seconds, monotonic.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        call: RemoteCall,
        transient: tuple[type[Exception], ...],
        *,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._call = call
        self._transient = transient
        self._patience_s = patience_s
        self._clock = clock
        self._sleep = sleep
        self._failing_since_s: float | None = None

    @property
    def object_id(self) -> str:
        """See `RemoteCall.object_id`."""
        return self._call.object_id

    def get(self, timeout: float | None = None) -> Any:
        """See `RemoteCall.get`.

        Raises:
            TimeoutError: the call is still running, or the connection fails since less than `patience_s`.
        """
        started_s = self._clock()
        try:
            answer = self._call.get(timeout=timeout)
        except TimeoutError:
            self._failing_since_s = None
            raise
        except self._transient as error:
            now_s = self._clock()
            if self._failing_since_s is None:
                self._failing_since_s = started_s
            if now_s - self._failing_since_s >= self._patience_s:
                raise
            log.warning("result of a remote call not read", reason=f"{type(error).__name__}: {error}")
            self._sleep(max(0.0, (timeout or 0.0) - (now_s - started_s)))  # the pause that the caller wants
            raise TimeoutError from error
        self._failing_since_s = None
        return answer

    def cancel(self) -> None:
        """See `RemoteCall.cancel`."""
        self._call.cancel()


def is_in_flight(
    call: RemoteCall, *, transient: tuple[type[Exception], ...], errors: tuple[type[Exception], ...]
) -> bool:
    """Whether a call waits or runs. An error of the connection says nothing about it: then it may.

    Args:
        transient: as for `PatientCall`.
        errors: those with which the platform says that the call has ended, or is not known any more.

    Raises:
        Exception: the call ended with an error of its own.
    """
    try:
        PatientCall(call, transient).get(timeout=0)
    except TimeoutError:
        return True
    except errors:
        return False
    return False


@contextmanager
def marked_as_remote(transient: tuple[type[Exception], ...]) -> Iterator[None]:
    """Raise another error in place of a transient one of the body, which runs in a container.

    The client raises the error of a container again, where it would read as one of its own connection, and a
    `TimeoutError` as a call that is still running.

    Args:
        transient: as for `PatientCall`; a `TimeoutError` is an `OSError`.

    Raises:
        RuntimeError: the body raised one of them.
    """
    try:
        yield
    except (TimeoutError, *transient) as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
