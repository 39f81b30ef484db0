"""Decoding of the structured latent into the parts of a `Generation`: mesh, colours, splat file, turntable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.trellis.colours import MIN_OPACITY, GaussianColours, VertexColours, gaussian_rgb
from pipeline.engines.trellis.frame import quaternions_to_y_up, to_y_up
from pipeline.engines.trellis.gaussian_decoder import Gaussians, SLatGaussianDecoder
from pipeline.engines.trellis.mesh_decoder import SLatMeshDecoder
from pipeline.engines.trellis.mesh_extraction import extract_mesh, gather_field
from pipeline.engines.trellis.radiance_decoder import SLatRadianceFieldDecoder
from pipeline.engines.trellis.spec import REFERENCE_RESOLUTION, ModelSpec
from pipeline.errors import EngineFailed
from pipeline.formats.splat import splat_ply_bytes
from pipeline.mesh.packing import on_grid, with_fewer_digits
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.ops.transfer import to_host
from pipeline.ops.voxels import VoxelSet
from pipeline.render.orbit import orbit_cameras
from pipeline.render.radiance_field import turntable_frames

CPU_RAYS = 1 << 20
"""Rays of a turntable that a CPU renders: two minutes of two cores at 8,000 rays a second. The released size has 500
million, for which they would take 17 hours."""
VERTEX_BITS = 20
"""Vertices are rounded to multiples of 2^-20: by 1/8,000 of a cell of the released grid at most."""
CENTRE_BITS, SCALE_BITS, TURN_BITS, OPACITY_BITS = 17, 4, 7, 8
"""Bits of what the colours of the surface need of Gaussians; their bake is the same to 60 dB."""
HALF_TURN_RAD = 3.1415  # start of the camera path at the front; the release writes a full turn as 2 * 3.1415


def decode_mesh(
    decoder: SLatMeshDecoder,
    slat: Tensor,
    voxels: VoxelSet,
    *,
    spec: ModelSpec,
    resolution: int,
    chunk_size: int,
) -> tuple[TriMesh, VertexColours]:
    """Decode the surface and its vertex colours, in the project's frame.

    Args:
        decoder: the mesh decoder.
        slat: (1, N, C) structured latent.
        voxels: its N voxels.
        spec: the model.
        resolution: resolution of the request; `REFERENCE_RESOLUTION` is the grid of the released decoder.
        chunk_size: cubes evaluated at once; the result does not depend on it.

    Raises:
        EngineFailed: the latents contain no surface.
    """
    out = decoder(slat, voxels)  # (1, N, C) -> (1, 64 N, 101)
    field = gather_field(
        out.voxels.coords[:, 1:], out.feats[0], resolution=spec.mesh_resolution, use_color=decoder.use_color
    )
    del out  # gigabytes at the released size, before the extraction allocates
    wanted = max(2, resolution * spec.mesh_resolution // REFERENCE_RESOLUTION)
    surface = extract_mesh(field, resolution=wanted, chunk_size=chunk_size)
    if len(surface.faces) == 0:
        raise EngineFailed("the model produced no surface for this image")
    used, faces = torch.unique(surface.faces, return_inverse=True)  # drop vertices that no face uses: (V,), (F, 3)
    found = [surface.vertices[used], faces.to(torch.int32)]
    if surface.attributes is not None:
        found.append((surface.attributes[used, :3] * 255).round().to(torch.uint8))
    places, triangles, *colours = (tensor.numpy() for tensor in to_host(*found))
    vertices = on_grid(to_y_up(places), bits=VERTEX_BITS)
    rgb = colours[0] if colours else np.full((len(vertices), 3), 128, np.uint8)
    return TriMesh(vertices, triangles), VertexColours(vertices, rgb)


def decode_gaussians(decoder: SLatGaussianDecoder, slat: Tensor, voxels: VoxelSet) -> Gaussians:
    """Decode the visible Gaussians, in the model's frame, on the CPU.

    Args:
        decoder: the Gaussian decoder.
        slat: (1, N, C) structured latent.
        voxels: its N voxels.
    """
    gaussians = decoder.activate(decoder.raw_gaussians(decoder(slat, voxels)[0], voxels.coords[:, 1:]))
    shown = (gaussians.opacity[:, 0] >= MIN_OPACITY).nonzero()[:, 0]  # (G',)
    return Gaussians(*to_host(*(getattr(gaussians, each.name)[shown] for each in fields(Gaussians))))


def gaussian_colours(gaussians: Gaussians, fallback: VertexColours) -> GaussianColours:
    """Convert Gaussians to a colour source in the project's frame, of numbers that are short when packed."""
    return GaussianColours(
        xyz=on_grid(to_y_up(gaussians.xyz.numpy()), bits=CENTRE_BITS),
        scaling=with_fewer_digits(gaussians.scaling.numpy(), bits=SCALE_BITS),
        rotation=on_grid(quaternions_to_y_up(gaussians.rotation.numpy()), bits=TURN_BITS).astype(np.float16),
        opacity=on_grid(gaussians.opacity[:, 0].numpy(), bits=OPACITY_BITS).astype(np.float16),
        rgb=gaussian_rgb(gaussians.features_dc.numpy()),
        fallback=fallback,
    )


def splat_file(gaussians: Gaussians) -> bytes:
    """Return the Gaussians as a .ply file for splat viewers, in the project's frame."""
    return splat_ply_bytes(
        xyz=to_y_up(gaussians.xyz.numpy()),
        features_dc=gaussians.features_dc.numpy(),
        opacity=gaussians.opacity[:, 0].numpy(),
        scaling=gaussians.scaling.numpy(),
        rotation=quaternions_to_y_up(gaussians.rotation.numpy()),
    )


def renders_field(spec: ModelSpec, device: torch.device) -> bool:
    """Whether a turntable shows the radiance field; if not, the export stage renders one of the mesh."""
    rays = spec.turntable_frames * (spec.turntable_size * spec.turntable_ssaa) ** 2
    return device.type != "cpu" or rays <= CPU_RAYS


def render_turntable(
    decoder: SLatRadianceFieldDecoder,
    slat: Tensor,
    voxels: VoxelSet,
    *,
    spec: ModelSpec,
    chunk_size: int,
    on_progress: Callable[[float], None],
) -> bytes:
    """Render a turntable of the radiance field as an mp4 file.

    Args:
        decoder: the radiance-field decoder.
        slat: (1, N, C) structured latent.
        voxels: its N voxels.
        spec: the model; sets size, frames and rays per pixel.
        chunk_size: samples evaluated at once; the result does not depend on it.
        on_progress: receives the fraction of finished frames.
    """
    from pipeline.formats.mp4 import encode_mp4

    field = decoder.radiance_field(decoder(slat, voxels)[0], voxels.coords[:, 1:])
    frames: Iterator[NDArray[np.uint8]] = turntable_frames(
        field,
        orbit_cameras(spec.turntable_frames, start_yaw_rad=HALF_TURN_RAD),
        resolution=spec.turntable_size,
        chunk_size=chunk_size,
        ssaa=spec.turntable_ssaa,
        on_frame=lambda frame: on_progress(frame / spec.turntable_frames),
    )
    return encode_mp4(frames, fps=spec.turntable_fps, width=spec.turntable_size, height=spec.turntable_size)
