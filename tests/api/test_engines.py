"""The list of engines: what is offered is what a submit may name, and what is ignored is what the engine says so of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.engines.base import GenerationOptions
from pipeline.engines.registry import ENGINES, find_spec, make_engine
from schemas.request import ImageTo3DRequest
from tests.api.conftest import IMAGE, Deployment


def test_a_submit_may_name_exactly_the_engines_that_are_offered(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy(engine="preview", engines=("triposr", "trellis-text"))

    body = deployment.client.get("/engines").json()

    assert body["default"] == "preview"
    assert [entry["name"] for entry in body["engines"]] == [spec.name for spec in ENGINES]
    for entry in body["engines"]:
        for kind, body in (("image", {"image": IMAGE}), ("text", {"prompt": "a robot"})):
            answer = deployment.post("/api/v6/3d/estimate", {**body, "engine": entry["name"]})
            assert (answer.status_code == 200) == (entry["offered"] and kind in entry["inputs"]), entry["name"]
        views = {"image": [IMAGE] * (entry["max_views"] + 1), "multi_image": True, "engine": entry["name"]}
        assert deployment.post("/api/v6/3d/estimate", views).status_code == 400


def test_ignored_fields_are_fields_of_a_submit() -> None:
    for spec in ENGINES:
        assert set(spec.ignores) <= ImageTo3DRequest.model_fields.keys(), spec.name


def test_the_preview_engine_names_in_its_warning_what_the_list_says_it_ignores() -> None:
    ball = np.zeros((64, 64, 4), np.uint8)
    ball[16:48, 16:48] = 255
    options = GenerationOptions(
        seed=1,
        resolution=64,
        ss_guidance_strength=1.0,
        ss_sampling_steps=1,
        slat_guidance_strength=1.0,
        slat_sampling_steps=1,
        multi_image_mode="stochastic",
        splat=True,
        detail=512,
        tex_guidance_strength=2.0,
        tex_sampling_steps=1,
    )

    warning = make_engine("preview").generate([ball], options).warnings[0]

    assert warning == f"The preview engine ignores {', '.join(find_spec('preview').ignores)}."
