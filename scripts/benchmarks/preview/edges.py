"""Colours along the edge of cut-outs with a hard mask, which the preview engine pulls over the flanks."""

from __future__ import annotations

import numpy as np

from pipeline.engines.preview.fringe import without_fringe
from tests.fakes.preview_edges import GROUNDS, edge_error, photographed
from tests.fakes.preview_subjects import SUBJECTS


def main(images: str | None) -> None:
    """Print the table: subjects drawn by script, whose true colours are known; no others."""
    print(
        "mean error of the edge, 0 to 255, of the image and without fringe; transparent pixels keep their colour or not"
    )
    print("subject  ground       kept           blank")
    for name, draw in SUBJECTS.items():
        subject = draw()
        colours, alpha = without_fringe(subject).astype(np.float32), subject[..., 3] / np.float32(255)
        for ground, colour in GROUNDS.items():
            row = f"{name:8} {ground:6}"
            for is_kept in (True, False):
                view = photographed(colours, alpha, colour, is_kept=is_kept)
                before, after = (edge_error(each, colours, alpha) for each in (view[..., :3], without_fringe(view)))
                row += f"  {before:5.1f} -> {after:4.1f}"
            print(row)
