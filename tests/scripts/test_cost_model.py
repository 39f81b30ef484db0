"""The price of a job: by hand for one row, from sourced data, and through the command line."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.cost_model.autoscaler import Autoscaler
from scripts.cost_model.data import (
    PRICES,
    STAGE_SECONDS,
    Container,
    Duration,
    StageSeconds,
    overlay_of_runs,
    read_prices,
    read_stage_data,
    stage_seconds,
)
from scripts.cost_model.days import DayShape
from scripts.cost_model.jobs import Deployment, Rates, awake_s, cold_job, rates_of, run_day, warm_job
from scripts.cost_model.report import GPUS, Trial, default_grid, main, recommend, try_settings, undominated

ROUND = StageSeconds(
    dated="2026-01-01",
    stages={
        "intake": (Duration("work", 1.0, "measured", "hand"),),
        "generate": (Duration("work", 2.0, "measured", "hand"),),
        "export": (Duration("work", 3.0, "measured", "hand"), Duration("more", 1.0, "assumed", "hand")),
        "deliver": (Duration("work", 1.0, "measured", "hand"),),
    },
    startups={
        "web": (Duration("boot", 2.0, "measured", "hand"),),
        "call": (Duration("boot", 4.0, "measured", "hand"),),
        "gpu": (Duration("boot", 10.0, "measured", "hand"),),
    },
    beside_first_call=(),
    containers={
        "web": Container(0.25, 0.5),
        "call": Container(2, 4),
        "gpu": Container(2, 16, "H100"),
    },
)


def test_a_cold_job_costs_what_it_comes_to_by_hand() -> None:
    rates = rates_of(ROUND, read_prices())
    sixty = Deployment(Autoscaler(scaledown_window=60), Autoscaler(scaledown_window=60))

    bill = cold_job(ROUND, rates, sixty)

    assert rates.gpu == pytest.approx(0.001097 + 2 * 0.0000131 + 16 * 0.00000222)  # 0.00115872
    assert rates.call == pytest.approx(2 * 0.0000131 + 4 * 0.00000222)  # 0.00003508
    assert rates.web == pytest.approx(0.25 * 0.0000131 + 0.5 * 0.00000222)  # 0.000004385
    assert bill.gpu_startup == pytest.approx(10 * 0.00115872)
    assert bill.gpu_busy == pytest.approx(2 * 0.00115872)
    assert bill.gpu_idle == pytest.approx(60 * 0.00115872)
    # The job waits 10 s for the GPU, which starts while the image is downloaded: 10 + 2 + 4 + 1.
    assert bill.call_busy == pytest.approx(17 * 0.00003508)
    assert bill.call_other == pytest.approx((4 + 60) * 0.00003508)
    # The web function starts in 2 s, is awake until the job ends at 4 + 17, and idles.
    assert bill.web == pytest.approx((2 + 21 + 60) * 0.000004385)
    assert 100 * bill.total == pytest.approx(8.66333, abs=1e-5)


@pytest.mark.parametrize(("beside_s", "call_s"), [(11.0, 17.0), (15.0, 20.0)])
def test_the_first_export_of_a_container_waits_for_what_it_does_beside_the_job(beside_s: float, call_s: float) -> None:
    times = replace(ROUND, beside_first_call=(Duration("compiling", beside_s, "measured", "hand"),))
    rates = Rates(web=0.0, call=1.0, gpu=0.0)

    cold = cold_job(times, rates, Deployment(Autoscaler()))
    two = run_day([0.0, 50.0], times, rates, Deployment(Autoscaler()))

    assert cold.call_busy == pytest.approx(call_s)
    assert two.bill.call_busy == pytest.approx(call_s + 1 + 2 + 4 + 1)


def test_a_warm_job_costs_its_work_alone() -> None:
    bill = warm_job(ROUND, Rates(web=1.0, call=0.01, gpu=0.1))

    assert bill.call_busy == pytest.approx(0.08)
    assert bill.gpu_busy == pytest.approx(0.2)
    assert bill.total == pytest.approx(0.28)


def test_one_job_a_day_is_a_cold_job_and_many_approach_a_warm_one() -> None:
    rates = rates_of(ROUND, read_prices())
    deployment = Deployment(Autoscaler(), Autoscaler())
    every_half_minute = [30.0 * number for number in range(2000)]

    alone = run_day([70_000.0], ROUND, rates, deployment).bill
    busy = run_day(every_half_minute, ROUND, rates, deployment)

    assert alone.total == pytest.approx(cold_job(ROUND, rates, deployment).total)
    assert busy.gpu.started == 1
    assert busy.bill.gpu_busy / 2000 == pytest.approx(warm_job(ROUND, rates).gpu_busy)


def test_the_web_function_is_paid_once_for_jobs_that_overlap() -> None:
    sixty = Autoscaler(scaledown_window=60)

    assert awake_s([0.0, 5.0], [20.0, 30.0], sixty, startup_s=2.0, horizon_s=0.0) == 2 + 90
    assert awake_s([0.0, 500.0], [20.0, 510.0], sixty, startup_s=2.0, horizon_s=0.0) == 2 + 80 + 2 + 70
    assert awake_s([], [], sixty, startup_s=2.0, horizon_s=86_400.0) == 0
    assert awake_s([0.0], [9.0], Autoscaler(min_containers=1), startup_s=2.0, horizon_s=86_400.0) == 86_400


def test_multipliers_apply_to_what_they_are_published_for() -> None:
    prices = read_prices()
    gpu, call = Container(2, 16, "H100"), Container(2, 4)

    assert prices.usd_per_s(gpu, ["region-broad"]) == pytest.approx(1.15 * prices.usd_per_s(gpu))
    assert prices.usd_per_s(call, ["nonpreemptible"]) == pytest.approx(3 * prices.usd_per_s(call))
    assert prices.usd_per_s(gpu, ["nonpreemptible"]) == prices.usd_per_s(gpu)  # not offered with a GPU
    assert prices.usd_per_s(Container(0.01, 0)) == pytest.approx(0.125 * 0.0000131)  # the least that is billed


def test_every_price_says_where_and_when_it_was_seen(tmp_path: Path) -> None:
    said = json.loads(PRICES.read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", read_prices().dated)
    said["peers"][0]["seen"] = ""
    (tmp_path / "unsourced.json").write_text(json.dumps(said))

    with pytest.raises(ValueError, match=r"unsourced\.json: every row needs source and seen"):
        read_prices(tmp_path / "unsourced.json")


@pytest.mark.parametrize(("engine", "gpu"), [(engine, gpu) for engine in GPUS for gpu in GPUS[engine]])
def test_every_duration_says_how_it_was_obtained(engine: str, gpu: str) -> None:
    times = stage_seconds(read_stage_data(), engine=engine, gpu=gpu)

    steps = [step for group in (times.stages, times.startups) for steps in group.values() for step in steps]
    assert all(step.by and step.seconds > 0 for step in steps)
    assert set(times.stages) == {"intake", "generate", "export", "deliver"}
    assert gpu in read_prices().gpu_usd_per_s


def test_gpu_seconds_by_arithmetic_are_work_over_rate_and_slow_down_when_asked() -> None:
    data = read_stage_data()

    h100, besides = (step.seconds for step in stage_seconds(data, engine="trellis", gpu="H100").stages["generate"])
    slower, _ = (
        step.seconds for step in stage_seconds(data, engine="trellis", gpu="H100", slowdown=3).stages["generate"]
    )

    assert h100 == pytest.approx(286 / (0.08 * 989.4))
    assert besides > 0
    assert slower == pytest.approx(3 * h100)


def test_own_measurements_replace_the_rows_they_name_and_no_others(tmp_path: Path) -> None:
    answer = {"status": "success", "meta": {"engine": "trellis"}}
    runs = [
        json.dumps(answer | {"stage_seconds": {"intake": 0.1, "generate": at, "export": 5.0, "deliver": 0.2}})
        for at in (3.0, 9.0, 4.0)
    ]
    runs.append(json.dumps({"status": "failed"}))
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps(overlay_of_runs(runs, engine="trellis", gpu="H100", dated="2027-01-02")))

    shipped, laid = read_stage_data(), read_stage_data(overlay)
    mine = stage_seconds(laid, engine="trellis", gpu="H100", slowdown=3)
    other = stage_seconds(laid, engine="trellis", gpu="L40S")

    assert mine.dated == "2027-01-02"
    assert mine.stages["generate"][0].seconds == 4.0  # measured, so not slowed down
    assert [step.seconds for step in mine.stages["export"]] == [5.0]
    assert mine.startups == stage_seconds(shipped, engine="trellis", gpu="H100").startups
    assert other.stages["generate"] == stage_seconds(shipped, engine="trellis", gpu="L40S").stages["generate"]
    assert laid["engines"]["triposr"] == shipped["engines"]["triposr"]


def test_answers_of_another_engine_are_no_measurement() -> None:
    run = json.dumps({"status": "success", "meta": {"engine": "preview"}, "stage_seconds": {}})

    with pytest.raises(ValueError, match="none of 1 answers is a successful run of trellis"):
        overlay_of_runs([run], engine="trellis", gpu=None, dated="2027-01-02")


def test_a_duration_without_its_origin_is_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({"engines": {"trellis": {"stages": {"export": {"work": {"how": "guessed"}}}}}}))

    with pytest.raises(ValueError, match="how is one of measured, arithmetic, published, assumed"):
        stage_seconds(read_stage_data(overlay), engine="trellis", gpu="H100")


def test_the_recommended_settings_are_the_cheapest_that_meet_the_wait() -> None:
    rates = rates_of(ROUND, read_prices())
    trials = try_settings(default_grid([2, 10]), 3000, ROUND, rates, seed=0, shape=DayShape())

    best, strict = recommend(trials, 10.0), recommend(trials, 0.5)

    assert best is not None
    assert strict is not None
    assert [trial.usd_per_day for trial in trials] == sorted(trial.usd_per_day for trial in trials)
    assert best.wait_s(0.95) <= 10.0
    assert strict.wait_s(0.95) <= 0.5
    assert not [trial for trial in trials if trial.usd_per_day < strict.usd_per_day and trial.wait_s(0.95) <= 0.5]
    assert strict.usd_per_day > best.usd_per_day
    assert recommend(trials, -1.0) is None
    assert best in undominated(trials)
    assert try_settings([strict.settings], 3000, ROUND, rates, seed=0, shape=DayShape()) == [strict]


def test_settings_that_cost_more_and_wait_longer_are_left_out() -> None:
    def trial(usd: float, wait_s: float) -> Trial:
        return Trial(Autoscaler(), (wait_s,), 0.0, usd, usd, usd)

    cheap, beaten, fast = trial(1, 9), trial(2, 9), trial(3, 0)

    assert undominated([cheap, beaten, fast]) == [cheap, fast]


def test_the_table_prints_a_row_for_every_gpu_in_columns_that_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table"]) == 0

    printed = capsys.readouterr().out
    tables = [block.splitlines() for block in printed.split("\n\n") if block.startswith("|")]
    assert all(len({len(line) for line in table}) == 1 for table in tables)
    cents = {row.split("|")[1].strip(): [float(cell) for cell in row.split("|")[2:-1]] for row in tables[0][2:]}
    assert list(cents) == list(GPUS["trellis"])
    for _, warm, cold, one, hundred, many in cents.values():
        assert warm < many < hundred < one == cold


def test_the_simulation_prints_what_it_recommends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--calls", "500", "--max-containers", "2", "--p95", "16", "10", "--gpu", "L40S"]) == 0

    printed = capsys.readouterr().out
    assert printed.startswith("trellis on L40S, 500 jobs a day; days: 6")
    assert "p95 <= 16 s: min_containers=0, max_containers=2, buffer_containers=0, scaledown_window=10" in printed
    assert "p95 <= 10 s: min_containers=1" in printed


def test_sources_and_measured_print_and_a_wrong_name_ends_with_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(STAGE_SECONDS, tmp_path / "same.json")

    assert main(["sources", "--stages", str(tmp_path / "same.json")]) == 0
    assert "https://modal.com/pricing" in capsys.readouterr().out
    assert main(["simulate", "--gpu", "A10"]) == 2
    assert capsys.readouterr().err == "cost_model: no dense_fp16_tflops of A10 in the data\n"
    assert main(["table", "--gpu", "M1"]) == 2
    assert main(["measured", str(tmp_path / "missing.jsonl")]) == 2
