"""`image-to-3d generate` and `inspect` as a user sees them: results, refusals, interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from pipeline.imaging.rembg_remover import REMOVER_FILE
from pipeline.version import __version__
from schemas.request import ImageTo3DRequest
from schemas.table import SERVICE_FIELDS
from tests.fakes.brightness_model import write_brightness_model
from tests.fakes.images import bare_png, draw_figure, encode
from tests.interrupts import heed_interrupts

ROOT = Path(__file__).resolve().parents[2]
FAST = ("--resolution", "64", "--texture-size", "512")
REFUSED = 2


def run(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, env=variables, timeout=120)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "figure.png"
    path.write_bytes(encode(draw_figure(128)))
    return path


def test_an_image_becomes_a_file_that_inspect_reads(image: Path, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "out" / "toy.glb", "--also", "3mf,stl", *FAST, "--seed", "5", "--json")
    made = run("generate", image, *words)
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["meta"]["seed"] == 5 and said["meta"]["engine"] == "preview"
    names = ["toy.glb", "toy.3mf", "toy.stl", "toy_thumbnail.png"]
    assert [Path(path).name for path in said["output"]] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert made.stderr == ""  # quiet in a pipe
    found = json.loads(run("inspect", tmp_path / "out" / "toy.glb", "--json").stdout)
    assert found["watertight"] and found["texture"] == "512 × 512" and found["faces"] > 100
    assert "watertight" in run("inspect", tmp_path / "out" / "toy.glb").stdout
    printed = json.loads(run("inspect", "--print", "--min-wall-mm", "5", tmp_path / "out" / "toy.stl", "--json").stdout)
    assert (printed["shells"], max(printed["size_mm"])) == (1, pytest.approx(100, abs=0.01))
    assert (
        printed["thin_wall_share"] > 0.05
        and "base mm2" in run("inspect", "--print", tmp_path / "out" / "toy.stl").stdout
    )


def test_a_fetched_background_remover_is_used(tmp_path: Path) -> None:
    pytest.importorskip("rembg")
    frame = np.full((96, 96, 3), 255, np.uint8)
    frame[32:64, 32:64] = 0  # without a model, the dark middle counts as the subject
    (tmp_path / "frame.png").write_bytes(encode(frame))
    write_brightness_model(tmp_path / "weights" / REMOVER_FILE)

    for folder, tunnels in (("weights", 1), ("nothing", 0)):
        out = tmp_path / f"{folder}.stl"
        made = run("generate", tmp_path / "frame.png", "-o", out, *FAST, "--weights", tmp_path / folder)
        assert made.returncode == 0, made.stderr
        assert trimesh.load_mesh(out).euler_number == 2 - 2 * tunnels


def test_an_obj_beside_its_image_does_not_overwrite_the_image(image: Path) -> None:
    before = image.read_bytes()
    made = run("generate", image, "-o", image.with_suffix(".obj"), *FAST)
    assert made.returncode == 0, made.stderr
    assert image.read_bytes() == before


def test_a_text_becomes_a_file_and_the_same_bytes_again(tmp_path: Path) -> None:
    words = ["--text", "a robot 🤖", "--weights", "tiny", "--seed", "5", "--texture-size", "512", "--json"]
    short = ["--ss-sampling-steps", "3", "--slat-sampling-steps", "3", "--resolution", "64"]

    outs = [tmp_path / name / "robot.glb" for name in ("first", "again", "other")]  # the file holds its own name
    for out, more in zip(outs, ([], [], ["--negative-prompt", "blurry"]), strict=True):
        made = run("generate", "-o", out, *words, *short, *more)
        assert made.returncode == 0, made.stderr
        answer = json.loads(made.stdout)
        assert (answer["meta"]["engine"], answer["meta"]["prompt"]) == ("trellis-text", "a robot 🤖")

    one, again, other = (out.read_bytes() for out in outs)
    assert one == again != other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name either an image or, by --text, a text"),
        (["a.png", "--text", "a robot"], "name either an image or, by --text, a text"),
        (["--text", ""], "prompt is required"),
        (["--text", "a robot", "--view-angles", "0"], "--view-angles does not apply to a text"),
        (["--text", "a robot", "--no-remove-bg"], "--remove-bg does not apply to a text"),
        (["a.png", "--negative-prompt", "blurry"], "--negative-prompt does not apply to an image"),
        (["--text", "a robot", "--engine", "preview"], "engine preview takes no text; trellis-text would take it"),
        (["--text", "a robot", "--init-mesh", "none.glb", "--weights", "tiny"], "none.glb does not exist"),
    ],
    ids=str,
)
def test_words_that_do_not_fit_together_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    made = run("generate", "-o", tmp_path / "a.glb", *words)

    assert (made.returncode, made.stderr) == (2, f"error: {message}\n")


def help_of_generate(**environment: str) -> str:
    return run("generate", "--help", COLUMNS="200", NO_COLOR="1", **environment).stdout


def test_every_field_of_the_contract_is_an_option() -> None:
    options = set(re.findall(r"--([a-z-]+)", help_of_generate()))
    fields = {name.replace("_", "-") for name in ImageTo3DRequest.model_fields}
    assert fields - options == {
        "image",
        "output-format",
        "output-formats",
        *(name.replace("_", "-") for name in SERVICE_FIELDS),
    }


def test_help_shows_bounds_and_defaults() -> None:
    shown = help_of_generate()
    assert "Side of the texture in pixels (512–4096; default: 1024)" in shown
    assert "see `image-to-3d engines` (default: preview; trellis-text for a text)" in shown
    assert "Folder of the engines' weights (default: weights)" in shown


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.strip() == f"image-to-3d {__version__}"


def test_generating_imports_no_torch(image: Path, tmp_path: Path) -> None:
    words = ["generate", str(image), "-o", str(tmp_path / "a.glb"), *FAST]
    code = (
        "import sys; from pipeline.cli import app; "
        f"app({words!r}, standalone_mode=False); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pipeline.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('numpy', 'numba', 'fastapi', 'sqlalchemy', 'boto3', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments after `generate`, and a part of the sentence that refuses them, by case."""
    figure = draw_figure(64)
    png, jpeg = encode(figure), encode(Image.fromarray(figure).convert("RGB"), "JPEG")
    sheet = np.zeros((40, 360, 4), np.uint8)
    for k in range(9):
        sheet[5:35, 40 * k + 5 : 40 * k + 35] = 255
    contents = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"only text", "not a readable image"),
        "cut.png": (png[: len(png) // 2], "damaged or truncated"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged or truncated"),
        "huge.png": (bare_png(60000, 60000), "megapixels"),
        "bomb.png": (bare_png(9000, 9000), "megapixels"),
        "clear.png": (encode(np.zeros((64, 64, 4), np.uint8)), "every pixel is transparent"),
        "dot.png": (encode(np.full((1, 1, 3), 200, np.uint8)), "1 × 1 pixels"),
        "wall.png": (encode(np.full((64, 64, 3), 200, np.uint8)), "no subject that stands out"),
    }
    cases = {}
    for name, (content, words) in contents.items():
        (folder / name).write_bytes(content)
        cases[name] = ([str(folder / name)], words)
    (folder / "nine.png").write_bytes(encode(sheet))
    (folder / "good.png").write_bytes(png)
    good = str(folder / "good.png")
    return cases | {
        "sheet of nine": ([str(folder / "nine.png"), "--multi-image"], "has 9 views"),
        "list": ([good, good], "unless multi_image is true"),
        "folder": ([str(folder)], "is a folder"),
        "missing": ([str(folder / "none.png")], "does not exist"),
        "field": ([good, "--mesh-simplify", "0.5"], "mesh_simplify must be between 0.9 and 0.98, got '0.5'"),
        "engine": ([good, "--engine", "magic"], "engine must be one of"),
        "127.1": (["http://127.1:9/a.png"], "not public"),
        "mapped": (["http://[::ffff:10.0.0.1]/a.png"], "not public"),
        "metadata": (["http://169.254.169.254/a.png", "--allow-private-addresses"], "not public"),
        "name": (["http://localhost:9/a.png"], "not public"),
    }


def test_bad_input_gives_one_sentence_exit_code_2_and_no_files(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, scratch = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("scratch")
    code = (
        "import json, sys, tempfile\nfrom pipeline.cli import app\n"
        "for words in json.load(sys.stdin):\n"
        "    try:\n        app(['generate', *words])\n"
        "    except SystemExit as end:\n        print(end.code, flush=True); print('--', file=sys.stderr, flush=True)\n"
    )
    cases = bad_inputs(inputs)
    calls = [[*words, "-o", str(tmp_path / "out" / "a.glb"), *FAST] for words, _ in cases.values()]
    variables = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(calls), capture_output=True, text=True, cwd=ROOT, env=variables
    )
    messages = done.stderr.split("--\n")
    for (name, (_, words)), code_seen, message in zip(cases.items(), done.stdout.split(), messages, strict=False):
        assert code_seen == str(REFUSED), (name, message)
        assert message.startswith("error: ") and message.count("\n") == 1 and words in message, (name, message)
    assert len(done.stdout.split()) == len(cases)
    assert list(tmp_path.iterdir()) == [] and list(scratch.iterdir()) == []


@pytest.mark.parametrize("output", ["a.fbx", "a", ".glb"])
def test_an_output_with_an_unknown_extension_is_refused(image: Path, tmp_path: Path, output: str) -> None:
    done = run("generate", image, "-o", tmp_path / "out" / output)
    assert done.returncode == REFUSED and "the output must end in .glb, .obj, .stl, .ply, .usdz or .3mf" in done.stderr


def test_an_output_that_cannot_be_written_is_refused_before_any_work(image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "a.glb", Path("/proc/none/a.glb")):
        done = run("generate", image, "-o", output, *FAST)
        assert done.returncode == REFUSED and done.stderr.count("\n") == 1, done.stderr
        assert "cannot write to" in done.stderr


def test_a_redirect_to_a_private_address_is_refused(tmp_path: Path) -> None:
    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("location", "http://169.254.169.254/latest")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        done = run("generate", url, "-o", tmp_path / "a.glb", "--allow-private-addresses")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert done.returncode == REFUSED and "169.254.169.254 leads to an address that is not public" in done.stderr


@pytest.mark.parametrize("after_s", [0.6, 1.0, 1.4, 2.2, 3.0])
def test_ctrl_c_at_any_moment_leaves_no_files(image: Path, tmp_path: Path, after_s: float) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pipeline.cli", "generate", str(image), "-o", str(tmp_path / "out" / "a.glb")]
    command += ["--render", "--resolution", "512"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the command finished before the signal")
    assert process.returncode in (REFUSED, -signal.SIGINT, 130), errors
    assert list(scratch.iterdir()) == [] and not (tmp_path / "out").exists()
    if process.returncode == REFUSED:
        assert errors.decode().strip() == "error: interrupted; nothing was written"


def test_inspecting_something_else_than_a_3d_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.glb").write_bytes(b"nothing")
    for path in (tmp_path / "a.glb", tmp_path / "missing.glb", tmp_path):
        done = run("inspect", path)
        assert done.returncode == REFUSED and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_file_that_exists_is_replaced_only_with_force(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "figure.obj"
    for taken in ("figure.obj", "figure.mtl", "figure_texture.png", "figure_thumbnail.png"):
        (tmp_path / taken).write_text("mine")
        done = run("generate", image, "-o", out)
        assert done.returncode == REFUSED and f"{taken} exists already; --force replaces it" in done.stderr
        assert (tmp_path / taken).read_text() == "mine"
        (tmp_path / taken).unlink()
    out.write_text("mine")
    assert run("generate", image, "-o", out, *FAST, "--force").returncode == 0
    assert out.read_text().startswith("# image-to-3d figure")


def test_the_output_is_written_as_it_was_typed(image: Path, tmp_path: Path) -> None:
    assert run("generate", image, "-o", tmp_path / "My Robot.OBJ", *FAST).returncode == 0
    names = {path.name for path in tmp_path.iterdir()} - {image.name}
    assert names == {"My Robot.OBJ", "My_Robot.mtl", "My_Robot_texture.png", "My Robot_thumbnail.png"}
