"""The engine protocol, its input and its result. Knows no particular engine and imports no torch.

`Generation` separates the GPU stage from the CPU stages: plain numpy, picklable, under 20 MB at the engines' defaults.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.mesh.material import SurfaceAttributes
from pipeline.mesh.tri_mesh import TriMesh
from schemas.contract import ViewAngle
from schemas.request import RequestKind

ForegroundImage = NDArray[np.uint8]
"""One view of the subject without its background: (H, W, 4) uint8 RGBA, straight alpha; alpha is the mask.

An engine with `EngineSpec.prepare` also takes what that returned: (S, S, 3), which it reads as it is."""

OnStep = Callable[[float], None]
"""Called between steps with the fraction of the work done, 0 to 1. Raises `Cancelled` to stop the generation."""


def ignore_steps(share: float) -> None:
    """An `OnStep` that does nothing."""


@dataclass(frozen=True)
class GenerationOptions:
    """The part of a request that an engine may use; every value is already validated.

    `seed` is never 0: in a request 0 means "draw a seed", and the options hold the drawn one. `view_angles`, if given,
    has one angle for each view. An engine that takes text makes the asset from `prompt`; `init_voxels`, (N, 3) cells
    from `voxelize` with z up, are a shape that it keeps.
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
    view_angles: tuple[ViewAngle, ...] | None = None
    depth: float | None = None
    detail: int = 1024
    tex_guidance_strength: float = 1.0
    tex_sampling_steps: int = 12
    foreground_ratio: float | None = None
    prompt: str | None = None
    negative_prompt: str = ""
    init_voxels: NDArray[np.uint8] | None = None


def input_kind(options: GenerationOptions) -> RequestKind:
    """Return what a generation is made from."""
    return "image" if options.prompt is None else "text"


def ignored_options(engine: str, options: GenerationOptions, names: Iterable[str]) -> tuple[str, ...]:
    """Return a warning about the requested options that an engine ignores, if any was requested.

    Args:
        engine: the engine's name in sentences, such as "preview".
        options: of the request.
        names: options that the engine ignores.
    """
    default = GenerationOptions(seed=options.seed)
    ignored = [name for name in names if getattr(options, name) != getattr(default, name)]
    return (f"The {engine} engine ignores {', '.join(ignored)}.",) if ignored else ()


class AttributeSource(Protocol):
    """Returns the attributes of any surface point."""

    def attributes_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3)
    ) -> SurfaceAttributes:
        """Return the attributes of surface points.

        Args:
            points: (P, 3) positions in the frame of the mesh.
            normals: (P, 3) outward unit normals.

        Returns:
            The attributes of P points; the same ones are None at every call.
        """
        ...


class ColourSource(ABC):
    """An `AttributeSource` of colours alone: from vertex colours, projected views, Gaussians or a field."""

    @abstractmethod
    def colours_at(
        self,
        points: NDArray[np.float32],  # (P, 3)
        normals: NDArray[np.float32],  # (P, 3)
    ) -> NDArray[np.float32]:  # (P, 3)
        """Return the colours of surface points.

        Args:
            points: (P, 3) positions in the frame of the mesh.
            normals: (P, 3) outward unit normals.

        Returns:
            (P, 3) float32 sRGB in [0, 1].
        """

    def attributes_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> SurfaceAttributes:
        """See `AttributeSource.attributes_at`."""
        return SurfaceAttributes(self.colours_at(points, normals))


@dataclass(frozen=True, eq=False)
class Generation:
    """The result of an engine.

    Attributes:
        mesh: the extracted surface, not yet simplified, in the frame of `TriMesh`.
        attribute_source: returns the colour, and the material, of any point on the surface.
        engine: name of the engine.
        seed: the seed that was used.
        warnings: sentences for the caller, such as which parameters had no effect.
        gpu_seconds: seconds of accelerator time, 0 on a CPU.
        elsewhere_s: wall seconds that it took in another container while nothing here waited for it.
        kernel_fallbacks: names of the GPU kernels that PyTorch replaced, see `pipeline.ops.kernels`.
        turntable_mp4: a turntable rendered from the engine's own field; None if it has no field or none was requested.
        extra_files: further files by extension (`"splat.ply"`), delivered beside the asset.
        draft: a sentence that says what the engine invented, if the result is a draft; "" otherwise.
        depth: the depth that the engine used, 0 to 1; None if it has no such option.
        view_angles: where the engine took the views to be from; None if it does not use angles.
        view_angles_confidence: 0 to 1, how sure the engine is of angles that it guessed; None if it did not guess.
        is_closed: whether the surface encloses a body, and is closed where it has holes; False for surfaces that may
            have borders, such as cloth and leaves.
    """

    mesh: TriMesh
    attribute_source: AttributeSource
    engine: str
    seed: int
    warnings: tuple[str, ...] = ()
    gpu_seconds: float = 0.0
    kernel_fallbacks: tuple[str, ...] = ()
    turntable_mp4: bytes | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    draft: str = ""
    depth: float | None = None
    view_angles: tuple[ViewAngle, ...] | None = None
    view_angles_confidence: float | None = None
    is_closed: bool = True
    elsewhere_s: float = 0.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled generation; version 0.1.0 had colours alone, under another name."""
        if "colour_source" in state:
            state["attribute_source"] = state.pop("colour_source")
        self.__dict__.update(state)


class Engine(Protocol):
    """A model with its weights, loaded once and used for many generations."""

    name: str

    @property
    def is_on_accelerator(self) -> bool:
        """Whether the model was loaded to an accelerator, so that generation time is accelerator time."""
        ...

    def load(self) -> None:
        """Read the weights and warm up; called once before the first `generate`.

        Raises:
            WeightsUnusable: a checkpoint is missing or does not match the model.
        """
        ...

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        """Turn views of one subject into a `Generation`.

        Args:
            views: foreground images, each (H, W, 4); sizes may differ.
            options: validated options of the request.
            on_step: receives the progress.

        Raises:
            CallerError: this engine cannot use the views.
            StageError: the engine failed.
            Cancelled: raised by `on_step`.
        """
        ...
