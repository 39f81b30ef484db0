"""The Python API of image-to-3d: turn images into textured 3D files on this machine, without a service.

    from pipeline import generate

    result = generate("robot.png", output_format="glb", seed=1)
    result.save("out/")

Importing this package is cheap: numpy, torch and the engines load when a name that needs them is first used.
`pipeline.python_api` has `generate`, `pipeline.inspection` has `inspect`, `pipeline.engines.base` has what an engine
is made of, `pipeline.errors` draws the tree of errors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.version import __version__

if TYPE_CHECKING:
    from pipeline.engines.base import (
        AttributeSource,
        ColourSource,
        Engine,
        ForegroundImage,
        Generation,
        GenerationOptions,
        OnStep,
        ignore_steps,
    )
    from pipeline.errors import CallerError, Cancelled, ImageTo3DError, StageError
    from pipeline.inspection import InspectionReport, inspect, inspect_print
    from pipeline.mesh.material import SurfaceAttributes
    from pipeline.mesh.tri_mesh import TriMesh
    from pipeline.python_api import GenerationResult, ImageSource, OnProgress, generate, generate_from_text

__all__ = [
    "AttributeSource",
    "CallerError",
    "Cancelled",
    "ColourSource",
    "Engine",
    "ForegroundImage",
    "Generation",
    "GenerationOptions",
    "GenerationResult",
    "ImageSource",
    "ImageTo3DError",
    "InspectionReport",
    "OnProgress",
    "OnStep",
    "StageError",
    "SurfaceAttributes",
    "TriMesh",
    "__version__",
    "generate",
    "generate_from_text",
    "ignore_steps",
    "inspect",
    "inspect_print",
]

_MODULES = {
    "pipeline.engines.base": (
        "AttributeSource",
        "ColourSource",
        "Engine",
        "ForegroundImage",
        "Generation",
        "GenerationOptions",
        "OnStep",
        "ignore_steps",
    ),
    "pipeline.errors": ("CallerError", "Cancelled", "ImageTo3DError", "StageError"),
    "pipeline.inspection": ("InspectionReport", "inspect", "inspect_print"),
    "pipeline.mesh.material": ("SurfaceAttributes",),
    "pipeline.mesh.tri_mesh": ("TriMesh",),
    "pipeline.python_api": ("GenerationResult", "ImageSource", "OnProgress", "generate", "generate_from_text"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The module's own names and the public ones that have not been imported yet."""
    return sorted({*globals(), *__all__})
