"""Histograms as counters: what goes in comes out."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.jobs.histograms import BOUNDS_S, COUNTER, Histogram, Series, additions, histograms_of

GENERATE = Series("stage", "generate", "trellis")


def counter_of(*durations: tuple[Series, float]) -> Counter[str]:
    counter: Counter[str] = Counter()
    for series, seconds in durations:
        for name, label, value in additions(series, seconds):
            assert name == COUNTER
            counter[label] += value  # type: ignore[assignment]
    return counter


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.1, 0), (0.11, 1), (1800.0, 13), (1801.0, 14), (-5.0, 0)])
def test_a_duration_falls_into_the_bucket_whose_upper_bound_it_does_not_exceed(seconds: float, bucket: int) -> None:
    found = histograms_of(counter_of((GENERATE, seconds)))

    assert found[GENERATE].counts.index(1) == bucket
    assert sum(found[GENERATE].counts) == 1
    assert found[GENERATE].sum_s == max(seconds, 0.0)


def test_series_are_kept_apart_and_durations_added_up() -> None:
    other = Series("job", "failed", "none")

    found = histograms_of(counter_of((GENERATE, 3.0), (GENERATE, 4.0), (other, 0.2)))

    assert set(found) == {GENERATE, other}
    assert found[GENERATE].sum_s == 7.0 and found[GENERATE].counts[BOUNDS_S.index(5.0)] == 2


def test_labels_of_another_version_are_left_out() -> None:
    assert histograms_of({"stage generate trellis 99": 1, "stage": 1, "a b c d e": 1}) == {}
    assert Histogram() == Histogram()
