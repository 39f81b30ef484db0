"""What an engine is, what it is given, and what it gives back. Knows no particular engine and no torch.

`Generation` is the border between the GPU and the CPU: plain numpy, under 60 MB, picklable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.tri_mesh import TriMesh

ForegroundImage = NDArray[np.uint8]
"""One cut-out view of the subject: (H, W, 4) uint8 RGBA, straight alpha, alpha is the mask."""

OnStep = Callable[[float], None]
"""Called between steps with the share of the work done, 0 to 1. Raises `Cancelled` when the caller wants to stop."""


def ignore_steps(share: float) -> None:
    """An `OnStep` for callers that watch nothing."""


@dataclass(frozen=True)
class GenerationOptions:
    """The part of a request that an engine may use; every value is already inside its bounds.

    `seed` is never 0 here: 0 means "draw one", and whoever builds the options has drawn it.
    """

    seed: int
    resolution: int = 256
    ss_guidance_strength: float = 7.5
    ss_sampling_steps: int = 12
    slat_guidance_strength: float = 3.0
    slat_sampling_steps: int = 12
    chunk_size: int = 8192
    render: bool = False
    no_texture: bool = False
    multi_image_mode: str | None = None
    splat: bool = False


class ColourSource(Protocol):
    """Whatever can tell the colour of a surface point: vertex colours, projected views, Gaussians, a field."""

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        """Colours of surface points.

        Args:
            points: (P, 3) positions in the mesh's frame.
            normals: (P, 3) outward unit normals.

        Returns:
            (P, 3) sRGB in [0, 1].
        """
        ...


@dataclass(frozen=True, eq=False)
class Generation:
    """What an engine returns.

    Attributes:
        mesh: the extracted surface, not yet simplified, in the frame of `TriMesh`.
        colour_source: tells the colour of any point on the surface.
        engine: name of the engine that made it.
        seed: the seed that was used.
        warnings: sentences for the caller, such as which parameters had no effect.
        gpu_seconds: seconds of accelerator time, 0 on a CPU.
        turntable_mp4: a turntable rendered from the engine's own field where it has one, else None.
        extra_files: further files by ending (`"splat.ply"`), delivered beside the asset.
    """

    mesh: TriMesh
    colour_source: ColourSource
    engine: str
    seed: int
    warnings: tuple[str, ...] = ()
    gpu_seconds: float = 0.0
    turntable_mp4: bytes | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)


class Engine(Protocol):
    """A model with its weights, loaded once and used for many calls."""

    name: str

    @property
    def is_on_accelerator(self) -> bool:
        """Whether it was loaded to an accelerator, so that the time of its generations is accelerator time."""
        ...

    def load(self) -> None:
        """Read weights and warm up; called once before the first `generate`.

        Raises:
            WeightsUnusable: a checkpoint is missing or does not fit.
        """
        ...

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        """Turn the cut-out views of one subject into a `Generation`.

        Raises:
            CallerError: the views cannot be used by this engine.
            StageError: the engine failed.
            Cancelled: raised by `on_step`.
        """
        ...
