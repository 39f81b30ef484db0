"""A generation on a pretended device: no operation mixes devices, and steps wait no more often than those of images."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.engines.base import GenerationOptions
from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis.sampling_engine import SamplingEngine
from pipeline.engines.trellis.text.engine import TrellisTextEngine
from pipeline.mesh.voxelize import voxelize
from tests.fakes.images import draw_disc
from tests.mesh.shapes import cuboid
from tests.parity.harness import KITS

TOOL = KITS / "tools" / "pretend_cuda.py"
OPTIONS = GenerationOptions(seed=7, ss_sampling_steps=3, slat_sampling_steps=3, splat=True)
TEXT = replace(OPTIONS, prompt="a robot")
MESH = cuboid((1.0, 0.5, 0.25))

pytestmark = pytest.mark.skipif(not TOOL.is_file(), reason="the pretended device is not next to this checkout")


def counted(engine_class: type[SamplingEngine], views: list[Any], options: GenerationOptions) -> Any:
    """What a generation asked of the device; raises where tensors of two devices meet."""
    specification = importlib.util.spec_from_file_location("pretend_cuda", TOOL)
    assert specification is not None and specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    with torch.no_grad(), tool.pretend() as count:
        engine: Any = engine_class(weights="tiny", device="cuda:0", dtype="float32")  # type: ignore[call-arg]
        engine.load()
        count.reset()
        generation = engine.generate(views, options)
        assert generation.gpu_seconds > 0
    return count


@pytest.mark.parametrize(
    "options",
    [
        TEXT,
        replace(TEXT, negative_prompt="blurry"),
        replace(TEXT, init_voxels=voxelize(MESH.vertices, MESH.faces)),
    ],
    ids=["text", "negative", "variant"],
)
def test_no_operation_of_a_text_mixes_devices(options: GenerationOptions) -> None:
    assert counted(TrellisTextEngine, [], options).launches > 1000


def test_more_steps_wait_for_the_device_as_often_as_those_of_images() -> None:
    more = {"ss_sampling_steps": 8, "slat_sampling_steps": 8}

    def waits_per_step(engine_class: type[SamplingEngine], views: list[Any], options: GenerationOptions) -> float:
        few, many = (counted(engine_class, views, each) for each in (options, replace(options, **more)))
        return (many.syncs - few.syncs) / 10

    # The voxels that the samples occupy differ with the steps, and with them a few host tables.
    assert waits_per_step(TrellisTextEngine, [], TEXT) <= waits_per_step(TrellisEngine, [draw_disc()], OPTIONS) + 5
