"""Loops that numba compiles: how they are declared, and what several of them share.

A kernel is annotated but has no explicit numba signature: a signature would compile at import, and nothing happens at
import here. It compiles at its first call and is cached on disk. Arrays are made outside of kernels, and arguments of
one kernel have the same types at all calls: each function of numpy, each built-in such as `min` of three and each
further type costs the first run a twentieth of a second or more.
"""

from __future__ import annotations

import atexit
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core import event as numba_events

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(function: _Function) -> _Function:
    """Compile a function at its first call; divisions by zero give infinities and NaN, and the GIL is released."""
    return cast(_Function, njit(cache=True, nogil=True, error_model="numpy")(function))


def is_on_disk(function: Callable[..., Any]) -> bool:
    """Whether numba's cache has a compiled form of a kernel, perhaps of an earlier version of it."""
    return any(Path(cast(Any, function).stats.cache_path).glob(f"*.{function.__name__}-*.nbi"))


class _WithoutGarbageCollection(numba_events.Listener):
    """Pauses the collector while numba compiles: it would search the many objects that numba keeps again and again."""

    def __init__(self) -> None:
        self._depth = 0
        self._was_enabled = False

    def on_start(self, event: numba_events.Event) -> None:
        if self._depth == 0:
            self._was_enabled = gc.isenabled()
            gc.disable()
        self._depth += 1

    def on_end(self, event: numba_events.Event) -> None:
        self._depth -= 1
        if self._depth == 0 and self._was_enabled:
            gc.enable()


numba_events.register("numba:compile", _WithoutGarbageCollection())  # compilation holds numba's global lock
atexit.register(gc.freeze)  # Python would search numba's objects once more when it ends: half a second


@kernel
def pixel_range(a: float, b: float, c: float, reach: float, size: int) -> tuple[int, int]:
    """The first and the last pixel whose centre, at k + 0.5, is between the least and the largest of three coordinates.

    Args:
        a: coordinate of a triangle's corner along one axis, in pixels; `b` and `c` alike.
        b: see `a`.
        c: see `a`.
        reach: by how much the interval is grown on both sides, in pixels.
        size: pixels along the axis; the range lies within it, and is empty where the last comes before the first.
    """
    low, high = a, a
    if b < low:
        low = b
    if c < low:
        low = c
    if b > high:
        high = b
    if c > high:
        high = c
    first, last = 0, size - 1
    if low - reach - 0.5 > 0:
        first = math.ceil(low - reach - 0.5)
    if high + reach - 0.5 < size - 1:
        last = math.floor(high + reach - 0.5)
    return first, last
