"""The Python API as a user meets it: what an image may be, what comes back, and what is refused in one sentence."""

from __future__ import annotations

import base64
import inspect as python_inspect
import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import pipeline
from pipeline import (
    CallerError,
    ColourSource,
    ForegroundImage,
    Generation,
    GenerationOptions,
    ImageTo3DError,
    OnStep,
    StageError,
    TriMesh,
    generate,
    generate_from_text,
    ignore_steps,
    inspect,
    python_api,
)
from pipeline.engines.registry import ENGINES
from pipeline.errors import (
    EngineFailed,
    InvalidRequest,
    MissingExtra,
    UnreadableImage,
    UnwritableOutput,
    WeightsUnusable,
)
from pipeline.settings import Settings
from schemas.formats import FORMATS, OUTPUT_FORMATS
from schemas.request import ImageTo3DRequest
from schemas.table import SERVICE_FIELDS
from tests.fakes.images import bare_png, draw_figure, encode

FIGURE = draw_figure(96)  # (96, 96, 4) uint8
PNG = encode(FIGURE)
SMALL: dict[str, Any] = {"resolution": 64, "texture_size": 512, "seed": 3}
TAKE_OTHER_FORMS = {"image", "engine", "view_angles", "output_formats", "lods"}
HEAVY = ("numpy", "numba", "pydantic", "PIL", "trimesh", "torch", "modal", "fastapi", "sqlalchemy")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "robot.png"
    file.write_bytes(PNG)
    return file


def test_three_lines_make_files(path: Path, tmp_path: Path) -> None:
    result = generate(str(path), output_format="glb", **SMALL)
    written = result.save(tmp_path / "out")

    assert [file.name for file in written] == list(result.files) == ["robot.glb", "robot_thumbnail.png"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == result.files
    assert result.meta["seed"] == 3 and result.meta["engine"] == result.engine == "preview"
    assert result.warnings == (result.meta["draft_notice"],)  # a preview invents the back, and says so
    assert result.meta["draft"] is True and result.warnings[0].startswith("This is a draft: ")
    assert set(result.stage_seconds) == {"intake", "generate", "export", "deliver"}
    assert repr(result).startswith("<GenerationResult of engine preview: robot.glb (")


def test_every_kind_of_source_gives_the_same_model(path: Path) -> None:
    expected = generate(path, **SMALL).files["robot.glb"]
    data_uri = "data:image/png;base64," + base64.b64encode(PNG).decode()

    for image in (str(path), PNG, bytearray(PNG), data_uri, FIGURE, Image.fromarray(FIGURE), [FIGURE]):
        assert generate(image, file_prefix="robot", **SMALL).files["robot.glb"] == expected


def test_an_array_without_alpha_equals_its_opaque_png() -> None:
    rgb = np.full((96, 96, 3), 255, np.uint8)
    rgb[24:72, 32:64] = (200, 30, 30)

    from_array, from_bytes = (generate(image, **SMALL).files["model.glb"] for image in (rgb, encode(rgb)))

    assert from_array == from_bytes


def test_a_pil_image_is_turned_upright_like_its_file() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.fromarray(FIGURE).save(file, "PNG", exif=exif)

    opened = generate(Image.open(file), **SMALL).files["model.glb"]

    assert opened == generate(file.getvalue(), **SMALL).files["model.glb"]
    assert opened != generate(FIGURE, **SMALL).files["model.glb"]


def test_several_images_are_views_of_one_subject(path: Path) -> None:
    result = generate([path, FIGURE[:, ::-1]], **SMALL)

    assert result.meta["multi_image"] is True
    assert result.model_name == "robot.glb"


def test_the_angles_of_views_are_in_meta_as_stated_or_as_guessed() -> None:
    sheet = np.concatenate([FIGURE, FIGURE[:, ::-1]], axis=1)

    stated = generate(sheet, multi_image=True, view_angles=("front", "back"), **SMALL)
    guessed = generate(sheet, multi_image=True, **SMALL)

    assert stated.meta["view_angles"] == [0, 180] and "view_angles_confidence" not in stated.meta
    assert guessed.meta["view_angles"] == [0, 180] and 0 < guessed.meta["view_angles_confidence"] <= 1
    assert any("from front, back, guessed from the images" in warning for warning in guessed.warnings)
    with pytest.raises(InvalidRequest, match="view_angles must be one angle for each view, got 3 for 2"):
        generate(sheet, multi_image=True, view_angles="0, 90, 180", **SMALL)


def test_a_sheet_is_taken_apart_on_request() -> None:
    class Counting(Box):
        def generate(
            self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
        ) -> Generation:
            counts.append(len(views))
            return super().generate(views, options, on_step=on_step)

    counts: list[int] = []
    sheet = np.concatenate([FIGURE, FIGURE, FIGURE], axis=1)

    for multi_image in (False, True):
        generate(sheet, engine=Counting(), multi_image=multi_image, **SMALL)

    assert counts == [1, 3]


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_the_mesh_of_every_format_has_the_reported_faces(output_format: Any) -> None:
    result = generate(FIGURE, output_format=output_format, **SMALL)
    report = inspect(result.files[result.model_name])

    assert result.model_name == f"model.{output_format}"
    assert len(result.mesh.faces) == report.faces > 100
    assert result.mesh is result.mesh
    assert report.is_watertight and report.is_winding_consistent
    assert report.components == 1 and report.volume > 0
    assert report.texture_size == (
        (512, 512) if output_format in ("glb", "usdz") else None
    )  # an OBJ's is in another file
    assert report.has_vertex_colours == (output_format in ("ply", "3mf"))
    spec = FORMATS[output_format]
    size = spec.default_size_m
    up = "xyz".index(spec.up_axis)
    assert max(np.subtract(report.highest, report.lowest)) == pytest.approx(size, rel=1e-3)
    assert report.lowest[up] == pytest.approx(0, abs=1e-3 * size)


def test_an_obj_on_the_disk_is_inspected_with_its_texture(tmp_path: Path) -> None:
    model, *_ = generate(FIGURE, output_format="obj", **SMALL).save(tmp_path)

    assert inspect(model).texture_size == (512, 512)
    assert generate(FIGURE, output_format="obj", **SMALL).mesh.visual.material.image.size == (512, 512)


def test_the_same_seed_gives_the_same_bytes_and_no_seed_draws_one() -> None:
    fields = SMALL | {"seed": 0}

    assert generate(FIGURE, **SMALL).files == generate(FIGURE, **SMALL).files
    assert generate(FIGURE, **fields).meta["seed"] > 0


def wrong_arguments(folder: Path) -> dict[str, tuple[Any, dict[str, Any], type[ImageTo3DError], str]]:
    """An image, further arguments, the error and a part of its sentence, by case."""
    return {
        "a folder": (folder, {}, InvalidRequest, "is a folder"),
        "a missing file": (folder / "none.png", {}, InvalidRequest, "does not exist"),
        "a missing file by text": (str(folder / "none.png"), {}, InvalidRequest, "does not exist"),
        "a NUL in the path": (Path("a\0b"), {}, InvalidRequest, "NUL"),
        "no bytes": (b"", {}, UnreadableImage, "is empty"),
        "text": (b"only text", {}, UnreadableImage, "not a readable image"),
        "an image too large": (bare_png(9000, 9000), {}, UnreadableImage, "megapixels"),
        "an empty array": (np.zeros((0, 8, 3), np.uint8), {}, InvalidRequest, "must have pixels, got (0 × 8 × 3)"),
        "floats": (np.zeros((8, 8, 3)), {}, InvalidRequest, "uint8, got (8 × 8 × 3) float64"),
        "no channels": (np.zeros((8, 8), np.uint8), {}, InvalidRequest, "(H, W, 3 or 4) uint8, got (8 × 8) uint8"),
        "many images in one array": (np.zeros((2, 8, 8, 3), np.uint8), {}, InvalidRequest, "got (2 × 8 × 8 × 3)"),
        "an array too large": (np.zeros((8000, 8000, 3), np.uint8), {}, UnreadableImage, "megapixels"),
        "an array without a subject": (np.zeros((64, 64, 4), np.uint8), {}, UnreadableImage, "transparent"),
        "no image": (None, {}, InvalidRequest, "a PIL image, got NoneType"),
        "a number among images": ([FIGURE, 7], {}, InvalidRequest, "a PIL image, got int"),
        "an empty list": ([], {}, InvalidRequest, "empty list"),
        "nine images": ([FIGURE] * 9, {}, InvalidRequest, "at most 8"),
        "a private address": ("http://127.0.0.1:9/a.png", {}, CallerError, "not public"),
        "a format": (FIGURE, {"output_format": "fbx"}, InvalidRequest, "output_format must be one of glb, obj"),
        "a field out of bounds": (FIGURE, {"mesh_simplify": 0.5}, InvalidRequest, "between 0.9 and 0.98, got 0.5"),
        "an unknown engine": (FIGURE, {"engine": "magic"}, InvalidRequest, "engine must be one of preview"),
        "no engine at all": (FIGURE, {"engine": 7}, InvalidRequest, "a name or an Engine, got int"),
        "a prefix with a folder": (FIGURE, {"file_prefix": "a/b"}, InvalidRequest, "file_prefix must be"),
        "missing weights": (FIGURE, {"engine": "triposr", "weights": folder}, WeightsUnusable, "fetch-weights"),
    }


@pytest.mark.parametrize("case", list(wrong_arguments(Path())))
def test_a_wrong_argument_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    image, arguments, error, words = wrong_arguments(tmp_path)[case]

    with pytest.raises(error) as refused:
        generate(image, **(SMALL | arguments))

    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_format_whose_package_is_missing_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []
    monkeypatch.setitem(FORMATS, "usdz", replace(FORMATS["usdz"], package="no_such_package"))

    with pytest.raises(MissingExtra, match=r"the format usdz needs the extra 'usd': pip install 'image-to-3d\[usd\]'"):
        generate(FIGURE, output_formats="glb,usdz", on_progress=lambda stage, percent: stages.append(stage), **SMALL)

    assert stages == []
    assert "usdz" not in Settings(output_formats=()).offered_formats and "3mf" in Settings().offered_formats


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="texture_sise"):
        generate(FIGURE, texture_sise=512)  # pyright: ignore[reportCallIssue]


def test_files_that_cannot_be_written_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = generate(FIGURE, **SMALL)

    with pytest.raises(UnwritableOutput, match="cannot write to"):
        result.save(tmp_path / "file" / "out")

    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_progress_is_told_in_order_up_to_the_end() -> None:
    told: list[tuple[str, int]] = []

    generate(FIGURE, on_progress=lambda stage, percent: told.append((stage, percent)), **SMALL)

    stages, percents = zip(*told, strict=True)
    assert list(dict.fromkeys(stages)) == ["intake", "generate", "export", "deliver"]
    assert list(percents) == sorted(percents) and percents[-1] == 100


class Stop(Exception):
    """What a user raises to cancel."""


@pytest.mark.parametrize("at", ["intake", "generate", "export", "deliver"])
def test_an_exception_raised_from_on_progress_cancels_and_arrives_unchanged(at: str) -> None:
    stop = Stop()

    def on_progress(stage: str, percent: int) -> None:
        if stage == at:
            raise stop

    with pytest.raises(Stop) as raised:
        generate(FIGURE, on_progress=on_progress, **SMALL)

    assert raised.value is stop


class Red(ColourSource):
    """One colour everywhere."""

    def colours_at(self, points: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tile(np.float32([1, 0, 0]), (len(points), 1))


class Box:
    """The smallest engine: a red tetrahedron for every image."""

    name = "box"
    is_on_accelerator = False

    def __init__(self) -> None:
        self.loads = 0

    def load(self) -> None:
        self.loads += 1

    def generate(
        self, views: Sequence[ForegroundImage], options: GenerationOptions, *, on_step: OnStep = ignore_steps
    ) -> Generation:
        vertices = np.float32([[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0], [0, 0, 0.4]])
        faces = np.int32([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
        return Generation(mesh=TriMesh(vertices, faces), attribute_source=Red(), engine=self.name, seed=options.seed)


def test_an_engine_of_the_users_own_is_loaded_once() -> None:
    engine = Box()

    first, second = (generate(FIGURE, engine=engine, mesh_simplify=0.9, seed=1, texture_size=512) for _ in range(2))

    assert engine.loads == 1
    assert first.meta["engine"] == "box" and first.files == second.files
    assert inspect(first.files["model.glb"]).faces == 4


def test_a_failing_engine_is_named_and_its_exception_is_the_cause() -> None:
    class Broken(Box):
        name = "broken"

        def generate(self, *args: object, **kwargs: object) -> Generation:
            raise RuntimeError("a detail for the developer")

    with pytest.raises(EngineFailed, match="engine broken failed") as failed:
        generate(FIGURE, engine=Broken(), **SMALL)

    assert isinstance(failed.value, StageError)
    assert str(failed.value.__cause__) == "a detail for the developer"


def test_named_engines_stay_loaded_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engines.preview.engine import PreviewEngine

    generate(FIGURE, **SMALL)
    monkeypatch.setattr(PreviewEngine, "load", lambda self: pytest.fail("loaded twice"))

    generate(FIGURE, **SMALL)


@pytest.mark.parametrize("content", [b"", b"nothing", b"glTF", b"ply\n"])
def test_content_that_is_no_3d_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.glb").write_bytes(content)

    for file in (content, tmp_path / "a.glb"):
        with pytest.raises(InvalidRequest, match="no 3D file that can be read"):
            inspect(file)
    for file in (tmp_path, tmp_path / "none.glb"):
        with pytest.raises(InvalidRequest):
            inspect(file)


ENGINES_DECIDE = {name for spec in ENGINES for name in spec.defaults}
"""Fields whose default is an engine's own: None asks for it."""


def test_every_field_of_a_request_is_a_keyword_with_the_same_default() -> None:
    keywords = python_inspect.signature(generate).parameters
    fields = {name: field for name, field in ImageTo3DRequest.model_fields.items() if name not in SERVICE_FIELDS}

    assert fields.keys() <= keywords.keys()
    for name in fields.keys() - {"image"}:
        expected = None if name in ENGINES_DECIDE else fields[name].default
        assert keywords[name].default == expected, name
        assert name in str(generate.__doc__), name


def test_every_field_of_a_request_is_a_keyword_of_the_same_type() -> None:
    annotations = python_inspect.get_annotations(generate)
    for name, field in ImageTo3DRequest.model_fields.items():
        if name not in {*SERVICE_FIELDS, *TAKE_OTHER_FORMS}:
            expected = field.annotation | None if name in ENGINES_DECIDE else field.annotation  # type: ignore[operator]
            assert eval(annotations[name], vars(python_api)) == expected, name


def test_a_text_becomes_an_asset_through_the_same_stages(tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights": "tiny", "ss_sampling_steps": 3, "slat_sampling_steps": 3, **SMALL}

    result = generate_from_text("a robot", output_format="stl", **options)

    assert (result.engine, result.meta["prompt"]) == ("trellis-text", "a robot")
    assert list(result.files) == ["model.stl", "model_thumbnail.png"]
    (tmp_path / "given.stl").write_bytes(result.files["model.stl"])
    variant = generate_from_text("gold", init_mesh=tmp_path / "given.stl", file_prefix="gold", **options)
    assert next(iter(variant.files)) == "gold.glb"
    assert len(variant.mesh.faces) > 20


def test_a_text_takes_the_keywords_of_its_fields_alone() -> None:
    for name in ("image", "view_angles", "multi_image", "webhook", "steps"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            generate_from_text("a robot", **{name: 1})
    with pytest.raises(InvalidRequest, match="engine must be a name or an Engine, got int"):
        generate_from_text("a robot", engine=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="engine trellis takes no text; trellis-text would take it"):
        generate_from_text("a robot", engine="trellis")
    with pytest.raises(WeightsUnusable, match="fetch-weights --engine trellis-text"):
        generate_from_text("a robot", weights="nowhere")


def test_public_names_are_importable_documented_and_found_by_dir() -> None:
    for name in pipeline.__all__:
        value = getattr(pipeline, name)
        assert name in dir(pipeline)
        if python_inspect.isclass(value) or python_inspect.isfunction(value):
            assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'generates'"):
        _ = pipeline.generates  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["robot.GLB", "my robot.glb", "机器人.Glb"])
def test_the_model_is_called_as_it_was_asked_for_and_the_others_keep_their_names(name: str) -> None:
    files = {"robot.glb": b"model", "robot.mtl": b"material", "robot_thumbnail.png": b"image"}
    renamed = python_api.rename_model(files, name)
    assert list(renamed) == [name, "robot.mtl", "robot_thumbnail.png"]
    assert list(renamed.values()) == list(files.values())


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, pipeline; pipeline.__version__; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_generate_loads_no_numpy() -> None:
    heavy = tuple(name for name in HEAVY if name != "pydantic")
    code = f"import sys; from pipeline import generate; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
