"""The table of engines, by name, and their construction. Imports an engine only when it is constructed.

Safe to import in the web container: no numpy, no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipeline.engines.sampling_work import SamplingStage, check_sampling
from pipeline.errors import InvalidRequest, MissingExtra, WeightsUnusable
from schemas.request import RequestKind

if TYPE_CHECKING:
    from pipeline.engines.base import Engine, ForegroundImage, GenerationOptions


@dataclass(frozen=True)
class EngineSpec:
    """One row of the table of engines.

    Attributes:
        name: its name in requests and settings.
        module: dotted name of its module.
        class_name: name of its class, which takes keyword arguments only.
        extra: the optional dependency group that it needs.
        packages: import names of the packages in that group.
        max_views: most views of one subject that it accepts; 0 for an engine that takes no image.
        has_weights: its class takes `weights`, the folder that `fetch-weights` fills.
        summary: one line of description.
        gpus: GPU types for a deployment on Modal, by Modal's names, best first; empty for an engine without a GPU.
        memory_gib: host memory for a container on Modal: the weights, which lie there first, and 5 GiB for the rest.
        weights_gb: size of the weights of a default request, 10^9 bytes; 0 for an engine without weights.
        gpu_memory_gb: memory of the least GPU that it is of use on, 10^9 bytes; 0 for one that is of use on a CPU.
        ignores: fields of a submit that never change its result.
        inputs: what it makes assets from.
        defaults: of fields of a submit, where they differ from the documented ones.
        prepare: `module:function` that reduces views to what the engine reads of them, see `prepare_views`; "" where it
            reads them whole.
        stages: its sampling stages, for the bound on what a request may ask of a GPU.
        gpus_by_detail: GPU types instead of `gpus` for a deployment that loads the networks of that `detail`.
        takes_snapshot: whether a container on Modal starts from a snapshot of that memory.
    """

    name: str
    module: str
    class_name: str
    extra: str
    packages: tuple[str, ...]
    max_views: int
    has_weights: bool
    summary: str
    gpus: tuple[str, ...] = ()
    memory_gib: int = 10
    weights_gb: float = 0
    gpu_memory_gb: int = 0
    ignores: tuple[str, ...] = ()
    inputs: tuple[RequestKind, ...] = ("image",)
    defaults: Mapping[str, float] = field(default_factory=dict)
    prepare: str = ""
    stages: tuple[SamplingStage, ...] = ()
    gpus_by_detail: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    takes_snapshot: bool = True

    @property
    def needs(self) -> str:
        """What it needs beyond a CPU and its packages, as words that follow "needs"; "" if nothing."""
        weights = f"{self.weights_gb:g} GB of weights" if self.weights_gb else ""
        gpu = f"a GPU with {self.gpu_memory_gb} GB" if self.gpu_memory_gb else ""
        return " and ".join(filter(None, (weights, gpu)))


TINY_WEIGHTS = "tiny"
"""Passed instead of a folder: deterministic test weights of small shapes, for tests and trial deployments."""
SAMPLING = (
    "ss_guidance_strength",
    "ss_sampling_steps",
    "slat_guidance_strength",
    "slat_sampling_steps",
    "multi_image_mode",
    "splat",
)
"""Fields that matter only to an engine that samples, or that has Gaussians."""
MATERIALS = ("detail", "tex_guidance_strength", "tex_sampling_steps")
"""Fields of an engine that samples materials."""
STRUCTURE, LATENT, TEXTURE = (
    (f"{stage}_sampling_steps", f"{stage}_guidance_strength") for stage in ("ss", "slat", "tex")
)
# TRELLIS: about 10 s for 12 + 12 guided steps on an A100, as its authors state, 0.07 s a pass on an H100. The largest
# text model has 1.7 times the parameters.
TRELLIS_STAGES = (SamplingStage(*STRUCTURE, 0.07), SamplingStage(*LATENT, 0.07))
TRELLIS_TEXT_STAGES = (SamplingStage(*STRUCTURE, 0.12), SamplingStage(*LATENT, 0.12))
# TRELLIS.2: 2 + 1, 10 + 7 and 35 + 25 s for shape and texture at 512, 1024 and 1536, as its authors state for an H100,
# over 12 guided steps of structure, of the coarse shape and of the fine one, and 12 unguided ones of the texture.
TRELLIS2_STAGES = (
    SamplingStage(*STRUCTURE, 0.042, single_pass=(0.0, 1.0)),
    SamplingStage(*LATENT, by_detail={512: 0.042, 1024: 0.375, 1536: 1.42}, single_pass=(0.0, 1.0)),
    SamplingStage(*TEXTURE, by_detail={512: 0.083, 1024: 0.583, 1536: 2.083}, single_pass=(0.0, 1.0)),
)
LOCAL_PACKAGES = ("PIL", "cv2", "imageio_ffmpeg", "numba", "numpy", "scipy", "skimage", "trimesh")

ENGINES: tuple[EngineSpec, ...] = (
    EngineSpec(
        name="preview",
        module="pipeline.engines.preview.engine",
        class_name="PreviewEngine",
        extra="local",
        packages=LOCAL_PACKAGES,
        max_views=8,
        has_weights=False,
        summary="weight-free silhouettes, on any CPU",
        ignores=(*SAMPLING, *MATERIALS),
    ),
    EngineSpec(
        name="trellis",
        module="pipeline.engines.trellis.engine",
        class_name="TrellisEngine",
        extra="trellis",
        packages=(*LOCAL_PACKAGES, "huggingface_hub", "safetensors", "torch", "transformers"),
        max_views=8,
        has_weights=True,
        summary="the released TRELLIS model",
        gpus=("H100", "A100-80GB", "A100-40GB"),
        weights_gb=4.4,
        gpu_memory_gb=16,
        ignores=("view_angles", "depth", *MATERIALS),
        prepare="pipeline.engines.trellis.preprocess:prepare",
        stages=TRELLIS_STAGES,
    ),
    EngineSpec(
        name="trellis-text",
        module="pipeline.engines.trellis.text.engine",
        class_name="TrellisTextEngine",
        extra="trellis",
        packages=(*LOCAL_PACKAGES, "huggingface_hub", "safetensors", "torch", "transformers"),
        max_views=0,
        has_weights=True,
        summary="the released TRELLIS-text models: a text instead of an image",
        gpus=("H100", "A100-80GB", "A100-40GB"),
        memory_gib=12,
        weights_gb=6.5,
        gpu_memory_gb=16,
        inputs=("text",),
        stages=TRELLIS_TEXT_STAGES,
    ),
    EngineSpec(
        name="triposr",
        module="pipeline.engines.triposr.engine",
        class_name="TripoSREngine",
        extra="triposr",
        packages=(*LOCAL_PACKAGES, "huggingface_hub", "safetensors", "torch"),
        max_views=1,
        has_weights=True,
        summary="the released TripoSR model: drafts, also on a laptop's CPU",
        gpus=("L4", "A10", "T4"),
        weights_gb=1.7,
        ignores=(*SAMPLING, "view_angles", "depth", *MATERIALS),
    ),
    EngineSpec(
        name="trellis2",
        module="pipeline.engines.trellis2.engine",
        class_name="Trellis2Engine",
        extra="trellis",
        packages=(*LOCAL_PACKAGES, "huggingface_hub", "safetensors", "torch", "transformers"),
        max_views=8,
        has_weights=True,
        summary="the released TRELLIS.2 model: materials, transparency, open surfaces",
        gpus=("H100", "H200", "A100-80GB"),
        gpus_by_detail={512: ("L40S", "H100", "A100-80GB")},
        memory_gib=22,  # also a network of 5 GB in float32, while its layers take their types
        weights_gb=16.4,
        gpu_memory_gb=24,
        ignores=("view_angles", "depth", "resolution", "chunk_size", "splat"),
        defaults={"slat_guidance_strength": 7.5},
        prepare="pipeline.engines.trellis2.preprocess:prepare",
        stages=TRELLIS2_STAGES,
    ),
)


def find_spec(name: str) -> EngineSpec:
    """Return the row of the engine of that name.

    Raises:
        InvalidRequest: no engine has that name.
    """
    for spec in ENGINES:
        if spec.name == name:
            return spec
    raise InvalidRequest(f"engine must be one of {', '.join(s.name for s in ENGINES)}, got {name!r}")


def check_input(spec: EngineSpec, kind: RequestKind, *, offered: Sequence[str] = ()) -> None:
    """Check that an engine makes assets from a kind of input.

    Args:
        spec: the requested engine.
        kind: of the input.
        offered: names of the engines that the caller could choose instead; all of them by default.

    Raises:
        InvalidRequest: it does not; the message names the engines that do.
    """
    if kind in spec.inputs:
        return
    all_names = [other.name for other in ENGINES if kind in other.inputs]
    names = [name for name in offered or all_names if name in all_names]
    hint = f"{', '.join(names)} would take it"
    if not names:
        hint = f"no engine of this deployment takes one; {', '.join(all_names)} would, if its operator offered it"
    raise InvalidRequest(f"engine {spec.name} takes no {kind}; {hint}")


def choose_engine(name: str | None, kind: RequestKind, *, offered: Sequence[str]) -> EngineSpec:
    """Return the engine of a request.

    Args:
        name: the engine that the request names; None for the first of the offered ones that takes the input.
        kind: of the input.
        offered: names of the engines that requests may name, the default first.

    Raises:
        InvalidRequest: the engine is not offered, or takes no such input.
    """
    if name is not None and name not in offered:
        raise InvalidRequest(f"engine must be one of {', '.join(offered)}, got {name!r}")
    taking = [each for each in offered if kind in find_spec(each).inputs]
    spec = find_spec(name or (taking or offered)[0])
    check_input(spec, kind, offered=offered)
    return spec


def gpus_of(spec: EngineSpec, *, detail: int) -> tuple[str, ...]:
    """GPU types for an engine, best first, of a deployment that loads the networks of a `detail`."""
    return spec.gpus_by_detail.get(detail, spec.gpus)


def defaults_of(engine: object) -> Mapping[str, float]:
    """Defaults of an engine that differ from the documented ones; none for a name that no engine has."""
    return next((spec.defaults for spec in ENGINES if spec.name == engine), {})


def check_views(spec: EngineSpec, views: int, *, offered: Iterable[str] = ()) -> None:
    """Check that an engine accepts that many views of one subject.

    Args:
        spec: the requested engine.
        views: number of views.
        offered: names of the engines that the caller could choose instead; all of them by default.

    Raises:
        InvalidRequest: there are too many views; the message names the engines that accept them.
    """
    if views <= spec.max_views:
        return
    others = [find_spec(name) for name in offered] or ENGINES
    accepting = [other.name for other in others if other.max_views >= views]
    hint = f"; {', '.join(accepting)} would take them" if accepting else ""
    limit = f"at most {spec.max_views} views" if spec.max_views > 1 else "one view"
    raise InvalidRequest(f"engine {spec.name} takes {limit}, got {views}{hint}")


def prepare_views(
    spec: EngineSpec, views: Sequence[ForegroundImage], options: GenerationOptions, *, weights: str
) -> Sequence[ForegroundImage]:
    """Reduce views to what an engine reads of them, before they travel to another machine. Needs no torch.

    Args:
        weights: as for `require_weights`.

    Returns:
        Views with which the engine makes the same generation, byte for byte; the same ones where it reads them whole.

    Raises:
        UnreadableImage: a view holds no subject.
    """
    if not spec.prepare:
        return views
    module, _, function = spec.prepare.partition(":")
    return getattr(importlib.import_module(module), function)(views, options, is_tiny=weights == TINY_WEIGHTS)


def check_work(spec: EngineSpec, request: object, *, views: int, mode: str | None) -> None:
    """Check that a request holds a GPU for no longer than is accepted.

    Args:
        spec: its engine.
        request: has the fields of a submit that the engine's stages read.
        views: of the subject; 1 for a text.
        mode: the deployment's way to combine several views, which the request may override.

    Raises:
        InvalidRequest: it would take too long; the message has the numbers.
    """
    check_sampling(spec.stages, request, views=views, mode=getattr(request, "multi_image_mode", None) or mode)


def draft_notice(what: str, *, views: int) -> str:
    """Return the sentence that calls a result a draft, and names the engines that see more and what they need.

    Args:
        what: what the engine invented, as a clause with subject and verb.
        views: number of views of the job; only engines that accept as many are named.
    """
    better = [f"{spec.name} (needs {spec.needs})" for spec in ENGINES if spec.has_weights and spec.max_views >= views]
    return f"This is a draft: {what}. Engines that see more: {', '.join(better)}."


def is_installed(spec: EngineSpec) -> bool:
    """Return whether the packages of an engine are installed; imports none of them."""
    return all(importlib.util.find_spec(package) is not None for package in spec.packages)


def weights_module(spec: EngineSpec) -> Any:
    """Return the module with an engine's `fetch_weights` and `missing_bytes`; None for an engine without weights.

    The module imports no torch.
    """
    return importlib.import_module(f"{spec.module.rpartition('.')[0]}.weights") if spec.has_weights else None


def require_weights(
    spec: EngineSpec,
    weights: str,
    *,
    remedy: str,
    refresh: Callable[[], None] = lambda: None,
    wanted: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Check that an engine's weights are present before a machine is started that needs them.

    Args:
        spec: the engine.
        weights: the folder of all engines' weights, or `TINY_WEIGHTS`.
        remedy: the command that downloads them, for the message.
        refresh: called if files are missing, because a mounted volume may show an earlier state; the check repeats.
        wanted: which of the engine's weights, as arguments of `missing_bytes`.

    Raises:
        WeightsUnusable: files are missing.
    """
    module = weights_module(spec)
    if module is None or weights == TINY_WEIGHTS or not module.missing_bytes(Path(weights), **wanted):
        return
    refresh()
    if missing := module.missing_bytes(Path(weights), **wanted):
        raise WeightsUnusable(
            f"{missing / 1e9:.2f} GB of the weights of {spec.name} are missing; download them: {remedy}"
        )


def make_engine(name: str, **arguments: Any) -> Engine:
    """Construct the engine of that name without loading it.

    Args:
        name: name in the table.
        arguments: keyword arguments of the engine's class, such as device and weights.

    Raises:
        InvalidRequest: no engine has that name.
        MissingExtra: its packages are not installed.
    """
    spec = find_spec(name)
    try:
        module = importlib.import_module(spec.module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in {"pipeline", "schemas"}:
            raise
        raise MissingExtra(f"the {name} engine", extra=spec.extra) from error
    return getattr(module, spec.class_name)(**arguments)
