"""Histograms of durations, kept as counters that only grow. Knows no database and no metrics format.

A store keeps counters by name and label; here a duration becomes additions to two of them, and the counters become
histograms again. Labels that hold spaces cannot be told apart, so none may.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

COUNTER = "durations"
"""Name of the store's counter."""
BOUNDS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Upper bounds of the buckets, inclusive; a further bucket is unbounded. To change them, rename the counter."""
SUM = "sum"


@dataclass(frozen=True)
class Series:
    """What a histogram measures.

    Attributes:
        kind: `job`, from the submit to the end, or `stage`.
        name: the state in which the job ended, or the stage.
        engine: the engine that ran, `none` if the job ended before one did.
    """

    kind: str
    name: str
    engine: str


@dataclass
class Histogram:
    """Durations of one series.

    Attributes:
        counts: durations in each bucket, those of lower buckets not included; one more than `BOUNDS_S`.
        sum_s: all durations added up.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0


def additions(series: Series, seconds: float) -> list[tuple[str, str, float]]:
    """What one duration adds to the counters: (name, label, value)."""
    label = f"{series.kind} {series.name} {series.engine}"
    bucket = bisect_left(BOUNDS_S, seconds)
    return [(COUNTER, f"{label} {bucket}", 1.0), (COUNTER, f"{label} {SUM}", max(seconds, 0.0))]


def histograms_of(counter: Mapping[str, float]) -> dict[Series, Histogram]:
    """The histograms that `additions` were made for; labels that it did not write are left out."""
    found: defaultdict[Series, Histogram] = defaultdict(Histogram)
    for label, value in counter.items():
        match label.split(" "):
            case kind, name, engine, "sum":
                found[Series(kind, name, engine)].sum_s = value
            case kind, name, engine, bucket if bucket.isdecimal() and int(bucket) <= len(BOUNDS_S):
                found[Series(kind, name, engine)].counts[int(bucket)] = int(value)
            case _:
                pass
    return dict(found)
