"""The tiny TRELLIS.2 through `image-to-3d generate`: every format, and the effect of every field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trimesh
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.formats.reading import read_3mf
from tests.e2e.test_trellis2_service import FEW_STEPS, FORMATS, OF_SHAPE, OF_TEXTURE, WITHOUT_EFFECT, positions
from tests.fakes.images import draw_disc, draw_figure, encode
from tests.gltf import document_of, issues_of

pytest.importorskip("torch")
FIELDS: dict[str, Any] = {"seed": 7, "detail": 512, "texture_size": 512, "target_faces": 600, **FEW_STEPS}
OF_SERVICE_ALONE = {"image", "track_id"}
"""Fields of the tables above that the command has no option for: images are its arguments."""


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two images; the command runs beside them, with a data folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGE_TO_3D_DATA", str(tmp_path / "data"))
    paths = [tmp_path / "figure.png", tmp_path / "disc.png"]
    for path, image in zip(paths, (draw_figure(96), draw_disc()), strict=True):
        path.write_bytes(encode(image))
    return paths


def generate(folder: Path, images: list[Path], *, also: str = "", **fields: Any) -> tuple[dict[str, bytes], str]:
    """Run the command in this process; the files that it wrote by name, and what it printed."""
    words = ["generate", *map(str, images), "-o", str(folder / "asset.glb"), "--engine", "trellis2"]
    words += ["--weights", "tiny", *(["--also", also] if also else [])]
    for name, value in {**FIELDS, **fields}.items():
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {path.name: path.read_bytes() for path in folder.iterdir()}, done.output


def test_the_command_writes_every_format_valid_and_the_same_bytes_again(images: list[Path], tmp_path: Path) -> None:
    first, second = (generate(tmp_path / name, images[:1], also=",".join(FORMATS[1:]))[0] for name in ("one", "two"))

    assert first == second
    assert {f"asset.{name}" for name in FORMATS} <= first.keys()
    issues = issues_of(tmp_path / "one/asset.glb")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
    (material,) = document_of(first["asset.glb"])["materials"]
    assert "metallicRoughnessTexture" in material["pbrMetallicRoughness"]
    for body in (trimesh.load_mesh(tmp_path / "one/asset.stl"), *read_3mf(first["asset.3mf"]).geometry.values()):
        assert body.is_watertight and body.volume > 0


def test_each_field_has_its_effect_through_the_command(images: list[Path], tmp_path: Path) -> None:
    def model(name: str, change: dict[str, Any], **fields: Any) -> tuple[bytes, str]:
        views = images if change.get("multi_image") else images[1:] if "image" in change else images[:1]
        options = {field: value for field, value in change.items() if field not in OF_SERVICE_ALONE}
        files, printed = generate(tmp_path / name, views, **fields, **options)
        return files["asset.glb"], printed

    of_shape = {name: model(name, change, no_texture=True) for name, change in {"first": {}, **OF_SHAPE}.items()}
    ignored = {name: model(name, change, no_texture=True) for name, change in WITHOUT_EFFECT.items()}
    of_texture = {name: model(f"{name} t", change)[0] for name, change in {"first": {}, **OF_TEXTURE}.items()}

    assert len({positions(content) for content, _ in of_shape.values()}) == 1 + len(OF_SHAPE)
    for name, (content, _) in ignored.items():
        assert content == of_shape["first"][0], name
    assert "splat" in ignored["splat"][1]
    assert len(set(of_texture.values())) == 1 + len(OF_TEXTURE)
    assert len({positions(content) for content in of_texture.values()}) == 1
