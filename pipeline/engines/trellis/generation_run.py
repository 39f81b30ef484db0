"""One generation from contexts to a `Generation`: sample the voxels, sample their latents, decode them.

Knows neither images nor texts: the caller encodes them to contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.engines.base import Generation, GenerationOptions, OnStep
from pipeline.engines.trellis import decode
from pipeline.engines.trellis.models import Models
from pipeline.engines.trellis.spec import ModelSpec, SamplerSpec
from pipeline.engines.trellis.stages import SamplerSettings, run_sampler
from pipeline.errors import EngineFailed
from pipeline.nn.structure_decoder import occupied_coords
from pipeline.ops.voxels import VoxelSet
from pipeline.sampling.contexts import Contexts, latent_velocities, one_pass_at_a_time, structure_velocities
from pipeline.sampling.guidance import Evaluate, MultiImageMode

AFTER_ENCODING, AFTER_STRUCTURE, AFTER_LATENT, AFTER_MESH = 0.03, 0.35, 0.85, 0.95
"""Fraction of the work done after each part; a turntable, if requested, takes the rest."""

MESH_TURNTABLE = "The turntable shows the textured mesh: without a GPU, rendering the radiance field takes hours."

Encode = Callable[[], Contexts]
"""Runs the encoder."""


@dataclass(frozen=True)
class GenerationRun:
    """One generation.

    Attributes:
        engine: name of the engine.
        spec: its model.
        models: the networks.
        device: their device.
        options: of the request.
        mode: how several images are combined.
        on_step: receives the progress.
        one_by_one: one pass at a time, which saves memory.
    """

    engine: str
    spec: ModelSpec
    models: Models
    device: torch.device
    options: GenerationOptions
    mode: MultiImageMode
    on_step: OnStep
    one_by_one: bool = False

    def generate(self, encode: Encode, voxels: VoxelSet | None = None) -> Generation:
        """Turn contexts into a generation.

        Args:
            encode: returns the contexts, on the device.
            voxels: a given shape, on the device; None samples one.

        Raises:
            EngineFailed: the model produced no voxel or no surface.
        """
        contexts = encode()
        self.on_step(AFTER_ENCODING)
        generator = torch.Generator().manual_seed(
            self.options.seed
        )  # on the CPU, so that every device gets the same noise
        if voxels is None:
            voxels = self._sample_voxels(contexts, generator)
        slat = self._sample_latents(contexts, voxels, generator)
        return self._decode(slat, voxels)

    def _sample_voxels(self, contexts: Contexts, generator: torch.Generator) -> VoxelSet:
        """Sample the occupied voxels."""
        flow = self.models.structure_flow
        noise = torch.randn((1, flow.in_channels, *[flow.resolution] * 3), generator=generator).to(self.device)
        settings = _settings(
            self.spec.structure_sampler, self.options.ss_sampling_steps, self.options.ss_guidance_strength
        )
        on_step = self._progress(AFTER_ENCODING, AFTER_STRUCTURE, settings.steps)
        latent = self._sample(noise, structure_velocities(flow, contexts), settings, len(contexts), on_step)
        coords = occupied_coords(self.models.structure_decoder(latent))
        if len(coords) == 0:
            raise EngineFailed("the model produced no shape for this input: no voxel is occupied")
        return VoxelSet(coords, batch_size=1)

    def _sample_latents(self, contexts: Contexts, voxels: VoxelSet, generator: torch.Generator) -> Tensor:
        """Sample the (1, N, C) latents of the N voxels."""
        flow = self.models.latent_flow
        noise = torch.randn((len(voxels), flow.in_channels), generator=generator).to(self.device)
        settings = _settings(
            self.spec.latent_sampler, self.options.slat_sampling_steps, self.options.slat_guidance_strength
        )
        on_step = self._progress(AFTER_STRUCTURE, AFTER_LATENT, settings.steps)
        # The flow model was trained on normalised latents; the decoders take the original scale.
        slat = self._sample(noise[None], latent_velocities(flow, voxels, contexts), settings, len(contexts), on_step)
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
        turntable, warnings = None, ()
        if options.render and not decode.renders_field(self.spec, self.device):
            warnings = (MESH_TURNTABLE,)
        elif options.render:
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
            engine=self.engine,
            seed=options.seed,
            warnings=warnings,
            turntable_mp4=turntable,
            extra_files=files,
        )


def _settings(sampler: SamplerSpec, steps: int, strength: float) -> SamplerSettings:
    return SamplerSettings(
        steps=steps, cfg_strength=strength, cfg_interval=sampler.cfg_interval, rescale_t=sampler.rescale_t
    )
