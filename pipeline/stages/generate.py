"""Stage 2: turns foreground images into a `Generation`. Knows how to run an engine, not which ones exist."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.engines.base import (
    Engine,
    ForegroundImage,
    Generation,
    GenerationOptions,
    OnStep,
    ignore_steps,
    input_kind,
)
from pipeline.engines.registry import check_input, check_views, find_spec, make_engine
from pipeline.errors import EngineFailed, ImageTo3DError, translate
from schemas.request import GenerationRequest, ImageTo3DRequest
from schemas.text import TextTo3DRequest

MAX_SEED = 2**32 - 1

log = logging.getLogger(__name__)


def draw_seed() -> int:
    """A random seed, 1 to 2^32-1: what seed 0 in a request asks for."""
    return 1 + secrets.randbelow(MAX_SEED)


def options_of(request: GenerationRequest, *, seed: int) -> GenerationOptions:
    """The part of a request that an engine may use.

    Args:
        seed: the effective seed, already drawn where the request has 0.
    """
    options = GenerationOptions(
        seed=seed,
        resolution=request.resolution,
        ss_guidance_strength=request.ss_guidance_strength,
        ss_sampling_steps=request.ss_sampling_steps,
        slat_guidance_strength=request.slat_guidance_strength,
        slat_sampling_steps=request.slat_sampling_steps,
        chunk_size=request.points_at_once,
        render=request.render,
        no_texture=request.no_texture,
        splat=request.splat,
    )
    if isinstance(request, TextTo3DRequest):
        return replace(options, prompt=request.prompt, negative_prompt=request.negative_prompt)
    assert isinstance(request, ImageTo3DRequest)
    return replace(
        options,
        multi_image_mode=request.multi_image_mode,
        depth=request.depth,
        detail=request.detail,
        tex_guidance_strength=request.tex_guidance_strength,
        tex_sampling_steps=request.tex_sampling_steps,
        foreground_ratio=request.foreground_ratio,
        view_angles=request.view_angles,
    )


class LocalEngines:
    """Engines in this process: each is created and loaded at its first use, then kept.

    Args:
        default: the engine for requests that name none.
        weights: the folder of all engines' weights, or "tiny" for random ones of small shapes.
        arguments: further arguments of each engine's class, by the engine's name.
    """

    def __init__(
        self, default: str, *, weights: str = "weights", arguments: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self._default = default
        self._weights = weights
        self._arguments = arguments or {}
        self._loaded: dict[str, Engine] = {}

    def generate(
        self,
        name: str | None,
        views: Sequence[ForegroundImage],
        options: GenerationOptions,
        on_step: OnStep = ignore_steps,
    ) -> Generation:
        """Generate with the engine that a request names.

        Args:
            name: the engine; None is the default one.

        Raises:
            InvalidRequest: there is no engine of that name, or it does not take the input.
            ImageTo3DError: as `run_engine`.
        """
        spec = find_spec(name or self._default)
        check_input(spec, input_kind(options))
        check_views(spec, len(views))
        return run_engine(self._loaded_engine(spec.name), views, options, on_step=on_step)

    def _loaded_engine(self, name: str) -> Engine:
        if name not in self._loaded:
            engine = configured_engine(name, weights=self._weights, arguments=self._arguments)
            engine.load()
            log_device(name, engine)
            self._loaded[name] = engine
        return self._loaded[name]


def log_device(name: str, engine: Engine) -> None:
    """Log once after a load what an engine computes on, so that slow jobs can be told from a GPU that was not found."""
    log.info("engine %s computes on %s", name, device_name(engine))


def device_name(engine: Engine) -> str:
    """The accelerator that an engine was loaded to, such as `NVIDIA H100 80GB HBM3`, or `CPU`."""
    torch = sys.modules.get("torch")  # not imported for an engine that does without
    is_on_gpu = torch is not None and engine.is_on_accelerator and torch.cuda.is_available()
    return torch.cuda.get_device_name() if torch is not None and is_on_gpu else "CPU"


def configured_engine(name: str, *, weights: str, arguments: Mapping[str, Mapping[str, Any]] | None = None) -> Engine:
    """The engine of that name, not yet loaded; the arguments are those of `LocalEngines`.

    Raises:
        InvalidRequest: there is none.
        MissingExtra: its optional dependencies are not installed.
    """
    folder = {"weights": weights} if find_spec(name).has_weights else {}
    return make_engine(name, **folder, **(arguments or {}).get(name, {}))


def run_engine(
    engine: Engine, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
) -> Generation:
    """Generate with a loaded engine and check that the result can be exported.

    Raises:
        ImageTo3DError: with the `gpu_seconds` that were used; a foreign exception is its `__cause__`.
    """
    started_s = time.perf_counter()
    try:
        return check_generation(engine.generate(views, options, on_step=on_step))
    except ImageTo3DError as error:
        error.gpu_seconds = _gpu_seconds(engine, since_s=started_s)
        raise
    except Exception as error:
        log.exception("engine %s failed", engine.name)
        failure = translate(error, where=f"engine {engine.name}", otherwise=EngineFailed)
        failure.gpu_seconds = _gpu_seconds(engine, since_s=started_s)
        raise failure from error


def _gpu_seconds(engine: Engine, *, since_s: float) -> float:
    """Accelerator seconds of a generation that failed; of one that succeeds the engine measures them itself."""
    return time.perf_counter() - since_s if engine.is_on_accelerator else 0.0


def check_generation(generation: Generation) -> Generation:
    """Return the generation unchanged if it can be exported.

    Raises:
        EngineFailed: the mesh is empty, has numbers that are not finite, or faces beyond the vertices.
    """
    mesh = generation.mesh
    if len(mesh.faces) == 0:
        raise EngineFailed(f"engine {generation.engine} found no surface in this image")
    if not np.isfinite(mesh.vertices).all():
        raise EngineFailed(f"engine {generation.engine} returned vertices that are not finite")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise EngineFailed(f"engine {generation.engine} returned faces beyond its {len(mesh.vertices)} vertices")
    return generation
