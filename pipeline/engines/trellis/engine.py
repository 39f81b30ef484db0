"""The TRELLIS engine: views of one subject to a `Generation`.

Frames the views, encodes them, samples the occupied voxels, samples their latents, and decodes the latents into a mesh,
Gaussians and, if a turntable is requested, a radiance field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.engines.base import (
    ForegroundImage,
    Generation,
    GenerationOptions,
    OnStep,
    ignore_steps,
    ignored_options,
)
from pipeline.engines.registry import TINY_WEIGHTS, check_work, find_spec
from pipeline.engines.trellis.generation_run import GenerationRun
from pipeline.engines.trellis.image_encoder import ImageEncoder
from pipeline.engines.trellis.models import Models
from pipeline.engines.trellis.preprocess import FOREGROUND_RATIO, frame_subject
from pipeline.engines.trellis.sampling_engine import SamplingEngine
from pipeline.engines.trellis.spec import IMAGE_LARGE, TINY, SamplerSpec
from pipeline.engines.trellis.weights import WEIGHTS_FOLDER
from pipeline.errors import InvalidRequest
from pipeline.sampling.contexts import Contexts
from pipeline.sampling.guidance import MultiImageMode, multi_image_mode_of


class TrellisEngine(SamplingEngine):
    """The released model, or a tiny model of the same structure with deterministic test weights."""

    name = "trellis"

    def __init__(
        self,
        *,
        weights: Path | str,
        device: str | None = None,
        dtype: str | None = None,
        multi_image_mode: str = "stochastic",
        ss_cfg_interval: tuple[float, float] | None = None,
        ss_rescale_t: float | None = None,
        slat_cfg_interval: tuple[float, float] | None = None,
        slat_rescale_t: float | None = None,
    ) -> None:
        """Store the configuration; reads no file and uses no accelerator.

        Args:
            weights: the folder that `fetch-weights` filled, or "tiny".
            device: such as `cuda:0`; by default a GPU if there is one.
            dtype: precision inside the heavy blocks: `float16` as in the release, `bfloat16` or `float32`; by default
                `float16` on a GPU and `float32` on a CPU.
            multi_image_mode: default for requests that do not set it, see `guided_velocity`.
            ss_cfg_interval: first and last time in [0, 1] with guidance when voxels are sampled; by default the
                model's own.
            ss_rescale_t: time shift when voxels are sampled, see `flow_times`; by default the model's own.
            slat_cfg_interval: as `ss_cfg_interval`, when latents are sampled.
            slat_rescale_t: as `ss_rescale_t`, when latents are sampled.

        Raises:
            InvalidRequest: unknown precision or mode.
        """
        self.multi_image_mode: MultiImageMode = multi_image_mode_of(multi_image_mode)
        tiny = weights == TINY_WEIGHTS
        spec = TINY if tiny else IMAGE_LARGE
        spec = replace(
            spec,
            structure_sampler=_sampler(spec.structure_sampler, ss_cfg_interval, ss_rescale_t),
            latent_sampler=_sampler(spec.latent_sampler, slat_cfg_interval, slat_rescale_t),
        )
        super().__init__(spec, None if tiny else Path(weights) / WEIGHTS_FOLDER, device=device, dtype=dtype)

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        """Turn views of one subject into a `Generation`; see `Engine.generate`.

        Args:
            views: foreground images, each (H, W, 4).
            options: of the request.
            on_step: receives the progress.

        Raises:
            InvalidRequest: there is no view, or the multi-image mode is unknown.
            UnreadableImage: a view holds no subject.
            EngineFailed: the model produced no voxel or no surface.
            OutOfMemory: the device has too little memory, even for the retry.
        """
        if not views:
            raise InvalidRequest("at least one view is needed")
        self.load()
        assert self._models is not None
        models = self._models
        mode = multi_image_mode_of(options.multi_image_mode or self.multi_image_mode)
        check_work(find_spec(self.name), options, views=len(views), mode=mode)
        size, ratio = _encoder(models).image_size, options.foreground_ratio or FOREGROUND_RATIO
        framed = [frame_subject(view, size=size, ratio=ratio) for view in views]
        images = torch.from_numpy(np.stack(framed))  # (P, S, S, 3)
        run = GenerationRun(self.name, self.spec, models, models.device, options, mode, on_step)
        generation = self._run(run, lambda: _contexts(models, images))
        # Several images condition one sample; the released model has no input for where they were taken from.
        ignored = ignored_options("TRELLIS", options, find_spec(self.name).ignores)
        return replace(generation, warnings=(*ignored, *generation.warnings))

    def _prepare(self, models: Models) -> None:
        """Nothing: the negative condition of images is zero."""

    def _small_contexts(self, models: Models) -> Contexts:
        size = _encoder(models).image_size
        return _contexts(models, torch.full((1, size, size, 3), 128, dtype=torch.uint8))


def _encoder(models: Models) -> ImageEncoder:
    assert isinstance(models.encoder, ImageEncoder)
    return models.encoder


def _contexts(models: Models, images: torch.Tensor) -> Contexts:
    """Encode framed images, (P, S, S, 3) uint8; the model was trained with zeros as the negative condition."""
    tokens = _encoder(models)(images.to(models.device))  # (P, L, C)
    return Contexts(tokens, torch.zeros_like(tokens[:1]))


def _sampler(own: SamplerSpec, cfg_interval: tuple[float, float] | None, rescale_t: float | None) -> SamplerSpec:
    """Return the model's sampler settings with the given overrides."""
    return SamplerSpec(
        cfg_interval=own.cfg_interval if cfg_interval is None else cfg_interval,
        rescale_t=own.rescale_t if rescale_t is None else rescale_t,
    )
