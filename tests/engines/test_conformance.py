"""Every engine keeps the promises of the protocol, and an engine that breaks one is found out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.engines.base import ColourSource, ForegroundImage, Generation, GenerationOptions, OnStep, ignore_steps
from pipeline.engines.conformance import OPTIONS, check_engine
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.engines.registry import ENGINES, TINY_WEIGHTS, EngineSpec, make_engine
from pipeline.errors import Cancelled
from pipeline.mesh.tri_mesh import TriMesh


@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_every_engine_of_the_registry_conforms(spec: EngineSpec) -> None:
    arguments = {"weights": TINY_WEIGHTS, "device": "cpu"} if spec.has_weights else {}

    text = () if "image" in spec.inputs else ([], replace(OPTIONS, prompt="a vase"))

    options = text or (None, replace(OPTIONS, detail=512))  # the least that an engine with such a choice has

    assert check_engine(make_engine(spec.name, **arguments), *options) == []


class Broken(PreviewEngine):
    """The preview engine with one promise broken."""

    def __init__(self, promise: str) -> None:
        self._promise = promise
        self._numbers = itertools.count()

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        match self._promise:
            case "few steps":
                return super().generate(views, options)
            case "steps back":
                return super().generate(views, options, on_step=lambda share: on_step(1 - share))
            case "no cancelling":
                try:
                    return super().generate(views, options, on_step=on_step)
                except Cancelled:
                    return super().generate(views, options)
            case "writes to views":
                views[0][0, 0] = 255 - views[0][0, 0]
            case _:
                pass
        made = super().generate(views, options, on_step=on_step)
        return replace(made, **self._changes(made))

    def _changes(self, made: Generation) -> dict[str, Any]:
        vertices, faces = made.mesh.vertices, made.mesh.faces
        return {
            "another seed": {"seed": made.seed + 1},
            "another name": {"engine": "other"},
            "gpu time": {"gpu_seconds": 1.0},
            "no sentence": {"warnings": ("ignored seed",)},
            "too large": {"mesh": TriMesh(vertices * 3, faces)},
            "inside out": {"mesh": TriMesh(vertices, faces[:, ::-1].copy())},
            "not finite": {"mesh": TriMesh(np.where(vertices == vertices.max(), np.nan, vertices), faces)},
            "wide indices": {"mesh": TriMesh(vertices, faces.astype(np.int64))},  # type: ignore[arg-type]
            "neighbours": {"attribute_source": Neighbours()},
            "unsteady": {"mesh": TriMesh(vertices * (1 - 0.01 * next(self._numbers)), faces)},
        }.get(self._promise, {})


class Neighbours(ColourSource):
    """A colour source whose colours depend on the number of points."""

    def colours_at(self, points: Any, normals: Any) -> Any:
        return np.full((len(points), 3), len(points) % 7 / 7, np.float32)


@pytest.mark.parametrize(
    ("promise", "sentence"),
    [
        ("few steps", "on_step was called 0 times"),
        ("steps back", "below an earlier one"),
        ("no cancelling", "went on after on_step had raised Cancelled"),
        ("writes to views", "wrote to the views"),
        ("another seed", "Generation.seed is 8"),
        ("another name", "Generation.engine is 'other'"),
        ("gpu time", "without an accelerator"),
        ("no sentence", "not a sentence"),
        ("too large", "out of the unit cube"),
        ("inside out", "not wound counter-clockwise"),
        ("not finite", "not finite"),
        ("wide indices", "mesh.faces is int64"),
        ("neighbours", "depend on which points are asked for"),
        ("unsteady", "another result the second time"),
    ],
)
def test_a_broken_promise_is_found(promise: str, sentence: str) -> None:
    problems = check_engine(Broken(promise))

    assert any(sentence in problem for problem in problems), problems
