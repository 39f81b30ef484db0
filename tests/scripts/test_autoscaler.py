"""The simulated pool against closed forms of queueing theory, a plain recursion, and its own conservation laws."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.cost_model.autoscaler import Autoscaler, quantile, simulate
from scripts.cost_model.days import DAY_S, EVEN, DayShape, jobs_of_day


def poisson(count: int, per_s: float, *, seed: int) -> list[float]:
    draw = random.Random(seed)
    return list(itertools.accumulate(draw.expovariate(per_s) for _ in range(count)))


def first_come_first_served(arrivals_s: list[float], service_s: list[float], servers: int) -> list[float]:
    """Waits at servers that are always up: each input takes the earliest free one (Kiefer and Wolfowitz, 1955)."""
    free_s, waits_s = [0.0] * servers, []
    for arrival_s, lasts_s in zip(arrivals_s, service_s, strict=True):
        first = min(range(servers), key=free_s.__getitem__)
        begin_s = max(arrival_s, free_s[first])
        waits_s.append(begin_s - arrival_s)
        free_s[first] = begin_s + lasts_s
    return waits_s


POOLS = st.builds(
    lambda least, more, buffer, window: Autoscaler(
        least, None if more is None else max(least, 1) + more, buffer, window
    ),
    st.integers(0, 3),
    st.none() | st.integers(0, 4),
    st.integers(0, 3),
    st.sampled_from([2, 5, 60]),
)
INPUTS = st.lists(
    st.tuples(st.integers(0, 400).map(lambda tick: tick / 2), st.sampled_from([0.5, 1.0, 7.5])), max_size=40
)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_container_always_warm_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    service_s = 2.0
    arrivals_s = poisson(60_000, load / service_s, seed=1)

    run = simulate(arrivals_s, [service_s] * len(arrivals_s), Autoscaler(1, 1), cold_start_s=9.0)

    expected_s = load * service_s / (2 * (1 - load))  # M/D/1
    # The mean of correlated waits: its standard error is 1 % at load 0.3 and 2 % at 0.8 over so many inputs.
    assert statistics.fmean(run.waits_s) == pytest.approx(expected_s, rel=0.06)
    assert run.started == 0


@given(INPUTS, st.integers(1, 4))
def test_a_fixed_pool_serves_as_first_come_first_served_at_its_servers(
    inputs: list[tuple[float, float]], servers: int
) -> None:
    inputs.sort()
    arrivals_s, service_s = [at for at, _ in inputs], [lasts for _, lasts in inputs]

    run = simulate(arrivals_s, service_s, Autoscaler(servers, servers), cold_start_s=3.0)

    assert run.waits_s == pytest.approx(first_come_first_served(arrivals_s, service_s, servers))


@given(INPUTS, POOLS)
@settings(max_examples=300)
def test_container_seconds_are_conserved_and_bounds_are_kept(
    inputs: list[tuple[float, float]], pool: Autoscaler
) -> None:
    inputs.sort()
    arrivals_s, service_s = [at for at, _ in inputs], [lasts for _, lasts in inputs]

    run = simulate(arrivals_s, service_s, pool, cold_start_s=3.0, horizon_s=300.0)

    assert run.busy_s + run.idle_s + run.startup_s == pytest.approx(run.paid_s)
    assert run.busy_s == pytest.approx(sum(service_s))
    assert run.startup_s == pytest.approx(3.0 * run.started)
    assert run.paid_s >= pool.min_containers * 300.0 - 1e-6
    assert pool.min_containers <= run.most <= (pool.max_containers or math.inf)
    assert all(wait_s >= 0 for wait_s in run.waits_s)
    if pool.max_containers is None:
        assert all(wait_s <= 3.0 for wait_s in run.waits_s)


def test_calls_far_apart_each_pay_a_start_and_a_whole_window() -> None:
    run = simulate([0.0, 1000.0, 2000.0], [2.0] * 3, Autoscaler(scaledown_window=60), cold_start_s=9.0)

    assert run.waits_s == [9.0, 9.0, 9.0]
    assert (run.started, run.most) == (3, 1)
    assert (run.startup_s, run.busy_s, run.idle_s, run.paid_s) == (27.0, 6.0, 180.0, 213.0)


def test_calls_within_the_window_start_one_container_and_wait_once() -> None:
    run = simulate([0.0, 40.0, 80.0], [2.0] * 3, Autoscaler(scaledown_window=60), cold_start_s=9.0)

    assert run.waits_s == [9.0, 0.0, 0.0]
    assert run.started == 1
    assert run.idle_s == (40 - 11) + (80 - 42) + 60


def test_of_two_idle_containers_the_one_that_worked_last_goes_on_and_the_other_stops() -> None:
    arrivals_s = [0.0, *(10.0 * number for number in range(11))]

    run = simulate(arrivals_s, [1.0] * 12, Autoscaler(scaledown_window=15), cold_start_s=5.0)

    # Both start at 0 and are done at 6. One takes every later job, the last from 100 to 101, and stops at 116; the
    # other stops at 21. Taking turns, each would idle 19 s at most and both would stay until the end.
    assert run.started == 2
    assert run.paid_s == 116.0 + 21.0


def test_a_waiting_job_takes_a_container_that_falls_free_before_its_own_is_up() -> None:
    run = simulate([0.0, 10.0], [2.0, 2.0], Autoscaler(scaledown_window=2), cold_start_s=9.0)

    assert run.waits_s == [9.0, 1.0]  # the first is done at 11; the second's own container would be up at 19
    assert run.started == 2
    assert run.idle_s == 4.0


def test_rare_poisson_jobs_are_cold_as_often_as_a_gap_outlasts_the_window() -> None:
    per_s, window_s, count = 1 / 300, 200.0, 20_000
    arrivals_s = poisson(count, per_s, seed=3)

    run = simulate(arrivals_s, [1e-6] * count, Autoscaler(scaledown_window=window_s), cold_start_s=1e-6)

    share = math.exp(-per_s * window_s)
    assert run.started / count == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))
    assert run.idle_s / count == pytest.approx((1 - share) / per_s, rel=0.02)  # mean of min(gap, window)


def test_a_buffer_exists_only_while_jobs_are_in_flight() -> None:
    run = simulate([100.0], [10.0], Autoscaler(buffer_containers=2, scaledown_window=2), cold_start_s=5.0)

    assert run.most == run.started == 3
    # Two buffers are up at 105 and stop at 115, when the job ends; its own container idles two seconds more.
    assert run.idle_s == 10.0 + 10.0 + 2.0


def test_the_least_number_of_containers_is_paid_all_day() -> None:
    run = simulate([50.0], [10.0], Autoscaler(min_containers=2), cold_start_s=5.0, horizon_s=1000.0)

    assert run.waits_s == [0.0]
    assert run.paid_s == 2000.0


def test_a_longer_window_and_a_larger_buffer_never_wait_longer_on_a_bursty_day() -> None:
    arrivals_s = jobs_of_day(2000, DayShape(), seed=5)

    def mean_wait_s(**changed: float) -> float:
        run = simulate(arrivals_s, [2.0] * 2000, Autoscaler(**changed), cold_start_s=9.0)  # type: ignore[arg-type]
        return statistics.fmean(run.waits_s)

    by_window = [mean_wait_s(scaledown_window=window_s) for window_s in (2, 10, 60, 300, 1200)]
    by_buffer = [mean_wait_s(buffer_containers=buffer) for buffer in (0, 1, 2, 4)]

    assert by_window == sorted(by_window, reverse=True)
    assert by_buffer == sorted(by_buffer, reverse=True)
    assert by_window[0] > by_window[-1]
    assert by_buffer[0] > by_buffer[-1]


@pytest.mark.parametrize(("least", "expected_s"), [(0, [9.0, 2.0, 9.0]), (1, [2.0, 2.0, 9.0])])
def test_the_first_input_of_a_started_container_may_take_longer(least: int, expected_s: list[float]) -> None:
    arrivals_s = [0.0, 20.0, 21.0]  # the third comes while the second occupies the only container

    run = simulate(arrivals_s, [2.0] * 3, Autoscaler(least), cold_start_s=0.5, first_service_s=[9.0] * 3)

    assert run.served_s == expected_s
    assert run.busy_s == sum(expected_s)


def test_impossible_settings_and_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="scaledown_window is 1 s; from 2 to 3600 s"):
        Autoscaler(scaledown_window=1)
    with pytest.raises(ValueError, match="at least min_containers"):
        Autoscaler(min_containers=3, max_containers=2)
    with pytest.raises(ValueError, match="not negative"):
        Autoscaler(buffer_containers=-1)
    with pytest.raises(ValueError, match="do not ascend"):
        simulate([2.0, 1.0], [1.0, 1.0], Autoscaler(), cold_start_s=1.0)
    with pytest.raises(ValueError, match="2 arrivals, 1 and 1 service times"):
        simulate([1.0, 2.0], [1.0], Autoscaler(), cold_start_s=1.0)


def test_a_quantile_is_a_value_that_enough_of_them_do_not_exceed() -> None:
    assert quantile([], 0.95) == 0
    assert quantile([3.0], 0.5) == 3.0
    assert quantile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert quantile([1.0, 2.0], 0.51) == 2.0


def test_a_day_has_its_jobs_in_order_and_the_same_ones_for_the_same_seed() -> None:
    day = jobs_of_day(5000, DayShape(), seed=1)

    assert len(day) == 5000
    assert day == sorted(day)
    assert 0 <= day[0] <= day[-1] <= DAY_S
    assert day == jobs_of_day(5000, DayShape(), seed=1)
    assert day != jobs_of_day(5000, DayShape(), seed=2)


def test_a_day_follows_its_wave_and_an_even_one_is_flat() -> None:
    wave, even = jobs_of_day(20_000, DayShape(burst_share=0), seed=1), jobs_of_day(20_000, EVEN, seed=1)

    def near(day: list[float], hour: int) -> float:
        return sum(abs(at - hour * 3600) < 3600 for at in day) / len(day)

    # Share of two hours around the peak and the trough: (1 +- 0.8 sin(x)/x) / 12 with x = 2 pi / 24.
    dip = 0.8 * math.sin(math.pi / 12) / (math.pi / 12)
    assert near(wave, 15) == pytest.approx((1 + dip) / 12, rel=0.06)
    assert near(wave, 3) == pytest.approx((1 - dip) / 12, rel=0.15)
    assert near(even, 15) == pytest.approx(1 / 12, rel=0.08)


def test_bursts_hold_their_share_of_the_jobs() -> None:
    shape = DayShape(burst_share=0.5, bursts=1)
    day = jobs_of_day(4000, shape, seed=9)

    fullest = max(sum(begin <= at <= begin + shape.burst_s for at in day) for begin in day[::50])

    assert fullest / 4000 > 0.45
