"""PrusaSlicer slices STL and 3MF as they are delivered: a figure of 100 mm, standing on the bed."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import generate
from pipeline.engines.base import ignore_steps
from pipeline.mesh.tri_mesh import TriMesh
from pipeline.stages.export import export
from schemas.formats import FORMATS
from tests.fakes.images import draw_figure
from tests.mesh.shapes import joined, leaf
from tests.stages.test_export import generation, request_for

SLICER = shutil.which("prusa-slicer")
LAYER_MM = 0.25
HEIGHT_MM = 100.0


needs_slicer = pytest.mark.skipif(
    SLICER is None, reason="prusa-slicer is missing, which scripts/debian_for_tests.sh installs"
)
each_print_format = pytest.mark.parametrize(
    "output_format", [name for name, spec in FORMATS.items() if spec.needs_body]
)


@needs_slicer
@each_print_format
def test_a_slicer_prints_the_figure_standing_at_100_mm(tmp_path: Path, output_format: str) -> None:
    result = generate(draw_figure(192), output_format=output_format, resolution=64, no_texture=True, seed=1)
    model, *_ = result.save(tmp_path)
    path = tmp_path / "figure.gcode"
    layers = ["--layer-height", str(LAYER_MM), "--first-layer-height", str(LAYER_MM)]
    command = [str(SLICER), "--export-gcode", *layers, "--output", str(path), str(model)]
    sliced = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert sliced.returncode == 0, sliced.stderr
    gcode = path.read_text()
    heights = [float(each) for each in re.findall(r"^;Z:([\d.]+)$", gcode, flags=re.MULTILINE)]
    assert len(heights) == gcode.count(";LAYER_CHANGE") == pytest.approx(HEIGHT_MM / LAYER_MM, abs=1)
    assert max(heights) == pytest.approx(HEIGHT_MM, abs=LAYER_MM)


def info(model: Path) -> dict[str, str]:
    """What the slicer says of a model; fails where it had to repair anything."""
    said = subprocess.run([str(SLICER), "--info", str(model)], capture_output=True, text=True, timeout=120).stdout
    found = dict(map(str.strip, line.split(" = ")) for line in said.splitlines() if " = " in line)
    assert found["manifold"] == "yes", said
    repairs = {"open_edges", "facets_removed", "facets_reversed", "edges_fixed", "backwards_edges"}
    assert not repairs & found.keys(), said
    return found


@needs_slicer
@each_print_format
@pytest.mark.parametrize("ready", [False, True])
def test_a_slicer_repairs_nothing_in_what_was_made_of_an_open_surface(
    tmp_path: Path, output_format: str, ready: bool
) -> None:
    standing = TriMesh(leaf().vertices[:, [1, 0, 2]], leaf().faces)
    made = replace(generation(), mesh=joined(leaf(), standing), is_closed=False)
    fields = {"output_format": output_format, "target_faces": 6000, "no_texture": True, "print_ready": ready}
    request = request_for(**fields)
    done = export(made, request=request, file_prefix="leaves", folder=tmp_path, on_step=ignore_steps)
    found = info(done.files[0].path)

    assert found["number_of_parts"] == "1"  # the sheets cross
    assert int(found["number_of_facets"]) == pytest.approx(6000, rel=0.01)


@needs_slicer
@each_print_format
def test_a_slicer_finds_one_part_in_what_is_ready_to_print_and_repairs_nothing(
    tmp_path: Path, output_format: str
) -> None:
    result = generate(
        draw_figure(192), output_format=output_format, resolution=64, no_texture=True, seed=1, print_ready=True
    )
    model, *_ = result.save(tmp_path)
    found = info(model)

    assert found["number_of_parts"] == "1"
    assert float(found["volume"]) == pytest.approx(result.meta["print"]["volume_mm3"], rel=1e-3)
    assert float(found["size_z"]) == pytest.approx(HEIGHT_MM, abs=0.01)
