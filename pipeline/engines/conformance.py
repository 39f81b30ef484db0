"""Checks of the promises that the `Engine` protocol makes, for every engine, also one of another project.

    from pipeline.engines.conformance import check_engine

    def test_my_engine_conforms() -> None:
        assert check_engine(MyEngine()) == []

Knows no engine. Takes two whole generations and one that is cancelled at each of a few steps.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.engines.base import AttributeSource, Engine, ForegroundImage, Generation, GenerationOptions
from pipeline.errors import Cancelled

MAX_PICKLED_BYTES = 20 * 10**6
"""A `Generation` travels between processes and is kept as a checkpoint."""
MIN_STEPS = 3
"""Calls of `on_step` in a generation: each is a chance to cancel."""
CANCELLED_AT = (0, 1, -1)
"""Calls of `on_step` that are tried as the one that cancels."""
POINTS = 512
ATTRIBUTES = ("base_colour", "alpha", "metallic", "roughness")
OPTIONS = GenerationOptions(seed=7, resolution=64)


def check_engine(
    engine: Engine, views: Sequence[ForegroundImage] | None = None, options: GenerationOptions = OPTIONS
) -> list[str]:
    """Return a sentence for each promise that the engine breaks; an empty list if it keeps all of them.

    Args:
        engine: not loaded yet.
        views: of one subject, each (H, W, 4) uint8; a drawn vase by default.
        options: of both generations.

    Raises:
        Exception: what the engine raises where it should return.
    """
    views = [draw_vase()] if views is None else views
    before = [view.copy() for view in views]
    engine.load()
    engine.load()  # a second call must do no harm
    steps: list[float] = []
    first = engine.generate(views, options, on_step=steps.append)
    problems = [*_check_steps(steps), *_check_generation(engine, first, options)]
    problems += [*_check_cancellation(engine, views, options, len(steps))]
    second = engine.generate(views, options)
    if not _are_equal(first, second):
        problems.append("The same views, options and seed gave another result the second time.")
    if not all(np.array_equal(view, copy) for view, copy in zip(views, before, strict=True)):
        problems.append("The engine wrote to the views, which other stages read too.")
    return problems


def draw_vase(height: int = 96, width: int = 72) -> ForegroundImage:
    """A round vase with horizontal stripes on a transparent background: (height, width, 4) uint8."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    radius = width * (0.24 + 0.14 * np.sin(rows / height * 2 * np.pi + 0.6))
    inside = (np.abs(columns + 0.5 - width / 2) < radius) & (rows > 4) & (rows < height - 5)
    view = np.zeros((height, width, 4), np.uint8)
    view[..., 0] = np.where((rows // 12) % 2 == 0, 200, 60)
    view[..., 1] = (columns / width * 180 + 40).astype(np.uint8)
    view[..., 2] = 90
    view[..., 3] = np.where(inside, 255, 0)
    return view


def _check_steps(steps: Sequence[float]) -> list[str]:
    problems: list[str] = []
    if len(steps) < MIN_STEPS:
        problems.append(
            f"on_step was called {len(steps)} times; a job can be cancelled only there. Call it {MIN_STEPS}."
        )
    if any(not 0 <= share <= 1 for share in steps):
        problems.append("on_step received a share outside 0 to 1.")
    if any(later < earlier for earlier, later in pairwise(steps)):
        problems.append("on_step received a share below an earlier one.")
    return problems


def _check_generation(engine: Engine, generation: Generation, options: GenerationOptions) -> list[str]:
    problems: list[str] = []
    if generation.engine != engine.name or not engine.name:
        problems.append(f"Generation.engine is {generation.engine!r}, the engine's name {engine.name!r}.")
    if generation.seed != options.seed:
        problems.append(f"Generation.seed is {generation.seed}, not the seed of the options, {options.seed}.")
    if generation.gpu_seconds < 0 or (generation.gpu_seconds > 0 and not engine.is_on_accelerator):
        problems.append(f"Generation.gpu_seconds is {generation.gpu_seconds} without an accelerator.")
    if not all(warning.endswith(".") for warning in generation.warnings):
        problems.append("Generation.warnings holds text that is not a sentence.")
    problems += _check_mesh(generation, cell_m=1 / options.resolution)
    if not problems:
        problems += _check_attributes(generation)
        problems += _check_pickle(generation)
    return problems


def _check_mesh(generation: Generation, *, cell_m: float) -> list[str]:
    vertices, faces = generation.mesh.vertices, generation.mesh.faces
    if vertices.ndim != 2 or vertices.shape[1:] != (3,) or vertices.dtype not in (np.float32, np.float64):
        return [f"mesh.vertices is {vertices.dtype} {vertices.shape}, not (V, 3) float32 or float64."]
    if faces.ndim != 2 or faces.shape[1:] != (3,) or faces.dtype != np.int32 or len(faces) < 4:
        return [f"mesh.faces is {faces.dtype} {faces.shape}, not (F, 3) int32 with at least 4 faces."]
    if faces.min() < 0 or faces.max() >= len(vertices):
        return ["mesh.faces names vertices that do not exist."]
    if not np.isfinite(vertices).all():
        return ["mesh.vertices holds numbers that are not finite."]
    problems: list[str] = []
    if np.abs(vertices).max() > 0.5 + cell_m:
        problems.append("The mesh reaches out of the unit cube centred at the origin, by more than a cell.")
    if generation.is_closed and generation.mesh.volume() <= 0:
        problems.append("The faces are not wound counter-clockwise seen from outside.")
    return problems


def _sample(generation: Generation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points on the surface and their normals: (P, 3) each."""
    chosen = np.linspace(0, len(generation.mesh.vertices) - 1, POINTS).astype(int)
    vertices = generation.mesh.vertices[chosen].astype(np.float32)
    return vertices, generation.mesh.vertex_normals()[chosen]


def _check_attributes(generation: Generation) -> list[str]:
    points, normals = _sample(generation)
    source = generation.attribute_source
    found = _arrays(source, points, normals)
    for name, values in found.items():
        shape = (len(points), 3) if name == "base_colour" else (len(points),)
        if values.shape != shape or values.dtype != np.float32:
            return [f"{name} is {values.dtype} {values.shape} for {len(points)} points, not {shape} float32."]
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            return [f"{name} has values outside 0 to 1."]
    problems: list[str] = []
    nothing = _arrays(source, points[:0], normals[:0])
    if nothing.keys() != found.keys() or nothing["base_colour"].shape != (0, 3):
        problems.append("attributes_at does not return the same attributes for no points, with a colour of (0, 3).")
    elif not _ignores_neighbours(source, points, normals, found):
        problems.append(
            "The attributes of a point depend on which points are asked for with it, so chunk_size changes it."
        )
    return problems


def _arrays(
    source: AttributeSource, points: NDArray[np.float32], normals: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The attributes that there are, by name."""
    attributes = source.attributes_at(points, normals)
    return {name: values for name in ATTRIBUTES if (values := getattr(attributes, name)) is not None}


def _ignores_neighbours(
    source: AttributeSource,
    points: NDArray[np.float32],
    normals: NDArray[np.float32],
    expected: Mapping[str, NDArray[np.float32]],
) -> bool:
    """Whether pieces of other sizes, and another order, give the same bytes."""
    cuts = [0, 1, 8, 107, len(points)]
    pieces = [_arrays(source, points[start:end], normals[start:end]) for start, end in pairwise(cuts) if start < end]
    backwards = _arrays(source, points[::-1].copy(), normals[::-1].copy())
    return all(
        np.array_equal(np.concatenate([piece[name] for piece in pieces]), values)
        and np.array_equal(backwards[name][::-1], values)
        for name, values in expected.items()
    )


def _check_pickle(generation: Generation) -> list[str]:
    pickled = pickle.dumps(generation)
    problems: list[str] = []
    if len(pickled) > MAX_PICKLED_BYTES:
        problems.append(f"The pickled Generation has {len(pickled):,} bytes, more than {MAX_PICKLED_BYTES:,}.")
    if not _are_equal(pickle.loads(pickled), generation):  # our own bytes of a moment ago
        problems.append("The Generation changes when it is pickled.")
    return problems


def _check_cancellation(
    engine: Engine, views: Sequence[ForegroundImage], options: GenerationOptions, steps: int
) -> list[str]:
    """Whether `Cancelled`, raised by `on_step`, ends a generation wherever it is raised."""
    for number in {place % steps for place in CANCELLED_AT} if steps else ():
        calls = 0

        def cancel(share: float, *, at: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls > at:
                raise Cancelled("The job was cancelled.")

        try:
            engine.generate(views, options, on_step=cancel)
        except Cancelled:
            continue
        return ["A generation went on after on_step had raised Cancelled."]
    return []


def _are_equal(one: Generation, other: Generation) -> bool:
    points, normals = _sample(one)
    first, second = (_arrays(each.attribute_source, points, normals) for each in (one, other))
    return (
        np.array_equal(one.mesh.vertices, other.mesh.vertices)
        and np.array_equal(one.mesh.faces, other.mesh.faces)
        and first.keys() == second.keys()
        and all(np.array_equal(values, second[name]) for name, values in first.items())
        and (one.turntable_mp4, dict(one.extra_files)) == (other.turntable_mp4, dict(other.extra_files))
    )
