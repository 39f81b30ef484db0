"""What a generation asks of a GPU, counted on the pretended device: nothing mixes devices, and budgets are kept.

The tiny models run every option with values, so that their results are checked too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis.text.engine import TrellisTextEngine
from pipeline.engines.triposr.engine import TripoSREngine
from pipeline.mesh.voxelize import voxelize
from tests.fakes.cuda.counts import Counts
from tests.fakes.cuda.device import pretended_cuda
from tests.fakes.images import draw_disc
from tests.mesh.shapes import cuboid

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has CUDA")

STAGES = {
    "GenerationRun._sample_voxels": "structure",
    "GenerationRun._sample_latents": "latents",
    "decode_mesh": "decode",
    "decode_gaussians": "decode",
    "render_turntable": "render",
    "DINOSingleImageTokenizer.forward": "encode",
    "Transformer1D.forward": "backbone",
    "extract_surface": "surface",
    "sample_structure": "structure",
    "sample_latents": "latents",
    "SparseUnetVaeDecoder.forward": "decode",
    "surface_of": "surface",
}
SHORT = GenerationOptions(seed=7, ss_sampling_steps=3, slat_sampling_steps=3, tex_sampling_steps=3, splat=True)
TEXT = replace(SHORT, prompt="a robot")
DISC, OTHER = draw_disc(), draw_disc(red=0)
BOX = cuboid((1.0, 0.5, 0.25))
MOST_VERTEX_SHIFT = 1e-3  # float32: the kernels for a GPU round once where the formulas for a CPU round twice


def counted(
    make: Callable[[], Any], views: Sequence[Any], options: GenerationOptions, **device: Any
) -> tuple[Generation, Counts]:
    """A generation after a first one, and what it asked of the device."""
    with pretended_cuda(STAGES, **device) as counts:
        engine = make()
        engine.load()
        counts.reset()
        generation = engine.generate(views, options)
    assert generation.gpu_seconds > 0
    return generation, counts


CALLS: dict[str, tuple[type[Any], dict[str, Any], list[Any], GenerationOptions]] = {
    "trellis": (TrellisEngine, {}, [DISC], SHORT),
    "trellis stochastic": (TrellisEngine, {}, [DISC, OTHER], SHORT),
    "trellis multidiffusion": (TrellisEngine, {}, [DISC, OTHER], replace(SHORT, multi_image_mode="multidiffusion")),
    "trellis other resolution": (TrellisEngine, {}, [DISC], replace(SHORT, resolution=128, no_texture=True)),
    "trellis small chunks": (TrellisEngine, {}, [DISC], replace(SHORT, chunk_size=100)),
    "text": (TrellisTextEngine, {}, [], TEXT),
    "text negative": (TrellisTextEngine, {}, [], replace(TEXT, negative_prompt="blurry")),
    "text variant": (TrellisTextEngine, {}, [], replace(TEXT, init_voxels=voxelize(BOX.vertices, BOX.faces))),
    "triposr": (TripoSREngine, {}, [DISC], replace(SHORT, resolution=64)),
    "triposr coarse to fine": (TripoSREngine, {}, [DISC], replace(SHORT, resolution=100)),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_operation_mixes_devices_and_the_surface_is_that_of_the_cpu(name: str) -> None:
    engine_class, configuration, views, options = CALLS[name]
    own = {} if engine_class is TripoSREngine else {"dtype": "float32"}

    on_device, _ = counted(
        lambda: engine_class(weights="tiny", device="cuda:0", **own, **configuration), views, options
    )
    on_cpu = engine_class(weights="tiny", device="cpu", **own, **configuration).generate(views, options)

    # A vertex whose distance is nearly 0 may change its side, so a few faces may differ.
    assert len(on_device.mesh.faces) == pytest.approx(len(on_cpu.mesh.faces), rel=2e-3)
    if on_device.mesh.vertices.shape == on_cpu.mesh.vertices.shape:
        shift = np.abs(on_device.mesh.vertices - on_cpu.mesh.vertices).max()
        assert shift < MOST_VERTEX_SHIFT
    assert on_device.extra_files.keys() == on_cpu.extra_files.keys()


@pytest.mark.parametrize("name", ["trellis", "triposr coarse to fine"])
def test_a_generation_waits_for_the_device_a_few_times(name: str) -> None:
    engine_class, _, views, options = CALLS[name]

    _, counts = counted(lambda: engine_class(weights="tiny", device="cuda:0"), views, options)

    assert counts.waits() <= 40, counts.report()
    assert counts.waits("structure") <= 4, counts.report()  # is there a negative, and which voxels are occupied
