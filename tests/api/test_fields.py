"""Every documented field on its own, through the HTTP API: at its bounds, just outside, as text, as null."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.jobs.model import JobFilter
from schemas.formats import OUTPUT_FORMATS
from schemas.request import MAX_VIEWS, ImageTo3DRequest
from tests.api.conftest import IMAGE, SUBMIT, Deployment

NUMBERS: dict[str, tuple[float, float, float, float]] = {
    # the lowest and the highest accepted value, and the nearest refused ones
    "resolution": (64, 512, 63, 513),
    "ss_guidance_strength": (0, 10, -0.001, 10.001),
    "ss_sampling_steps": (1, 50, 0, 51),
    "slat_guidance_strength": (0, 10, -0.001, 10.001),
    "slat_sampling_steps": (1, 50, 0, 51),
    "tex_guidance_strength": (0, 10, -0.1, 10.1),
    "tex_sampling_steps": (1, 50, 0, 51),
    "mesh_simplify": (0.9, 0.98, 0.8999, 0.9801),
    "chunk_size": (1, 12000, 0, 12001),
    "seed": (0, 2**32 - 1, -1, 2**32),
    "texture_size": (512, 4096, 511, 4097),
    "depth": (0, 1, -0.001, 1.001),
    "foreground_ratio": (0.5, 1, 0.499, 1.001),
    "size": (0.001, 1000, 0.0009, 1000.1),
    "min_wall_mm": (0.1, 10, 0.099, 10.001),
    "target_faces": (100, 2_000_000, 99, 2_000_001),
    "retention_s": (60, 7 * 86400, 59, 7 * 86400 + 1),
}
BOOLEANS = ("render", "multi_image", "temp", "no_texture", "normal_map", "splat", "remove_bg", "print_ready")
PUBLIC = "http://93.184.215.14"  # an address, so that no test resolves a name


def refusal(deployment: Deployment, **fields: Any) -> str:
    answer = deployment.post(SUBMIT, {"image": IMAGE, **fields}, prefer="wait=0")
    assert answer.status_code == 400, answer.text
    body = answer.json()
    assert body.keys() == {"status", "message", "error_code"} and body["status"] == "error"
    return body["message"]


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_is_accepted_at_its_bounds_and_refused_just_outside(deployment: Deployment, field: str) -> None:
    low, high, below, above = NUMBERS[field]

    for value in (low, high, str(low), str(high)):
        assert deployment.submit(**{field: value})["meta"][field] == float(value)
    for value in (below, above, str(below), str(above)):
        assert refusal(deployment, **{field: value}).startswith(f"{field} must be between ")
    for value in ("many", [low], {"a": low}, True):
        assert refusal(deployment, **{field: value}).startswith(f"{field} must be a ")


@pytest.mark.parametrize("field", BOOLEANS)
def test_a_boolean_is_accepted_in_every_form_of_yes_and_no(deployment: Deployment, field: str) -> None:
    for forms, meaning in (((True, "yes", "TRUE", 1), True), ((False, "no", "False", 0), False)):
        for form in forms:
            assert deployment.submit(**{field: form})["meta"][field] is meaning
    assert refusal(deployment, **{field: "maybe"}) == f"{field} must be yes, no, true or false, got 'maybe'"


@pytest.mark.parametrize("form", [*OUTPUT_FORMATS, "GLB"])
def test_every_format_is_accepted(deployment: Deployment, form: str) -> None:
    assert deployment.submit(output_format=form)["meta"]["output_format"] == form.lower()


def test_several_formats_are_accepted_in_every_form_of_a_list_and_predict_their_links(deployment: Deployment) -> None:
    for form in (["GLB", "obj"], "glb, obj", '["glb", "obj"]'):
        submitted = deployment.submit(output_format="stl", output_formats=form, render=True)
        meta, links = submitted["meta"], submitted["future_links"]
        assert (meta["output_format"], meta["output_formats"]) == ("glb", ["glb", "obj"])
        names = [urlsplit(link).path.rpartition("/")[2] for link in links]
        assert [name[36:] for name in names] == [".glb", ".obj", ".mtl", "_texture.png", ".mp4"]
    for asked, ending in (("png", "png"), ("jpeg", "jpg"), ("webp", "jpg")):  # an OBJ names no WebP
        *_, link = deployment.submit(output_format="obj", texture_format=asked)["future_links"]
        assert urlsplit(link).path.endswith(f"_texture.{ending}")
    assert deployment.submit(output_formats=[])["meta"]["output_formats"] == ["obj"]
    assert refusal(deployment, output_formats="glb,fbx").startswith("output_formats must be one of glb, obj")
    assert refusal(deployment, output_formats="glb,GLB") == "output_formats must be distinct values, got glb twice"
    assert refusal(deployment, output_formats=["glb"] * 99).endswith("values, got 99")
    assert refusal(deployment, output_formats="[").startswith("output_formats must be a list of at most")


def test_levels_of_detail_are_counts_of_faces_and_predict_their_links(deployment: Deployment) -> None:
    for form in ([5000, 100], "5000,100", "[5000, 1e2]", ["5000", 100.0]):
        submitted = deployment.submit(output_format="obj", lods=form, no_texture=True)
        assert submitted["meta"]["lods"] == [5000, 100]
        names = [urlsplit(link).path.rpartition("/")[2][36:] for link in submitted["future_links"]]
        assert names == [".obj", ".mtl", "_lod1.obj", "_lod1.mtl", "_lod2.obj", "_lod2.mtl"]
    assert deployment.submit(lods=[])["meta"]["lods"] is None
    assert refusal(deployment, lods=[99]) == "lods must be between 100 and 2000000, got 99"
    assert refusal(deployment, lods="500,many") == "lods must be a whole number between 100 and 2000000, got 'many'"
    assert refusal(deployment, lods=[500, 500]) == "lods must be distinct values, got 500 twice"
    assert refusal(deployment, lods=[101, 102, 103, 104, 105]) == "lods must be a list of at most 4 values, got 5"


def test_a_format_that_the_deployment_cannot_write_is_refused(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(output_formats="glb,obj")
    sentence = "this deployment cannot write usdz; it offers glb, obj"
    assert refusal(deployment, output_format="usdz") == refusal(deployment, output_formats="glb,usdz") == sentence


@pytest.mark.parametrize("field", sorted(ImageTo3DRequest.model_fields.keys() - {"key", "image"}))
def test_null_is_the_same_as_not_given(deployment: Deployment, field: str) -> None:
    with_null, without = deployment.submit(**{field: None}), deployment.submit()
    assert with_null["meta"] == without["meta"] and with_null["track_id"] is None


def test_every_field_is_tested_here() -> None:
    others = {
        "key",
        "image",
        "output_format",
        "output_formats",
        "lods",
        "webhook",
        "track_id",
        "engine",
        "multi_image_mode",
        "view_angles",
        "origin",
        "up_axis",
        "texture_format",
        "compression",
        "detail",
    }
    assert {*NUMBERS, *BOOLEANS} | others == ImageTo3DRequest.model_fields.keys()


def test_a_detail_is_one_of_the_grids_that_trellis2_has(deployment: Deployment) -> None:
    for form in (512, "1024", 1536.0):
        assert deployment.submit(detail=form)["meta"]["detail"] == int(float(form))
    for wrong in (511, 1025, "2048", True):
        assert refusal(deployment, detail=wrong).startswith("detail must be 512, 1024 or 1536, got ")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("origin", ("bottom", "center")),
        ("up_axis", ("y", "z")),
        ("texture_format", ("png", "jpeg", "webp")),
        ("compression", ("none", "quantize", "meshopt", "draco")),
    ],
)
def test_a_word_is_accepted_in_any_case_and_another_is_refused(
    deployment: Deployment, field: str, words: tuple[str, ...]
) -> None:
    for word in words:
        assert deployment.submit(**{field: word.upper()})["meta"][field] == word
    assert refusal(deployment, **{field: "up"}) == f"{field} must be one of {', '.join(words)}, got 'up'"


def test_a_track_id_is_returned_unchanged(deployment: Deployment) -> None:
    for mark in ("x" * 255, "ü 12", 12, -3):
        assert deployment.submit(track_id=mark)["track_id"] == mark
    for mark in ("x" * 256, 10**255, 1.5, True, ["a"], "a\0b", "\ud800"):
        assert refusal(deployment, track_id=mark).startswith("track_id must be ")


def test_a_webhook_must_be_a_public_url(deployment: Deployment) -> None:
    for address in (f"{PUBLIC}/hook?token=1", f"{PUBLIC.replace('http', 'https')}:8443/"):
        assert deployment.submit(webhook=address)["status"] == "processing"
    for address in ("ftp://a/", "hook", "http://", 5, "http://a b/"):
        assert refusal(deployment, webhook=address).startswith("webhook must be an http or https URL")
    for address in ("http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/", "http://0x7f.1/"):
        assert refusal(deployment, webhook=address).endswith("leads to an address that is not public")


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        IMAGE.partition(",")[2],
        IMAGE.partition(",")[2].rstrip("="),
        f"{PUBLIC}/a.png",
        [IMAGE],
        "data:image/webp," + "RIFF0000WEBPVP8 ",
    ],
)
def test_an_image_is_accepted_in_every_form_and_under_its_old_name(deployment: Deployment, image: object) -> None:
    assert deployment.submit(image=image)["status"] == "processing"
    old = deployment.post(SUBMIT, {"init_image": image}, prefer="wait=0")
    assert old.json()["status"] == "processing" and old.json()["warning"] == ""


def test_views_are_a_list_of_at_most_eight(deployment: Deployment) -> None:
    assert deployment.submit(image=[IMAGE] * MAX_VIEWS, multi_image=True)["status"] == "processing"
    assert refusal(deployment, image=[IMAGE] * 9, multi_image=True) == "image must be at most 8 images, got 9"
    assert refusal(deployment, image=[IMAGE] * 2).startswith("image must be one image unless multi_image is true")


def test_the_angles_of_views_are_in_meta_and_counted_at_submit(deployment: Deployment) -> None:
    two = {"image": [IMAGE] * 2, "multi_image": True}
    for form in (["front", 90], "front,right", "0, 90", '["0", "right"]'):
        assert deployment.submit(view_angles=form, **two)["meta"]["view_angles"] == [0, 90]
    assert deployment.submit(view_angles="", **two)["meta"]["view_angles"] is None
    assert refusal(deployment, view_angles="front", **two) == (
        "view_angles must be one angle for each view, got 1 for 2"
    )


def as_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("hello, world", "image is neither an http(s) URL, nor a data URI, nor base64"),
        ("C:\\pictures\\me.png", "image is neither an http(s) URL, nor a data URI, nor base64"),
        ("/etc/passwd", "the file is not a readable image; PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or HEIC is accepted"),
        ("file:///etc/passwd", "image is neither an http(s) URL, nor a data URI, nor base64"),
        ("data:image/png;base64", "image is a data URI without a comma; data:image/png;base64,… is accepted"),
        ("data:,", "the image is empty; PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or HEIC is accepted"),
        (
            as_base64(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            "the file is an SVG drawing; PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or HEIC is accepted",
        ),
        (as_base64(b"\x89PNG\r\n\x1a\n" + bytes(20 * 2**20)), "the image is larger than 20 MiB"),
        ("\ud800", "image must be plain text without NUL characters or lone surrogates"),
    ],
)
def test_an_image_that_no_worker_could_read_is_a_400_at_once(deployment: Deployment, image: str, sentence: str) -> None:
    assert refusal(deployment, image=image) == sentence
    assert deployment.service.store.list_jobs(JobFilter(None)) == []
