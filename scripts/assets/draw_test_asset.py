"""Makes the files that test keys get, by the preview engine: `python -m scripts.assets.draw_test_asset`."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline import generate
from schemas.formats import OUTPUT_FORMATS
from scripts.assets.draw_sample import draw

FOLDER = Path(__file__).resolve().parents[2] / "pipeline" / "api" / "sample"
FIELDS = {"seed": 7, "engine": "preview", "resolution": 64, "mesh_simplify": 0.9, "texture_size": 512}


def main() -> None:
    """Write every format with its companions, the turntable and the thumbnail, and the number of faces."""
    result = generate(draw(), output_formats=OUTPUT_FORMATS, render=True, file_prefix="sample", **FIELDS)
    result.save(FOLDER)
    faces = dict.fromkeys(OUTPUT_FORMATS, result.meta["mesh"]["faces"])
    (FOLDER / "faces.json").write_text(json.dumps(faces) + "\n")


if __name__ == "__main__":
    main()
