"""The submit's body: what is accepted in which forms, and the text of each refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import InvalidRequest
from schemas.request import ImageTo3DRequest, ParsedRequest, parse_request
from schemas.table import field_rows

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=80)
    | st.sampled_from(["yes", "NO", "30", "1e400", "-0", "glb", "http://[", "http://a:b@c/?t", "\0", "\ud800", " "]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [*ImageTo3DRequest.model_fields, "init_image", "model_id"]


def refusal_of(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        parse_request({"image": "https://example.com/a.png", **fields})
    return str(refused.value)


def parsed(**fields: Any) -> ImageTo3DRequest:
    return parse_request({"image": "https://example.com/a.png", **fields}).request


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON_VALUES, max_size=8) | JSON_VALUES)
def test_any_json_is_a_request_or_one_sentence(body: object) -> None:
    try:
        result = parse_request(body)
    except InvalidRequest as refused:
        message = str(refused)
        assert message.strip() and "\n" not in message and len(message) < 400
    else:
        assert isinstance(result, ParsedRequest)
        again = ImageTo3DRequest.model_validate_json(result.request.model_dump_json())
        assert again == result.request.model_copy(update={"key": None})


@given(JSON_VALUES)
def test_no_value_of_the_key_shows_in_a_message_or_dump(value: object) -> None:
    secret = "s3cr3t-" + json.dumps(value)[:20]
    request = parsed(key=secret)
    assert secret not in repr(request) + str(request) + request.model_dump_json()


def test_the_documented_example_is_accepted_unchanged() -> None:
    body = {
        "key": "enterprise_api_key",
        "image": "https://example.com/subject.jpg",
        "ss_sampling_steps": 50,
        "slat_sampling_steps": 50,
        "output_format": "glb",
        "webhook": None,
        "track_id": None,
        "temp": "no",
    }
    result = parse_request(body)
    assert result.warnings == ()
    assert (result.request.ss_sampling_steps, result.request.temp, result.request.output_format) == (50, False, "glb")


def test_defaults_are_the_documented_ones() -> None:
    assert parsed().effective_parameters() == {
        "render": False,
        "output_format": "glb",
        "output_formats": ["glb"],
        "resolution": 256,
        "multi_image": False,
        "ss_guidance_strength": 7.5,
        "ss_sampling_steps": 12,
        "slat_guidance_strength": 3.0,
        "slat_sampling_steps": 12,
        "detail": 1024,
        "tex_guidance_strength": 1.0,
        "tex_sampling_steps": 12,
        "mesh_simplify": 0.9,
        "chunk_size": 8192,
        "seed": 0,
        "temp": False,
        "texture_size": 1024,
        "engine": None,
        "no_texture": False,
        "normal_map": False,
        "multi_image_mode": None,
        "view_angles": None,
        "splat": False,
        "retention_s": None,
        "target_faces": None,
        "lods": None,
        "depth": None,
        "remove_bg": True,
        "foreground_ratio": None,
        "size": None,
        "origin": "bottom",
        "up_axis": None,
        "texture_format": "png",
        "compression": "none",
        "print_ready": False,
        "min_wall_mm": 0.8,
    }


def test_the_path_decides_the_format_that_a_body_leaves_out() -> None:
    assert parse_request({"image": "x"}, default_output_format="obj").request.output_format == "obj"
    assert parse_request({"image": "x", "output_format": "STL"}, default_output_format="obj").request.output_format == (
        "stl"
    )


@pytest.mark.parametrize(
    ("field", "given_as", "means"),
    [
        ("resolution", "128", 128),
        ("resolution", 128.0, 128),
        ("ss_guidance_strength", " 7.25 ", 7.25),
        ("mesh_simplify", "0.95", 0.95),
        ("render", "yes", True),
        ("render", "False", False),
        ("temp", 1, True),
        ("output_format", "GLB", "glb"),
        ("seed", "4294967295", 4294967295),
        ("seed", None, 0),
        ("track_id", 12, 12),
        ("track_id", "12", "12"),
        ("engine", "TripoSR", "triposr"),
        ("view_angles", [90], (90.0,)),
        ("view_angles", "-90", (270.0,)),
        ("view_angles", 360, (0.0,)),
        ("view_angles", " Back ", (180.0,)),
        ("view_angles", '["top"]', ("top",)),
        ("view_angles", " ", None),
    ],
)
def test_values_are_read_leniently(field: str, given_as: object, means: object) -> None:
    value = getattr(parsed(**{field: given_as}), field)
    assert value == means and type(value) is type(means)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mesh_simplify": 0.5}, "mesh_simplify must be between 0.9 and 0.98, got 0.5"),
        ({"resolution": 63}, "resolution must be between 64 and 512, got 63"),
        ({"resolution": 100.5}, "resolution must be a whole number between 64 and 512, got 100.5"),
        ({"chunk_size": 0}, "chunk_size must be between 1 and 12000, got 0"),
        ({"ss_sampling_steps": "many"}, "ss_sampling_steps must be a whole number between 1 and 50, got 'many'"),
        ({"seed": -1}, "seed must be between 0 and 4294967295, got -1"),
        ({"render": "maybe"}, "render must be yes, no, true or false, got 'maybe'"),
        ({"output_format": "fbx"}, "output_format must be one of glb, obj, stl, ply, usdz, 3mf, got 'fbx'"),
        ({"webhook": "ftp://a"}, "webhook must be an http or https URL, got 'ftp://a'"),
        ({"track_id": "x" * 256}, "track_id must be at most 255 characters, got 256"),
        ({"texture_size": 511}, "texture_size must be between 512 and 4096, got 511"),
        ({"image": []}, "image must be an image or a list of images, got an empty list"),
        ({"image": ["a", "b"]}, "image must be one image unless multi_image is true, got a list of 2"),
        ({"image": ["a"] * 9, "multi_image": True}, "image must be at most 8 images, got 9"),
        (
            {"view_angles": ["front", "side"], "image": ["a", "b"], "multi_image": True},
            "view_angles must be numbers of degrees between -360 and 360, or front, right, back, left, top, bottom, "
            "got 'side'",
        ),
        (
            {"view_angles": "[1"},
            "view_angles must be numbers of degrees between -360 and 360, or front, right, back, left, top, bottom, "
            "got '[1'",
        ),
        ({"view_angles": []}, "view_angles must be one angle for each view, at most 8, got 0"),
        ({"view_angles": "0,90"}, "view_angles must be one angle for each view, got 2 for 1"),
        (
            {"view_angles": [0, 90, 180], "image": ["a", "b"], "multi_image": "yes"},
            "view_angles must be one angle for each view, got 3 for 2",
        ),
        ({"image": 7}, "image must be an http(s) URL, a data URI or base64, got a number"),
    ],
)
def test_a_refusal_names_field_value_and_bounds(fields: dict[str, Any], sentence: str) -> None:
    assert refusal_of(**fields) == sentence


@pytest.mark.parametrize("value", [["front", 90.0, "180", "TOP"], "front, right,180,top", '[0, "90", "back", "top"]'])
def test_the_angles_of_views_are_read_from_a_list_or_from_text(value: object) -> None:
    request = parsed(view_angles=value, image=["a", "b", "c", "d"], multi_image=True)
    assert request.view_angles == (0.0, 90.0, 180.0, "top")
    assert request.effective_parameters()["view_angles"] == [0.0, 90.0, 180.0, "top"]


@pytest.mark.parametrize("value", [361, float("nan"), "1e400", True, [None], [[0]], {"a": 1}, "[" * 10_000, "0," * 600])
def test_other_values_are_no_angles(value: object) -> None:
    assert refusal_of(view_angles=value).startswith("view_angles must be ")


def test_the_angles_of_a_sheet_are_counted_when_it_is_split() -> None:
    request = parsed(view_angles="0,90", multi_image=True)
    request.check_view_angles(2)
    with pytest.raises(InvalidRequest, match="one angle for each view, got 2 for 3"):
        request.check_view_angles(3)


def test_a_missing_image_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^image is required$"):
        parse_request({"image": None})


def test_legacy_and_unknown_fields_are_read_or_mentioned() -> None:
    result = parse_request({"init_image": "a", "num_steps": 20, "model_id": "x"})
    assert result.request.image == ("a",)
    assert result.warnings == ("Ignored, because this service has no such field: model_id, num_steps.",)


def test_a_list_of_one_needs_no_multi_image() -> None:
    assert parsed(image=["a"]).image == ("a",)


def test_a_refused_url_keeps_its_secrets() -> None:
    assert "hunter2" not in refusal_of(webhook="ftp://user:hunter2@example.com/?token=hunter2")


def test_the_table_of_fields_has_a_row_for_each_with_its_bounds() -> None:
    rows = {row.name: row for row in field_rows()}
    assert list(rows) == list(ImageTo3DRequest.model_fields)
    assert (rows["mesh_simplify"].default, rows["mesh_simplify"].bounds) == ("0.9", "0.9–0.98")
    assert rows["image"].default == "required" and rows["output_format"].bounds == "glb, obj, stl, ply, usdz, 3mf"
    assert all(row.effect for row in rows.values())


@pytest.mark.parametrize(("given", "used"), [(1, 1024), (1023, 1024), (1024, 1024), (8192, 8192), (12000, 12000)])
def test_a_small_chunk_size_acts_as_the_least_one_and_is_echoed_as_sent(given: int, used: int) -> None:
    request = parse_request({"image": "aGVsbG8=", "chunk_size": given}).request

    assert request.points_at_once == used
    assert request.effective_parameters()["chunk_size"] == given
