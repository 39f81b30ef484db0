"""`modal run modal_app.py --image …` on both of its sides, without Modal; tests/e2e runs it with Modal's own client."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import CallerError, InvalidRequest, StageError, WeightsUnusable
from pipeline.jobs.transfer import Transferred
from pipeline.on_modal.control_channel import ControlChannel, SavedCall
from pipeline.on_modal.one_shot import (
    engine_channel_of,
    generate_once,
    read_body,
    run_from_terminal,
    run_remotely,
    with_field_options,
)
from pipeline.settings import Settings
from schemas.request import ImageTo3DRequest
from schemas.table import NOT_OPTIONS
from tests.fakes.images import draw_figure, encode
from tests.fakes.shared_dict import InMemoryDict

SUCCESS = {
    "state": "success",
    "warnings": ("a warning",),
    "stage_seconds": {"intake": 0.5, "generate": 2.0},
    "engine": "trellis",
    "gpu_seconds": 1.5,
    "files": {"toy.glb": b"glTF", "toy_thumbnail.png": b"png"},
}


class FinishedCall:
    """A remote call whose result is available at the second poll."""

    object_id = "call-1"

    def __init__(self, result: dict[str, Any]) -> None:
        self._result = result
        self._polls = 0

    def get(self, timeout: float | None = None) -> Any:
        self._polls += 1
        if self._polls == 1:
            raise TimeoutError
        return self._result

    def cancel(self) -> None:
        """Nothing to cancel: it has ended."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "figure.png"
    path.write_bytes(encode(draw_figure(96)))
    return path


def test_every_field_is_an_option_of_the_entrypoint() -> None:
    @with_field_options
    def main(image: str, out: str = "out.glb", **fields: str | bool) -> None:
        received.update(fields)

    received: dict[str, str | bool] = {}
    parameters = inspect.signature(main).parameters
    main("a.png", seed="3", render=True)

    assert list(parameters)[:2] == ["image", "out"]
    of_texts = {"negative_prompt", "init_mesh"}
    assert set(parameters) - {"image", "out"} == of_texts | ImageTo3DRequest.model_fields.keys() - NOT_OPTIONS
    assert (parameters["seed"].annotation, parameters["seed"].default) == (str, "")
    assert (parameters["render"].annotation, parameters["render"].default) == (bool, False)
    assert (parameters["remove_bg"].annotation, parameters["remove_bg"].default) == (bool, True)
    assert received == {"seed": "3", "render": True}


def test_files_are_sent_with_the_body_and_urls_are_not(image: Path, tmp_path: Path) -> None:
    body = read_body(
        f"{image},https://example.com/b.png", tmp_path / "a.OBJ", {"seed": "3", "engine": "", "multi_image": True}
    )

    assert body["image"][0].startswith("iVBOR") and body["image"][1] == "https://example.com/b.png"
    assert {name: body[name] for name in body if name != "image"} == {
        "seed": "3",
        "multi_image": True,
        "output_formats": ["obj"],
    }
    assert "remove_bg" not in read_body(str(image), tmp_path / "a.glb", {"remove_bg": True})
    assert read_body(str(image), tmp_path / "a.glb", {"remove_bg": False})["remove_bg"] is False
    assert read_body(str(image), tmp_path / "a.glb", {}, also="stl, 3mf")["output_formats"] == ["glb", "stl", "3mf"]


def test_a_text_is_sent_instead_of_images(tmp_path: Path) -> None:
    mesh = tmp_path / "given.glb"
    mesh.write_bytes(b"glTF")

    body = read_body(None, tmp_path / "a.glb", {"init_mesh": str(mesh), "negative_prompt": "blurry"}, text="a robot")

    assert body == {
        "prompt": "a robot",
        "negative_prompt": "blurry",
        "init_mesh": "Z2xURg==",
        "output_formats": ["glb"],
    }
    for images, text in ((None, None), ("a.png", "a robot")):
        with pytest.raises(InvalidRequest, match="give either --image or --text"):
            read_body(images, tmp_path / "a.glb", {}, text=text)
    with pytest.raises(InvalidRequest, match="prompt must have 1 to 1000 characters"):
        read_body(None, tmp_path / "a.glb", {}, text="x" * 1001)


@pytest.mark.parametrize(
    ("out", "fields", "words"),
    [
        ("a.fbx", {}, "--out must end in .glb, .obj, .stl, .ply, .usdz or .3mf, got 'a.fbx'"),
        ("none/a.glb", {}, "there is no folder"),
        ("a.glb", {"mesh_simplify": "0.5"}, "mesh_simplify must be between 0.9 and 0.98"),
    ],
)
def test_an_invalid_command_is_refused_before_anything_is_started(
    image: Path, tmp_path: Path, out: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read_body(str(image), tmp_path / out, fields)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"none\.png cannot be read: No such file"):
        read_body(str(tmp_path / "none.png"), tmp_path / "a.glb", {})


def run_twice(second: dict[str, Any], reported: list[tuple[str, int]], entries: InMemoryDict) -> dict[str, Any]:
    """The command against a remote side that starts a generation, and ends in its second run."""
    channel = ControlChannel(entries, "one")
    channel.report(("intake", 3))
    ControlChannel(entries, engine_channel_of(channel)).report(0.5)
    results = {"": {"call_id": "fc-1"}, "fc-1": second}
    return run_remotely(
        lambda announced: FinishedCall(results[announced]),
        channel,
        lambda stage, percent: reported.append((stage, percent)),
        find_call=lambda call_id: FinishedCall({"lost": call_id}),
    )


def test_the_terminal_waits_for_the_generation_between_the_two_runs_and_reports_all() -> None:
    entries, reported = InMemoryDict(), []

    result = run_twice(SUCCESS, reported, entries)

    assert result is SUCCESS and reported == [("intake", 3), ("generate", 28), ("intake", 3)]
    assert ControlChannel(entries, "one").progress(None) is None


@pytest.mark.parametrize(("code", "error"), [("unreadable_image", CallerError), ("engine_failed", StageError)])
def test_a_failed_job_is_raised_with_its_message(code: str, error: type[Exception]) -> None:
    failed = {"state": "failed", "error_code": code, "message": "the image is damaged"}

    with pytest.raises(error, match="the image is damaged"):
        run_twice(failed, [], InMemoryDict())


def run(image: Path, out: Path, result: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Run the command against a remote side that gives this result; returns what was spawned."""
    spawned: list[tuple[Any, ...]] = []

    def spawn(*arguments: Any) -> FinishedCall:
        spawned.append(arguments)
        return FinishedCall(result)

    run_from_terminal(
        str(image), out, {"seed": "3"}, spawn=spawn, find_call=lambda call_id: FinishedCall({}), entries=InMemoryDict()
    )
    return spawned


def test_the_command_writes_the_files_and_prints_the_durations(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((body, file_prefix, _, _),) = run(image, tmp_path / "toy.glb", SUCCESS)

    printed = capsys.readouterr()
    assert (body["seed"], file_prefix) == ("3", "toy")
    assert (tmp_path / "toy.glb").read_bytes() == b"glTF"
    assert printed.err == "  0 %  starting\nnote: a warning\n"
    assert printed.out.splitlines()[0] == f"  0.00 MB  {tmp_path / 'toy.glb'}"
    assert printed.out.splitlines()[-1] == "took intake 0.5 s  generate 2.0 s   (engine trellis, 1.5 GPU seconds)"


@pytest.mark.parametrize(("code", "exit_code"), [("unreadable_image", 2), ("out_of_memory", 1)])
def test_the_exit_code_tells_whether_the_user_can_fix_it(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, exit_code: int
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(image, tmp_path / "toy.glb", {"state": "failed", "error_code": code, "message": "a reason"})

    assert ended.value.code == exit_code
    assert capsys.readouterr().err.endswith("error: a reason\n")
    assert not (tmp_path / "toy.glb").exists()


class LocalPool:
    """An `EnginePool` whose engine runs in this process."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self.forgotten: list[str] = []
        self.woken = 0

    def wake(self, name: str | None) -> None:
        self.woken += 1
        self._check()

    def client(self, name: str | None, *, channel: str, announced: str) -> Any:
        from pipeline.stages.generate import LocalEngines

        engines = LocalEngines("preview")
        return lambda views, options, on_step: engines.generate(name, views, options, on_step)

    def forget(self, channel: str) -> None:
        self.forgotten.append(channel)


def test_the_remote_side_returns_the_result_and_the_files_as_plain_data(image: Path, tmp_path: Path) -> None:
    body = read_body(str(image), tmp_path / "toy.glb", {"seed": "3", "resolution": "64", "texture_size": "512"})
    pool: Any = LocalPool()

    result = generate_once(
        body,
        file_prefix="toy",
        settings=Settings(data_dir=tmp_path),
        engines=pool,
        channel=ControlChannel(InMemoryDict(), "one"),
    )

    assert result["state"] == "success" and result["engine"] == "preview"
    assert list(result["files"]) == ["toy.glb", "toy_thumbnail.png"] and result["files"]["toy.glb"][:4] == b"glTF"
    assert pool.forgotten == ["one/engine"]
    assert not (tmp_path / "work" / "one").exists()


def test_a_generation_that_is_transferred_is_started_when_the_checkpoints_are_committed(
    image: Path, tmp_path: Path
) -> None:
    body = read_body(str(image), tmp_path / "toy.glb", {"seed": "3", "resolution": "64", "texture_size": "512"})
    entries, order = InMemoryDict(), []
    channel = ControlChannel(entries, "one")
    settings = Settings(data_dir=tmp_path)
    pool: Any = LocalPool()
    local = pool.client

    def client(name: str | None, *, channel: str, announced: str) -> Any:
        def start() -> None:
            order.append("start")
            ControlChannel(entries, channel).save_call(SavedCall("fc-1", tries=1))

        def transfer(*arguments: Any) -> Any:
            raise Transferred("generation-one", start)

        return local(name, channel=channel, announced=announced) if announced else transfer

    def run(announced: str) -> dict[str, Any]:
        return generate_once(
            body,
            file_prefix="toy",
            settings=settings,
            engines=pool,
            channel=channel,
            announced=announced,
            commit=lambda: order.append("commit"),
            reload=lambda: order.append("reload"),
        )

    pool.client = client
    first, waked = run(""), pool.woken
    second = run(first["call_id"])

    assert first == {"call_id": "fc-1"} and order == ["commit", "start", "reload"]
    assert second["state"] == "success" and second["stage_seconds"]["intake"] > 0
    assert waked == pool.woken == 1  # the second run did not read the image again


def test_missing_weights_are_a_result_and_no_exception(image: Path, tmp_path: Path) -> None:
    def check() -> None:
        raise WeightsUnusable("3.00 GB of the weights of trellis are missing")

    body = read_body(str(image), tmp_path / "toy.glb", {})
    pool: Any = LocalPool(check)

    result = generate_once(
        body,
        file_prefix="toy",
        settings=Settings(data_dir=tmp_path),
        engines=pool,
        channel=ControlChannel(InMemoryDict(), "one"),
    )

    assert (result["state"], result["error_code"]) == ("failed", WeightsUnusable.code)
    assert result["message"] == "3.00 GB of the weights of trellis are missing" and result["files"] == {}
