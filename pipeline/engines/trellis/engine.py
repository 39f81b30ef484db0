"""The TRELLIS engine: views of one subject to a `Generation`.

Frames the views, encodes them, samples the occupied voxels, samples their latents, and decodes the latents into a mesh,
Gaussians and, if a turntable is requested, a radiance field.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.base import (
    ForegroundImage,
    Generation,
    GenerationOptions,
    OnStep,
    ignore_steps,
    ignored_options,
)
from pipeline.engines.registry import TINY_WEIGHTS, find_spec
from pipeline.engines.trellis import decode
from pipeline.engines.trellis.cuda_warm_up import warm_up_cuda
from pipeline.engines.trellis.models import Models, load_models
from pipeline.engines.trellis.preprocess import FOREGROUND_RATIO, frame_subject
from pipeline.engines.trellis.spec import IMAGE_LARGE, TINY, ModelSpec, SamplerSpec
from pipeline.engines.trellis.stages import (
    SamplerSettings,
    latent_velocities,
    one_pass_at_a_time,
    run_sampler,
    structure_velocities,
)
from pipeline.engines.trellis.structure_decoder import occupied_coords
from pipeline.engines.trellis.weights import WEIGHTS_FOLDER
from pipeline.errors import EngineFailed, InvalidRequest, OutOfMemory
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.guidance import MULTI_IMAGE_MODES, Evaluate, MultiImageMode

CPU = torch.device("cpu")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
RETRY_CHUNK_DIVISOR = 4  # after an out-of-memory error, chunks shrink by this factor and passes run one by one

AFTER_ENCODING, AFTER_STRUCTURE, AFTER_LATENT, AFTER_MESH = 0.03, 0.35, 0.85, 0.95
"""Fraction of the work done after each part; a turntable, if requested, takes the rest."""


class TrellisEngine:
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
        if dtype is not None and dtype not in PRECISIONS:
            raise InvalidRequest(f"dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
        self._wanted_device = device
        self._wanted_dtype = PRECISIONS[dtype] if dtype else None
        self.multi_image_mode: MultiImageMode = _checked_mode(multi_image_mode)
        tiny = weights == TINY_WEIGHTS
        spec = TINY if tiny else IMAGE_LARGE
        self.spec: ModelSpec = replace(
            spec,
            structure_sampler=_sampler(spec.structure_sampler, ss_cfg_interval, ss_rescale_t),
            latent_sampler=_sampler(spec.latent_sampler, slat_cfg_interval, slat_rescale_t),
        )
        self.folder = None if tiny else Path(weights) / WEIGHTS_FOLDER
        self._models: Models | None = None
        self._is_ready = False

    @property
    def is_on_accelerator(self) -> bool:
        """See `Engine.is_on_accelerator`."""
        return self._models is not None and self._models.device.type == "cuda"

    def load(self) -> None:
        """Read or create the weights directly on the device, and warm up; see `Engine.load`."""
        if self._models is None:
            device = self._choose_device()
            self._models = load_models(self.spec, self.folder, device=device, dtype=self._dtype_on(device))
        self.to_device()

    def load_weights(self) -> None:
        """Read the weights to host memory in their stored types: the first half of a split `load`.

        Uses no accelerator and keeps no dependence on the files, so that a snapshot of the process can be taken
        afterwards.

        Raises:
            WeightsUnusable: a checkpoint is missing or does not match the model.
        """
        if self._models is None:
            self._models = load_models(self.spec, self.folder, device=CPU, dtype=None)

    def to_device(self, device: str | None = None) -> None:
        """Choose the device, move the weights there in its precision and warm up: the second half of a split `load`.

        Args:
            device: overrides the device given to the constructor.

        Raises:
            RuntimeError: `load_weights` has not been called.
        """
        if self._is_ready and device is None:
            return
        if self._models is None:
            raise RuntimeError("call load_weights before to_device")
        self._wanted_device = device or self._wanted_device
        chosen = self._choose_device()
        self._models.move_to(chosen, dtype=self._dtype_on(chosen))
        if chosen.type != "cpu":  # a CPU has no kernels to select and no libraries to initialise
            warm_up_cuda(self._models, chosen)
        self._is_ready = True

    def _choose_device(self) -> torch.device:
        return torch.device(self._wanted_device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        return self._wanted_dtype or (torch.float16 if device.type == "cuda" else torch.float32)

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
        device = self._models.device
        mode = _checked_mode(options.multi_image_mode or self.multi_image_mode)
        size, ratio = self.spec.encoder.image_size, options.foreground_ratio or FOREGROUND_RATIO
        images = np.stack([frame_subject(view, size=size, ratio=ratio) for view in views])
        run = _GenerationRun(self.spec, self._models, device, options, mode, on_step, one_by_one=False)
        started = time.perf_counter()
        with torch.inference_mode():
            try:
                generation = run.generate(images)
            except torch.cuda.OutOfMemoryError:
                generation = self._retry_with_less_memory(run, images)
        # Several images condition one sample; the released model has no input for where they were taken from.
        generation = replace(generation, warnings=ignored_options("TRELLIS", options, find_spec(self.name).ignores))
        if not self.is_on_accelerator:
            return generation
        torch.cuda.synchronize(device)
        return replace(generation, gpu_seconds=time.perf_counter() - started)

    def _retry_with_less_memory(self, run: _GenerationRun, images: NDArray[np.uint8]) -> Generation:
        torch.cuda.empty_cache()
        options = replace(run.options, chunk_size=max(1, run.options.chunk_size // RETRY_CHUNK_DIVISOR))
        try:
            return replace(run, options=options, one_by_one=True).generate(images)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            free, total = (size / 1e9 for size in torch.cuda.mem_get_info(run.device))
            raise OutOfMemory(
                f"the device has too little memory, even for one pass at a time: {free:.1f} of {total:.1f} GB are free"
            ) from error


def _checked_mode(mode: str) -> MultiImageMode:
    for known in MULTI_IMAGE_MODES:
        if mode == known:
            return known
    raise InvalidRequest(f"multi_image_mode must be one of {', '.join(MULTI_IMAGE_MODES)}, got {mode!r}")


@dataclass(frozen=True)
class _GenerationRun:
    """One generation: the networks, their device and the options of the request; `one_by_one` saves memory."""

    spec: ModelSpec
    models: Models
    device: torch.device
    options: GenerationOptions
    mode: MultiImageMode
    on_step: OnStep
    one_by_one: bool

    def generate(self, images: NDArray[np.uint8]) -> Generation:
        """Turn framed images, (P, S, S, 3), into a generation."""
        tokens = self.models.encoder(torch.from_numpy(images).to(self.device))  # (P, L, C)
        self.on_step(AFTER_ENCODING)
        generator = torch.Generator().manual_seed(
            self.options.seed
        )  # on the CPU, so that every device gets the same noise
        voxels = self._sample_voxels(tokens, generator)
        slat = self._sample_latents(tokens, voxels, generator)
        return self._decode(slat, voxels)

    def _sample_voxels(self, tokens: Tensor, generator: torch.Generator) -> VoxelSet:
        """Sample the occupied voxels under (P, L, C) tokens."""
        flow = self.models.structure_flow
        noise = torch.randn((1, flow.in_channels, *[flow.resolution] * 3), generator=generator).to(self.device)
        settings = _settings(
            self.spec.structure_sampler, self.options.ss_sampling_steps, self.options.ss_guidance_strength
        )
        on_step = self._progress(AFTER_ENCODING, AFTER_STRUCTURE, settings.steps)
        latent = self._sample(noise, structure_velocities(flow, tokens), settings, len(tokens), on_step)
        coords = occupied_coords(self.models.structure_decoder(latent))
        if len(coords) == 0:
            raise EngineFailed("the model produced no shape for this image: no voxel is occupied")
        return VoxelSet(coords, batch_size=1)

    def _sample_latents(self, tokens: Tensor, voxels: VoxelSet, generator: torch.Generator) -> Tensor:
        """Sample the (1, N, C) latents of the N voxels under (P, L, C) tokens."""
        flow = self.models.latent_flow
        noise = torch.randn((len(voxels), flow.in_channels), generator=generator).to(self.device)
        settings = _settings(
            self.spec.latent_sampler, self.options.slat_sampling_steps, self.options.slat_guidance_strength
        )
        on_step = self._progress(AFTER_STRUCTURE, AFTER_LATENT, settings.steps)
        # The flow model was trained on normalised latents; the decoders take the original scale.
        slat = self._sample(noise[None], latent_velocities(flow, voxels, tokens), settings, len(tokens), on_step)
        mean, std = (torch.tensor(values, device=self.device) for values in (self.spec.slat_mean, self.spec.slat_std))
        return slat * std + mean

    def _sample(
        self,
        noise: Tensor,
        evaluate: Evaluate,
        settings: SamplerSettings,
        images: int,
        on_step: Callable[[int], None],
    ) -> Tensor:
        if self.one_by_one:
            evaluate = one_pass_at_a_time(evaluate)
        return run_sampler(noise, evaluate, settings, images=images, mode=self.mode, on_step=on_step)

    def _progress(self, start: float, end: float, steps: int) -> Callable[[int], None]:
        return lambda step: self.on_step(start + (end - start) * step / steps)

    def _decode(self, slat: Tensor, voxels: VoxelSet) -> Generation:
        """Decode (1, N, C) latents into the outputs that the options ask for."""
        options, models = self.options, self.models
        mesh, colours = decode.decode_mesh(
            models.mesh_decoder,
            slat,
            voxels,
            spec=self.spec,
            resolution=options.resolution,
            chunk_size=options.chunk_size,
        )
        source, files = colours, {}
        if options.splat or not options.no_texture:
            gaussians = decode.decode_gaussians(models.gaussian_decoder, slat, voxels)
            source = decode.gaussian_colours(gaussians, colours)
            if options.splat:
                files["splat.ply"] = decode.splat_file(gaussians)
        self.on_step(AFTER_MESH)
        turntable = None
        if options.render:
            turntable = decode.render_turntable(
                models.radiance_decoder,
                slat,
                voxels,
                spec=self.spec,
                chunk_size=options.chunk_size,
                on_progress=lambda done: self.on_step(AFTER_MESH + (1 - AFTER_MESH) * done),
            )
        self.on_step(1.0)
        return Generation(
            mesh=mesh,
            attribute_source=source,
            engine=TrellisEngine.name,
            seed=options.seed,
            turntable_mp4=turntable,
            extra_files=files,
        )


def _sampler(own: SamplerSpec, cfg_interval: tuple[float, float] | None, rescale_t: float | None) -> SamplerSpec:
    """Return the model's sampler settings with the given overrides."""
    return SamplerSpec(
        cfg_interval=own.cfg_interval if cfg_interval is None else cfg_interval,
        rescale_t=own.rescale_t if rescale_t is None else rescale_t,
    )


def _settings(sampler: SamplerSpec, steps: int, strength: float) -> SamplerSettings:
    return SamplerSettings(
        steps=steps, cfg_strength=strength, cfg_interval=sampler.cfg_interval, rescale_t=sampler.rescale_t
    )
