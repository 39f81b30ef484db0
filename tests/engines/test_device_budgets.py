"""What a generation asks of a GPU, counted on the pretended device: nothing mixes devices, and budgets are kept.

Two kinds of count. The tiny models run every option with values, so that their results are checked too. The released
TRELLIS and TripoSR run at their full depth and width without values, on a ball: nothing is counted for one block and
multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.base import Generation, GenerationOptions
from pipeline.engines.trellis.engine import TrellisEngine
from pipeline.engines.trellis.text.engine import TrellisTextEngine
from pipeline.engines.trellis2.engine import Trellis2Engine
from pipeline.engines.triposr.engine import TripoSREngine
from pipeline.errors import OutOfMemory
from pipeline.mesh.voxelize import voxelize
from tests.fakes.cuda.counts import Counts
from tests.fakes.cuda.device import pretended_cuda
from tests.fakes.cuda.full_size import trellis_engine, triposr_engine
from tests.fakes.cuda.stages import STAGES
from tests.fakes.images import draw_disc
from tests.mesh.shapes import cuboid

pytestmark = pytest.mark.skipif(torch.version.cuda is not None, reason="this build of torch has CUDA")

SHORT = GenerationOptions(seed=7, ss_sampling_steps=3, slat_sampling_steps=3, tex_sampling_steps=3, splat=True)
TEXT = replace(SHORT, prompt="a robot")
DISC, OTHER = draw_disc(), draw_disc(red=0)
BOX = cuboid((1.0, 0.5, 0.25))
MOST_VERTEX_SHIFT = 1e-3  # float32: the kernels for a GPU round once where the formulas for a CPU round twice


def counted(
    make: Callable[[], Any],
    views: Sequence[Any],
    options: GenerationOptions,
    *,
    stages: Mapping[str, str] = STAGES,
    **device: Any,
) -> tuple[Generation, Counts]:
    """A generation after a first one, and what it asked of the device."""
    with pretended_cuda(stages, **device) as counts:
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
    "trellis2": (Trellis2Engine, {"detail": 512}, [DISC], replace(SHORT, detail=512)),
    "trellis2 offloaded": (Trellis2Engine, {"detail": 512, "offload": True}, [DISC], replace(SHORT, detail=512)),
    "trellis2 multidiffusion": (
        Trellis2Engine,
        {"detail": 512},
        [DISC, OTHER],
        replace(SHORT, detail=512, multi_image_mode="multidiffusion"),
    ),
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["trellis", "trellis multidiffusion", "text negative", "trellis2"])
def test_half_precision_mixes_no_devices_and_gives_a_surface(name: str, dtype: str) -> None:
    engine_class, configuration, views, options = CALLS[name]

    generation, _ = counted(
        lambda: engine_class(weights="tiny", device="cuda:0", dtype=dtype, **configuration), views, options
    )

    assert len(generation.mesh.faces) > 1000


@pytest.mark.parametrize(
    ("engine_class", "options", "frames"),
    [(TrellisEngine, replace(SHORT, render=True), 2), (TripoSREngine, replace(SHORT, render=True, resolution=64), 2)],
)
def test_a_turntable_mixes_no_devices(engine_class: type[Any], options: GenerationOptions, frames: int) -> None:
    def make() -> Any:
        engine = engine_class(weights="tiny", device="cuda:0")
        engine.spec = replace(engine.spec, turntable_frames=frames, turntable_size=16)
        return engine

    generation, _ = counted(make, [DISC], options)

    assert generation.turntable_mp4 is not None


def test_the_released_trellis_keeps_its_budgets() -> None:
    options = GenerationOptions(seed=7)

    generation, counts = counted(lambda: trellis_engine(radius=21.5), [DISC], options)

    assert len(generation.mesh.faces) > 500_000
    assert counts.waits() <= 40, counts.report()
    assert counts.peak_bytes() < MOST_BYTES, counts.most_bytes
    assert counts.launches("decode") <= MOST_DECODING, counts.report(most=40)
    # 24 blocks of the structure flow; 24 transformer and 4 residual blocks of the latent flow.
    assert counts.launches("structure") <= (12 * 28 * 24) + AROUND_SAMPLING, counts.report(most=40)
    assert counts.launches("latents") <= (12 * 28 * (24 + 4)) + AROUND_SAMPLING, counts.report(most=40)


MOST_DECODING = 800
"""Kernels of the two decoders and of the surface."""
MOST_BYTES = 8e9
"""Weights and what is alive beside them, for 17,400 voxels, about as many as an object has."""
AROUND_SAMPLING = 200
"""Kernels before and after the steps: keys and values of 24 blocks, tables of voxels, the structure decoder's 60."""


def test_the_released_triposr_keeps_its_budget_from_tokens_to_mesh() -> None:
    generation, counts = counted(triposr_engine, [DISC], GenerationOptions(seed=7))

    after = [stage for stage in counts.stages() if stage != "encode"]
    assert len(generation.mesh.faces) > 100_000
    assert counts.launches(*after) <= 2500, counts.report(most=40)
    assert counts.waits(*after) <= 60, counts.report(most=40)


def test_a_text_costs_what_an_image_costs_and_the_encoder() -> None:
    # The tiny text model has a residual level more, as the released XL has: these blocks are counted apart.
    stages = STAGES | {"SparseResBlock3d.forward": "residual"}
    _, of_image = counted(lambda: TrellisEngine(weights="tiny", device="cuda:0"), [DISC], SHORT, stages=stages)
    _, of_text = counted(lambda: TrellisTextEngine(weights="tiny", device="cuda:0"), [], TEXT, stages=stages)

    for stage in ("structure", "latents", "decode"):
        # The unguided pass of a text attends to an encoded text, where that of images adds a constant.
        assert of_text.launches(stage) <= 1.05 * of_image.launches(stage) + 30, (stage, of_text.report(most=30))
    assert of_text.waits() <= of_image.waits() + 2, of_text.report()


def test_trellis2_keeps_its_budgets() -> None:
    steps = 3
    options = replace(SHORT, detail=512, splat=False)

    _, counts = counted(lambda: Trellis2Engine(weights="tiny", device="cuda:0", detail=512), [DISC], options)

    # Two blocks; beside TRELLIS's 28 kernels a block turns queries and keys (6), normalises them in the attention to
    # the image (3) and adds its own modulation (2). Around them 40: time, embedding, guidance with its rescaling.
    assert counts.launches("structure") <= steps * (2 * 39 + 40) + 80, counts.report(most=40)
    assert counts.launches("latents") <= 2 * (steps * (2 * 39 + 40) + 80), counts.report(most=40)
    # Each of four levels of two decoders: a wait for the number of children.
    assert counts.waits() <= 40, counts.report(most=40)


def test_more_steps_wait_for_nothing() -> None:
    for engine_class, views, options in ((TrellisEngine, [DISC], SHORT), (TrellisTextEngine, [], TEXT)):
        waits = [
            counted(
                lambda engine_class=engine_class: engine_class(weights="tiny", device="cuda:0"),
                views,
                replace(options, ss_sampling_steps=steps, slat_sampling_steps=steps),
            )[1].waits("structure", "latents")
            for steps in (2, 6)
        ]
        assert waits[0] == waits[1]


@pytest.mark.parametrize("stage", ["structure", "latents", "decode", "render"])
def test_a_generation_that_runs_out_of_memory_anywhere_is_repeated_with_less(stage: str) -> None:
    options = replace(SHORT, render=True)
    with pretended_cuda(STAGES) as counts:
        engine = TrellisEngine(weights="tiny", device="cuda:0", dtype="float32")
        engine.spec = replace(engine.spec, turntable_frames=1, turntable_size=16)
        engine.load()
        expected = engine.generate([DISC], options)
        counts.out_of_memory_in.add(stage)

        generation = engine.generate([DISC], options)

    assert not counts.out_of_memory_in
    assert len(generation.mesh.faces) == pytest.approx(len(expected.mesh.faces), rel=2e-3)
    assert generation.turntable_mp4 is not None


def test_triposr_repeats_with_smaller_chunks_and_the_same_bytes_and_then_gives_up() -> None:
    options = replace(SHORT, resolution=64)
    with pretended_cuda(STAGES) as counts:
        engine = TripoSREngine(weights="tiny", device="cuda:0")
        engine.load()
        expected = engine.generate([DISC], options)
        counts.out_of_memory_in.add("surface")
        again = engine.generate([DISC], options)

        counts.out_of_memory_in |= {"encode", "backbone"}
        with pytest.raises(OutOfMemory, match="even for 2048 points at a time: 85"):
            engine.generate([DISC], options)

    assert np.array_equal(again.mesh.vertices, expected.mesh.vertices)
    assert np.array_equal(again.mesh.faces, expected.mesh.faces)


@pytest.mark.parametrize("free_gib", [1, 80])
def test_neither_chunk_size_nor_free_memory_changes_triposrs_bytes(free_gib: int) -> None:
    meshes = []
    for chunk_size in (1, 500, 8192, 12_000):
        generation, _ = counted(
            lambda: TripoSREngine(weights="tiny", device="cuda:0"),
            [DISC],
            replace(SHORT, resolution=100, chunk_size=chunk_size),
            free_bytes=free_gib << 30,
        )
        meshes.append(generation.mesh)

    for mesh in meshes[1:]:
        assert np.array_equal(mesh.vertices, meshes[0].vertices)
        assert np.array_equal(mesh.faces, meshes[0].faces)
