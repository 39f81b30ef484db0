"""The body of a submit of a text."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import InvalidRequest
from schemas.export import parse_export
from schemas.request import ImageTo3DRequest
from schemas.text import TextTo3DRequest, is_text_body, parse_any_request, parse_text_request, request_model

EXAMPLE = {
    "key": "enterprise_api_key",
    "foreground_ratio": "0.85",
    "prompt": "a ghost wearing white bedsheet",
    "num_inference_steps": "30",
    "resolution": 512,
    "guidance_scale": "3",
    "ss_sampling_steps": 50,
    "slat_sampling_steps": 50,
    "output_format": "glb",
    "seed": 0,
    "temp": "no",
    "webhook": None,
    "track_id": None,
}
"""ModelsLab's documented example of the enterprise path; that of v6 has no `output_format`."""


def parsed(**fields: Any) -> TextTo3DRequest:
    request = parse_text_request({"prompt": "a robot", **fields}).request
    assert isinstance(request, TextTo3DRequest)
    return request


def test_the_documented_example_is_accepted_and_todays_names_come_before_older_ones() -> None:
    result = parse_text_request(EXAMPLE)

    meta = result.request.effective_parameters()
    assert (meta["prompt"], meta["resolution"], meta["output_format"]) == (EXAMPLE["prompt"], 512, "glb")
    assert (meta["ss_sampling_steps"], meta["slat_sampling_steps"], meta["num_inference_steps"]) == (50, 50, 30)
    assert (meta["ss_guidance_strength"], meta["slat_guidance_strength"], meta["guidance_scale"]) == (3.0, 3.0, 3.0)
    assert result.warnings == ("Ignored, because a text has no image: foreground_ratio.",)


def test_defaults_are_those_of_the_released_text_models() -> None:
    request = parsed()

    assert (request.ss_sampling_steps, request.slat_sampling_steps) == (25, 25)
    assert (request.ss_guidance_strength, request.slat_guidance_strength) == (7.5, 7.5)


@pytest.mark.parametrize("older", ["guidance_scale", "num_inference_steps"])
def test_an_older_name_sets_both_stages_unless_one_is_given(older: str) -> None:
    first, second = {
        "guidance_scale": ("ss_guidance_strength", "slat_guidance_strength"),
        "num_inference_steps": ("ss_sampling_steps", "slat_sampling_steps"),
    }[older]

    both, one = parsed(**{older: "4"}), parsed(**{older: 4, first: 9})

    assert (getattr(both, first), getattr(both, second)) == (4, 4)
    assert (getattr(one, first), getattr(one, second)) == (9, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": None}, "prompt is required"),
        ({"prompt": ""}, "prompt is required"),
        ({"prompt": " \n"}, "prompt is required"),
        ({"prompt": "x" * 1001}, "prompt must have 1 to 1000 characters, got 1001"),
        ({"prompt": "x" * 10_000}, "prompt must have 1 to 1000 characters, got 10000"),
        ({"prompt": 5}, "prompt must be a text, got a number"),
        ({"prompt": ["a"]}, "prompt must be a text, got a list"),
        ({"prompt": "a\0b"}, "prompt must be plain text without NUL characters or lone surrogates"),
        ({"prompt": "\ud83e"}, "prompt must be plain text without NUL characters or lone surrogates"),
        ({"negative_prompt": "x" * 1001}, "negative_prompt must have at most 1000 characters, got 1001"),
        ({"guidance_scale": 20}, "guidance_scale must be between 0 and 10, got 20"),
        ({"num_inference_steps": 64}, "num_inference_steps must be between 1 and 50, got 64"),
        ({"init_mesh": 5}, "init_mesh must be an http(s) URL, a data URI or base64, got a number"),
        ({"resolution": "512x512"}, "resolution must be a whole number between 64 and 512, got '512x512'"),
    ],
    ids=str,
)
def test_a_field_that_is_out_of_bounds_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)

    assert str(caught.value) == message


@pytest.mark.parametrize("prompt", ["👨‍👩‍👧 ❤️", "木製の椅子", "two\nlines", "x" * 1000, "👾" * 1000, "<|endoftext|>"])
def test_any_text_of_up_to_a_thousand_characters_is_accepted_unchanged(prompt: str) -> None:
    assert parsed(prompt=f" {prompt}\n").prompt == prompt


def test_resolution_may_be_a_text() -> None:
    assert parsed(resolution="256").resolution == 256


def test_fields_about_images_are_named_as_ignored() -> None:
    warnings = parse_text_request({"prompt": "a", "image": "x", "multi_image": True}).warnings

    assert warnings == ("Ignored, because a text has no image: image, multi_image.",)


def test_unknown_fields_are_told_apart_from_those_of_images_and_a_second_key_from_both() -> None:
    sent = {"prompt": "a", "api_key": "i3d_x", "remove_bg": True, "model_id": "x"}

    assert parse_text_request(sent).warnings == (
        "Ignored, because a text has no image: remove_bg.",
        "Ignored, because this service has no such field: model_id.",
    )


def test_a_request_is_read_again_from_its_json_and_its_meta() -> None:
    request = parsed(init_mesh="https://example.com/a.glb", guidance_scale=2)

    model = request_model(request.effective_parameters())

    assert model.model_validate_json(request.model_dump_json()) == request
    assert "init_mesh" not in request.effective_parameters()
    assert request.sources == ("https://example.com/a.glb",)


def test_a_body_without_a_path_is_of_a_text_where_it_has_a_prompt_and_no_image() -> None:
    assert is_text_body({"prompt": ""}) and is_text_body({"prompt": "a", "image": None})
    assert not is_text_body({"prompt": "a", "image": "x"}) and not is_text_body({"prompt": "a", "init_image": "x"})
    assert not is_text_body({}) and not is_text_body(None)
    assert isinstance(parse_any_request({"prompt": "a", "image": "x"}).request, ImageTo3DRequest)


def test_an_export_of_a_texts_job_keeps_its_text() -> None:
    parameters = parsed(output_format="glb").effective_parameters()

    request = parse_export({"output_format": "stl"}, parameters=parameters, job_id=5).request

    assert isinstance(request, TextTo3DRequest)
    assert (request.prompt, request.output_format) == ("a robot", "stl")
