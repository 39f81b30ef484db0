"""The back that the preview engine invents: one row per subject."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.engines.base import GenerationOptions
from pipeline.engines.preview.back_colours import find_rarity
from pipeline.engines.preview.engine import PreviewEngine
from tests.fakes.preview_subjects import SUBJECTS
from tests.fakes.preview_views import (
    gradient_energy,
    histogram_distance,
    orthographic_view,
    repeated_corner_patch,
    repeated_feature,
    rim_step_ratio,
)

SAMPLE = Path(__file__).parents[3] / "pipeline" / "api" / "playground" / "sample.png"


def main(images: str | None) -> None:
    """Print the table: subjects drawn by script, the sample image, and the transparent PNG images of a folder."""
    subjects = {name: draw() for name, draw in SUBJECTS.items()}
    for path in [SAMPLE, *sorted(Path(images).glob("*.png") if images else ())]:
        image = Image.open(path)
        if image.mode == "RGBA":
            subjects[path.stem] = np.asarray(image)
    print("subject          energy  energy without  colours  rim step  repeated  repeated corners  seconds")
    print("                 (ratio)  rare features (0 to 1)  (ratio)  (-1 to 1)         (-1 to 1)")
    for name, view in subjects.items():
        print(f"{name:16} " + measured(view))


def measured(view: NDArray[np.uint8]) -> str:
    """Return the numbers of one subject, and the seconds of a generation after the first."""
    engine, options = PreviewEngine(), GenerationOptions(seed=1)
    engine.generate([view], options)
    started = time.perf_counter()
    generation = engine.generate([view], options)
    seconds = time.perf_counter() - started
    front, side, back = (orthographic_view(generation, turn * math.pi / 2) for turn in (0, 1, 2))
    is_rare = find_rarity(np.ascontiguousarray(front[..., :3]), front[..., 3] > 0) > 1
    energies = [gradient_energy(back) / gradient_energy(front, without) for without in (None, is_rare)]
    return (
        f"{energies[0]:7.2f} {energies[1]:15.2f} {histogram_distance(back, front):8.2f} {rim_step_ratio(side):9.2f}"
        f" {repeated_feature(back, front):9.2f} {repeated_corner_patch(back, front):17.2f} {seconds:8.2f}"
    )
