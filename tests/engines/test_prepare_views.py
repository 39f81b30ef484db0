"""Views that are reduced before they travel: an engine makes the same of them as of the whole ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.engines.base import GenerationOptions
from pipeline.engines.registry import ENGINES, find_spec, prepare_views
from pipeline.errors import UnreadableImage
from tests.fakes.images import draw_figure

torch = pytest.importorskip("torch", reason="needs the extra 'trellis'")

ROOT = Path(__file__).resolve().parents[2]
REDUCED = [spec.name for spec in ENGINES if spec.prepare]
MOST_BYTES = {"trellis": 0.9e6, "trellis2": 3.2e6}
"""518 x 518 x 3, and 1024 x 1024 x 3."""


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("ratio", [None, 0.7])
def test_a_generation_of_reduced_views_is_that_of_the_whole_ones(name: str, ratio: float | None) -> None:
    from pipeline.stages.generate import configured_engine, run_engine

    views = [draw_figure(150), draw_figure(96)]
    options = GenerationOptions(
        seed=3,
        resolution=64,
        ss_sampling_steps=2,
        slat_sampling_steps=2,
        tex_sampling_steps=2,
        foreground_ratio=ratio,
        detail=512,
    )
    engine = configured_engine(name, weights="tiny")
    engine.load()

    whole = run_engine(engine, views, options)
    reduced = run_engine(engine, prepare_views(find_spec(name), views, options, weights="tiny"), options)

    assert pickle.dumps(replaced_seconds(whole)) == pickle.dumps(replaced_seconds(reduced))


def replaced_seconds(generation: object) -> object:
    """A generation without its time."""
    from dataclasses import replace

    return replace(generation, gpu_seconds=0.0)  # type: ignore[type-var]


@pytest.mark.parametrize("name", REDUCED)
def test_a_reduced_view_is_as_small_as_what_the_model_reads(name: str) -> None:
    photo = np.zeros((3000, 4000, 4), np.uint8)
    photo[200:2800, 300:3700] = 255

    (reduced,) = prepare_views(find_spec(name), [photo], GenerationOptions(seed=1), weights="/weights")

    assert len(pickle.dumps(photo)) > 48e6
    assert len(pickle.dumps(reduced)) < MOST_BYTES[name]


@pytest.mark.parametrize("name", REDUCED)
def test_a_view_without_a_subject_is_refused_before_it_travels(name: str) -> None:
    with pytest.raises(UnreadableImage, match="the image holds no subject"):
        prepare_views(find_spec(name), [np.zeros((8, 8, 4), np.uint8)], GenerationOptions(seed=1), weights="tiny")


def test_an_engine_that_reads_whole_views_gets_them_as_they_are() -> None:
    views = [draw_figure(32)]

    assert prepare_views(find_spec("preview"), views, GenerationOptions(seed=1), weights="tiny") is views


def test_views_are_reduced_without_torch() -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from pipeline.engines.base import GenerationOptions
from pipeline.engines.registry import find_spec, prepare_views
for name in {REDUCED!r}:
    prepare_views(find_spec(name), [np.full((64, 64, 4), 255, np.uint8)], GenerationOptions(seed=1), weights="tiny")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
