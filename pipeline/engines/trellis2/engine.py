"""The TRELLIS.2 engine: views of one subject to a `Generation` with materials.

Crops the views, encodes them at one or two sizes, samples the occupied voxels, the shape's latents and the texture's,
and decodes both into an open surface and attributes on its voxels.
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
from pipeline.engines.memory_retry import with_memory_retry
from pipeline.engines.registry import TINY_WEIGHTS, check_work, find_spec
from pipeline.engines.trellis2.attributes import VoxelAttributes
from pipeline.engines.trellis2.models import CPU, Models
from pipeline.engines.trellis2.preprocess import image_tensor, prepare
from pipeline.engines.trellis2.spec import MAX_VOXELS, RELEASED, TINY, ModelSpec, StageSpec, networks_for
from pipeline.engines.trellis2.stages import (
    LATENT_FACTOR,
    Normalisation,
    Sampling,
    StageSettings,
    cascade_voxels,
    decode_attributes,
    sample_latents,
    sample_structure,
    surface_of,
)
from pipeline.engines.trellis2.unet import Decoded
from pipeline.engines.trellis2.weights import WEIGHTS_FOLDER
from pipeline.errors import EngineFailed, InvalidRequest
from pipeline.mesh.fill_holes import fill_small_holes
from pipeline.mesh.packing import on_grid
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.nn.precision import device_of, precision_of
from pipeline.nn.structure_decoder import coarsened_occupancy
from pipeline.ops.kernels.dispatch import KERNELS
from pipeline.ops.transfer import to_device, to_host
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.contexts import Contexts
from pipeline.sampling.guidance import MultiImageMode, multi_image_mode_of
from schemas.request import DETAILS

VERTEX_BITS = 22
"""Vertices are rounded to multiples of 2^-22: by 1/5,000 of a voxel at most, at the finest detail."""
HOLE_PERIMETER_M = 0.03
"""Holes of the decoded surface that are shorter around are filled, as in the release."""
AFTER_ENCODING, AFTER_STRUCTURE, AFTER_SHAPE, AFTER_TEXTURE = 0.03, 0.2, 0.65, 0.9
"""Fraction of the work done after each part."""


class Trellis2Engine:
    """The released model, or a tiny model of the same structure with deterministic test weights."""

    name = "trellis2"

    def __init__(
        self,
        *,
        weights: Path | str,
        device: str | None = None,
        dtype: str | None = None,
        multi_image_mode: str = "stochastic",
        detail: int = DETAILS[1],
        offload: bool = False,
    ) -> None:
        """Store the configuration; reads no file and uses no accelerator.

        Args:
            weights: the folder that `fetch-weights` filled, or "tiny".
            device: such as `cuda:0`; by default a GPU if there is one.
            dtype: precision inside the heavy blocks: `float16`, `bfloat16` or `float32`; by default that of the
                release on a GPU, bfloat16 in flows and float16 in decoders, and `float32` on a CPU.
            multi_image_mode: default for requests that do not set it, see `guided_velocity`.
            detail: which networks `load` reads; a request with another detail reads the rest when it comes.
            offload: networks that do not compute wait in host memory: slower, with a third of the device's memory.

        Raises:
            InvalidRequest: unknown precision, mode or detail.
        """
        if detail not in DETAILS:
            raise InvalidRequest(f"detail must be one of {', '.join(map(str, DETAILS))}, got {detail}")
        self.multi_image_mode: MultiImageMode = multi_image_mode_of(multi_image_mode)
        self.detail = detail
        tiny = weights == TINY_WEIGHTS
        self.spec: ModelSpec = TINY if tiny else RELEASED
        self.folder = None if tiny else Path(weights) / WEIGHTS_FOLDER
        self._wanted_device = device
        self._dtype = precision_of(dtype)
        self._offload = offload
        self._models: Models | None = None

    @property
    def is_on_accelerator(self) -> bool:
        """See `Engine.is_on_accelerator`."""
        return self._models is not None and self._models.device.type == "cuda"

    def load(self) -> None:
        """Read or create the weights; see `Engine.load`."""
        self._make_models(device_of(self._wanted_device)).load(networks_for(self.detail))

    def load_weights(self) -> None:
        """Read the weights to host memory: the first half of a split `load`.

        Raises:
            WeightsUnusable: a checkpoint is missing or does not match the model.
        """
        self._make_models(CPU, device_is_known=False).load(networks_for(self.detail))

    def to_device(self, device: str | None = None) -> None:
        """Move the weights to the device: the second half of a split `load`.

        Args:
            device: overrides the device given to the constructor.

        Raises:
            RuntimeError: `load_weights` has not been called.
        """
        if self._models is None:
            raise RuntimeError("call load_weights before to_device")
        self._wanted_device = device or self._wanted_device
        self._models.move_to(device_of(self._wanted_device))

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        """Turn views of one subject into a `Generation`; see `Engine.generate`.

        Args:
            views: foreground images, each (H, W, 4).
            options: of the request.
            on_step: receives the progress.

        Raises:
            InvalidRequest: there is no view, the multi-image mode is unknown, or it would take too long.
            UnreadableImage: a view holds no subject.
            EngineFailed: the model produced no voxel or no surface.
            OutOfMemory: the device has too little memory, even for one pass at a time.
        """
        if not views:
            raise InvalidRequest("at least one view is needed")
        self.load()
        assert self._models is not None
        models = self._models
        mode = multi_image_mode_of(options.multi_image_mode or self.multi_image_mode)
        check_work(find_spec(self.name), options, views=len(views), mode=mode)
        crops = prepare(views, options)
        run = _Run(self.spec, models, options, mode, on_step)
        started = time.perf_counter()
        with torch.inference_mode():
            generation = with_memory_retry(
                lambda: run.generate(crops),
                lambda: replace(run, one_by_one=True).generate(crops),
                device=models.device,
                tried=f"even for one pass of detail {options.detail} at a time",
            )
        warnings = ignored_options("TRELLIS.2", options, find_spec(self.name).ignores)
        generation = replace(generation, warnings=warnings + generation.warnings)
        if not self.is_on_accelerator:
            return generation
        torch.cuda.synchronize(models.device)
        gpu_seconds = time.perf_counter() - started
        return replace(generation, gpu_seconds=gpu_seconds, kernel_fallbacks=KERNELS.failed)

    def _make_models(self, device: torch.device, *, device_is_known: bool = True) -> Models:
        if self._models is None:
            self._models = Models(
                self.spec,
                self.folder,
                device=device,
                dtype=self._dtype,
                offload=self._offload,
                device_is_known=device_is_known,
            )
        return self._models


@dataclass(frozen=True)
class _Run:
    """One generation: the networks, and the options of the request; `one_by_one` saves memory."""

    spec: ModelSpec
    models: Models
    options: GenerationOptions
    mode: MultiImageMode
    on_step: OnStep
    one_by_one: bool = False

    def generate(self, crops: Sequence[NDArray[np.uint8]]) -> Generation:
        """Turn cropped images, (S, S, 3) each, into a generation."""
        spec, options, models = self.spec, self.options, self.models
        is_fine = options.detail > DETAILS[0]
        coarse = self._contexts(crops, spec.image_size[0])
        fine = self._contexts(crops, spec.image_size[1]) if is_fine else coarse
        self.on_step(AFTER_ENCODING)
        generator = torch.Generator().manual_seed(options.seed)
        sampling = Sampling(generator, models.device, self.mode, self.one_by_one)
        latent = sample_structure(
            models.use("structure_flow"),
            coarse,
            _settings(spec.structure_stage, options.ss_sampling_steps, options.ss_guidance_strength),
            sampling,
            on_step=self._progress(AFTER_ENCODING, AFTER_STRUCTURE, options.ss_sampling_steps),
        )
        coords = coarsened_occupancy(models.use("structure_decoder")(latent), side=DETAILS[0] // LATENT_FACTOR)
        if len(coords) == 0:
            raise EngineFailed("the model produced no shape for this image: no voxel is occupied")
        structure = VoxelSet(coords, batch_size=1, side=DETAILS[0] // LATENT_FACTOR)
        latents, voxels, resolution = self._sample_shape(structure, coarse, fine, sampling)
        texture = sample_latents(
            models.use(f"texture_flow_{1024 if is_fine else 512}"),
            voxels,
            fine,
            _settings(spec.texture_stage, options.tex_sampling_steps, options.tex_guidance_strength),
            sampling,
            beside=self._shape_scale.apply(latents),
            on_step=self._progress(AFTER_SHAPE, AFTER_TEXTURE, options.tex_sampling_steps),
        )
        texture = Normalisation(spec.texture_mean, spec.texture_std).restore(texture)
        shape: Decoded = models.use("shape_decoder")(latents, voxels)
        vertices, faces = surface_of(shape, resolution=resolution)
        attributes, finest = decode_attributes(models.use("texture_decoder"), texture, voxels, shape=shape)
        generation = self._generation(vertices, faces, attributes, finest, resolution)
        self.on_step(1.0)
        return generation

    @property
    def _shape_scale(self) -> Normalisation:
        return Normalisation(self.spec.shape_mean, self.spec.shape_std)

    def _contexts(self, crops: Sequence[NDArray[np.uint8]], size: int) -> Contexts:
        pixels = torch.stack([image_tensor(crop, size=size) for crop in crops])
        tokens = self.models.use("encoder")(to_device(pixels, self.models.device))  # (P, L, C)
        return Contexts(tokens, torch.zeros_like(tokens[:1]))  # trained with zeros as the negative condition

    def _sample_shape(
        self, voxels: VoxelSet, coarse: Contexts, fine: Contexts, sampling: Sampling
    ) -> tuple[Tensor, VoxelSet, int]:
        """Sample the shape's latents, in their original scale: (N, C), their voxels, and the decoded resolution."""
        options, models = self.options, self.models
        settings = _settings(self.spec.shape_stage, options.slat_sampling_steps, options.slat_guidance_strength)
        steps = options.slat_sampling_steps
        middle = (AFTER_STRUCTURE + AFTER_SHAPE) / 2 if options.detail > DETAILS[0] else AFTER_SHAPE
        latents = sample_latents(
            models.use("shape_flow_512"),
            voxels,
            coarse,
            settings,
            sampling,
            on_step=self._progress(AFTER_STRUCTURE, middle, steps),
        )
        latents = self._shape_scale.restore(latents)
        if options.detail == DETAILS[0]:
            return latents, voxels, options.detail
        decoder = models.use("shape_decoder")
        upsampled = decoder(latents, voxels, levels=4).voxels.coords
        coords, resolution = cascade_voxels(upsampled, resolution=options.detail, max_voxels=MAX_VOXELS)
        voxels = VoxelSet(coords, batch_size=1, side=resolution // LATENT_FACTOR)
        latents = sample_latents(
            models.use("shape_flow_1024"),
            voxels,
            fine,
            settings,
            sampling,
            on_step=self._progress(middle, AFTER_SHAPE, steps),
        )
        return self._shape_scale.restore(latents), voxels, resolution

    def _generation(
        self, vertices: Tensor, faces: Tensor, attributes: Tensor, voxels: VoxelSet, resolution: int
    ) -> Generation:
        """Bring a decoded surface and its attributes to the host, in the project's frame."""
        if len(faces) == 0:
            raise EngineFailed("the model produced no surface for this image")
        used, renumbered = torch.unique(faces, return_inverse=True)  # drop the voxels that no quad uses
        coords = voxels.coords[:, 1:].long()
        order = torch.argsort((coords[:, 0] * resolution + coords[:, 1]) * resolution + coords[:, 2])
        values = (attributes.float().clamp(0, 1) * 255).round().to(torch.uint8)
        model_frame, triangles, sorted_coords, sorted_values = (
            tensor.numpy()
            for tensor in to_host(
                vertices[used].float(), renumbered.int(), coords[order].to(torch.int16), values[order]
            )
        )
        x, y, z = model_frame.T
        whole = fill_small_holes(TriMesh(np.stack([x, z, -y], axis=1), triangles), max_perimeter_m=HOLE_PERIMETER_M)
        mesh = TriMesh(on_grid(whole.vertices, bits=VERTEX_BITS), whole.faces)
        source = VoxelAttributes(mesh, sorted_coords, sorted_values, resolution)
        warnings = ()
        if resolution != self.options.detail:
            warnings = (f"detail {self.options.detail} would have too many voxels; the surface has {resolution}.",)
        return Generation(
            mesh=mesh,
            attribute_source=source,
            engine=Trellis2Engine.name,
            seed=self.options.seed,
            warnings=warnings,
            is_closed=False,
        )

    def _progress(self, start: float, end: float, steps: int) -> Callable[[int], None]:
        return lambda step: self.on_step(start + (end - start) * step / steps)


def _settings(stage: StageSpec, steps: int, strength: float) -> StageSettings:
    return StageSettings(steps, strength, stage.rescale, stage.interval, stage.rescale_t)
