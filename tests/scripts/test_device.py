"""The count of what an engine asks of a GPU, on tiny models and known shapes, and the seconds that follow by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis2.engine import Trellis2Engine
from pipeline.ops.sparse import sparse_conv3
from pipeline.ops.voxels import VoxelSet
from scripts.benchmarks.device import CASES, GPUS, Case, calls_table, cents_table, count, overlay, stages_table, work_of
from scripts.cost_model.data import read_prices, read_stage_data
from scripts.cost_model.gpu_time import SHARES, StageWork, bounds_s, predicted_s
from tests.fakes.cuda.device import pretended_cuda
from tests.fakes.cuda.field_kernel import samples_of_tiles

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has CUDA")

CUDA = "cuda:0"
TINY = Case("trellis", lambda: TrellisEngine(weights="tiny", device=CUDA, dtype="float16"), {"slat_sampling_steps": 2})


def test_flops_of_known_shapes() -> None:
    half = {"dtype": torch.float16, "device": CUDA}
    with pretended_cuda({"test_flops_of_known_shapes": "here"}) as counts:
        F.linear(torch.zeros((2, 5, 8), **half), torch.zeros((3, 8), **half))
        F.scaled_dot_product_attention(*(torch.zeros((2, 4, n, 16), device=CUDA) for n in (7, 9, 9)))
        runs = torch.tensor([0, 3, 3, 10], dtype=torch.int32).to(CUDA)
        varlen_attn(*(torch.zeros((10, 4, 16), **half) for _ in range(3)), runs, runs, 7, 7)
        voxels = VoxelSet(torch.cartesian_prod(*[torch.arange(2)] * 4)[:8].to(CUDA), batch_size=1, side=2)
        sparse_conv3(torch.zeros((1, 8, 4), **half), voxels, torch.zeros((6, 3, 3, 3, 4), **half), None)

    found = {launch.op: (launch.flops, launch.precision) for launch in counts.launched if launch.flops}
    assert found == {
        "mm": (2 * 10 * 8 * 3, "float16"),
        "scaled_dot_product_attention": (2 * 2 * 2 * 4 * 7 * 9 * 16, "float32"),
        "_varlen_attn": (2 * 2 * 4 * (3**2 + 7**2) * 16, "float16"),
        "implicit_conv3": (2 * 8 * 27 * 4 * 6, "float16"),
    }


def test_memory_is_what_lives_at_once_and_views_take_none() -> None:
    with pretended_cuda() as counts:
        first = torch.zeros((1000, 4), device=CUDA)
        view = first[10:].view(-1)
        assert counts.memory.live_bytes == 16_000
        second = first + 1
        del first
        assert counts.memory.live_bytes == 32_000  # the view still holds the first
        del view
        assert counts.memory.live_bytes == 16_000
        del second

    assert counts.memory.live_bytes == 0
    assert counts.peak_bytes() == 32_000


def test_each_sampling_step_adds_the_same_work() -> None:
    work = [work_of(count(TINY, changes={"ss_sampling_steps": steps}))["structure"] for steps in (2, 3, 4)]

    flops = [sum(one.flops.values()) for one in work]
    assert flops[2] - flops[1] == flops[1] - flops[0] > 0
    assert work[2].launches - work[1].launches == work[1].launches - work[0].launches > 0
    assert all(one.peak_bytes > 0 and one.moved_bytes > 0 for one in work)
    assert {precision for _, precision in work[0].flops} == {"float16", "float32"}


def test_a_render_is_one_stage_with_its_rays() -> None:
    rendered = work_of(count(TINY, changes={"ss_sampling_steps": 2, "render": True}))

    frames, size = 24, 128  # of the tiny model
    assert rendered["render"].flops["rays", "float32"] > frames * size * size
    assert rendered["render"].waits <= frames + 6


@pytest.mark.parametrize("entries", [4, 8])
def test_a_ray_along_an_axis_takes_two_samples_for_each_entry(entries: int) -> None:
    pose = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -2.0)  # looks along z from two units away
    table = torch.zeros((4, 4, 4), dtype=torch.int32)

    taken, crossed = samples_of_tiles(
        table, pose=pose, tangents=(1e-6, 1e-6), box=(-0.5, -0.5, -0.5, 1, 1, 1), size=8, entries=entries
    )
    table[:, :, 1:] = -1
    quarter, _ = samples_of_tiles(
        table, pose=pose, tangents=(1e-6, 1e-6), box=(-0.5, -0.5, -0.5, 1, 1, 1), size=8, entries=entries
    )

    assert taken.unique().tolist() == [4 * 2 * entries]
    assert crossed.unique().tolist() == [4]
    assert quarter.unique().tolist() == [2 * entries]


def test_a_stage_takes_as_long_as_the_slowest_of_its_four() -> None:
    rates = {"dense_fp16_tflops": 100.0, "dense_fp32_tflops": 10.0, "memory_gb_per_s": 1000.0}
    stage = StageWork(
        launches=1000,
        waits=10,
        moved_bytes=3 * 10**9,
        flops={("product", "float16"): 10**11, ("attention", "bfloat16"): 10**11, ("product", "float32"): 10**10},
    )

    assert bounds_s(stage, rates) == pytest.approx(
        {
            "arithmetic": 1e-3 / SHARES["product"] + 1e-3 / SHARES["attention"] + 1e-3 / SHARES["product"],
            "memory": 3e-3,
            "launches": 5e-3,
            "waits": 2e-4,
        }
    )
    slow = StageWork(launches=1, waits=1000, moved_bytes=0, flops={})
    assert predicted_s({"one": stage, "other": slow}, rates) == pytest.approx(
        bounds_s(stage, rates)["arithmetic"] + 0.02
    )


def test_the_tables_have_a_row_for_every_call_and_the_cents_are_those_of_the_price_list() -> None:
    stage = StageWork(1, 1, 0, {("product", "float16"): int(989.4e12 * SHARES["product"])}, peak_bytes=5 * 10**9)
    work = {"triposr": {"only": stage}}
    rates: dict[str, Any] = read_stage_data()["gpus"]
    seconds = {"triposr": {gpu: predicted_s(work["triposr"], rates[gpu]) for gpu in GPUS}}

    assert "arithmetic" in stages_table(work, rates["H100"], "H100")
    assert seconds["triposr"]["H100"] == pytest.approx(1.0)
    assert "5.0" in calls_table(seconds, work)
    containers = read_stage_data()["containers"]["gpu"]
    prices = read_prices()
    second = prices.gpu_usd_per_s["H100"] + containers["cores"] * prices.core_usd_per_s
    second += containers["memory_gib"] * prices.memory_gib_usd_per_s
    assert f" {100 * second:.2f} / " in cents_table(seconds)
    assert overlay(seconds)["engines"]["triposr"]["generate"]["H100"]["how"] == "arithmetic"
    assert {case.engine for case in CASES.values()} == {"trellis", "trellis-text", "triposr", "trellis2"}


def test_tiny_trellis2_is_counted_too() -> None:
    case = Case(
        "trellis2",
        lambda: Trellis2Engine(weights="tiny", device=CUDA, detail=512),
        {"detail": 512, "ss_sampling_steps": 2, "slat_sampling_steps": 2, "tex_sampling_steps": 2},
    )

    work = work_of(count(case))

    assert {"structure", "latents", "decode", "surface"} <= work.keys()
    assert ("convolution", "float16") in work["decode"].flops
