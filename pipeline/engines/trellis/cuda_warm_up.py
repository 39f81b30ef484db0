"""CUDA warm-up: one small pass through every network, so that libraries are loaded and kernels selected beforehand."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.engines.trellis.mesh_extraction import extract_mesh, gather_field
from pipeline.engines.trellis.models import Models
from pipeline.ops.voxels import VoxelSet
from pipeline.render.orbit import orbit_cameras
from pipeline.render.radiance_field import SMALLEST_CHUNK, render_field
from pipeline.sampling.contexts import Contexts, latent_velocities, structure_velocities

SHELL = 0.35, 0.42  # radii of the occupied shell, in units of the cube


def warm_up_cuda(models: Models, device: torch.device, encode: Callable[[], Contexts]) -> None:
    """Run every network once, with and without guidance, on some contexts and a hollow ball, and discard the results.

    Args:
        models: the networks, on `device`.
        device: their device.
        encode: runs the encoder on a small input.
    """
    flow, latent_flow = models.structure_flow, models.latent_flow
    with torch.inference_mode():
        contexts = encode()
        noise = torch.zeros((1, flow.in_channels, *[flow.resolution] * 3), device=device)
        evaluate = structure_velocities(flow, contexts)
        for unguided in (False, True):
            evaluate(noise, 0.5, [0], unguided)
        models.structure_decoder(noise)
        voxels = VoxelSet(ball_shell(latent_flow.resolution).to(device), batch_size=1)
        slat = torch.zeros((1, len(voxels), latent_flow.in_channels), device=device)
        evaluate = latent_velocities(latent_flow, voxels, contexts)
        for unguided in (False, True):
            evaluate(slat, 0.5, [0], unguided)
        models.gaussian_decoder(slat, voxels)
        radiance = models.radiance_decoder
        field = radiance.radiance_field(radiance(slat, voxels)[0], voxels.coords[:, 1:])
        render_field(field, orbit_cameras(1)[0], resolution=8, chunk_size=SMALLEST_CHUNK)
        fine = models.mesh_decoder(slat, voxels)
        side = 4 * models.mesh_decoder.resolution
        use_color = models.mesh_decoder.use_color
        extract_mesh(gather_field(fine.voxels.coords[:, 1:], fine.feats[0], resolution=side, use_color=use_color))


def ball_shell(resolution: int) -> torch.Tensor:
    """Return the (N, 4) int32 voxels `[0, x, y, z]` between two spheres around the centre of the cube."""
    side = torch.arange(resolution, dtype=torch.int32)
    coords = torch.cartesian_prod(torch.zeros(1, dtype=torch.int32), side, side, side)  # (R^3, 4)
    radius = ((coords[:, 1:] + 0.5) / resolution - 0.5).norm(dim=1)
    return coords[(radius >= SHELL[0]) & (radius < SHELL[1])]
