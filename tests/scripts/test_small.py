"""The tables of texture formats and compressions, of a small asset."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from scripts.benchmarks.readers import Found, Reader
from scripts.benchmarks.small import SETTINGS, Setting, asset_of, encode, measure, table_of_readers, table_of_sizes
from tests.fakes.images import draw_figure


def test_what_is_measured_of_a_setting_is_what_a_reader_gets(tmp_path: Path) -> None:
    Image.fromarray(draw_figure(128)).save(tmp_path / "figure.png")
    asset = asset_of(tmp_path / "figure.png", resolution=64, texture_size=512)

    rows = {("figure", each): measure(asset, each) for each in SETTINGS}

    exact, small = rows["figure", Setting("png", "none")], rows["figure", Setting("webp", "meshopt")]
    assert exact.texture_db == float("inf") and exact.moved == 0
    assert small.size < exact.size / 4 and small.texture_db >= 38 and 0 < small.moved < 1e-4
    lines = table_of_sizes({"figure": asset}, rows).splitlines()
    assert len(lines) == 2 + len(SETTINGS) and "| 100% " in lines[2] and "exact" in lines[2]
    for each in SETTINGS:
        (tmp_path / f"{each.texture_format}_{each.compression}.glb").write_bytes(encode(asset, each)[1])
    table = table_of_readers(tmp_path, [Reader("strict", ("glb",), refuse_meshopt)])
    assert table.splitlines()[-1] == "| strict | yes | yes | no: cannot | yes | yes | without colours |"


def refuse_meshopt(path: Path) -> Found:
    if "meshopt" in path.name:
        raise RuntimeError("cannot")
    return Found((1.0, 1.0, 1.0), texture="webp" not in path.name)


def test_another_size_is_told(tmp_path: Path) -> None:
    wide = Reader("wide", ("glb",), lambda path: Found((9.0 if "quantize" in path.name else 1.0,) * 3, texture=True))
    assert "| yes | another size | yes |" in table_of_readers(tmp_path, [wide])


def test_there_is_a_setting_for_each_format_and_compression() -> None:
    assert SETTINGS[0] == Setting("png", "none") and len(SETTINGS) == pytest.approx(12)
