"""The bound on what a request may ask of a GPU: what each engine accepts and refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.engines.base import GenerationOptions
from pipeline.engines.registry import ENGINES, check_work, find_spec
from pipeline.engines.sampling_work import MAX_SECONDS, sampling_seconds
from pipeline.errors import InvalidRequest
from schemas.request import DETAILS, MAX_VIEWS

A100_SHARE = 312 / 989.4
"""Of the H100's dense rate: the slowest GPU in the registry for engines that sample."""
MODAL_TIMEOUT_S = 15 * 60
DEFAULTS = GenerationOptions(seed=1, slat_guidance_strength=7.5)
DEAREST = replace(
    DEFAULTS,
    ss_sampling_steps=50,
    slat_sampling_steps=50,
    tex_sampling_steps=50,
    tex_guidance_strength=5.0,
    multi_image_mode="multidiffusion",
    detail=DETAILS[-1],
)


def seconds(options: GenerationOptions, *, views: int = 1, engine: str = "trellis2") -> float:
    return sampling_seconds(find_spec(engine).stages, options, views=views, mode=options.multi_image_mode)


@pytest.mark.parametrize(("detail", "stated_s"), [(512, 3), (1024, 17), (1536, 60)])
def test_a_default_request_takes_what_the_authors_state(detail: int, stated_s: float) -> None:
    assert seconds(replace(DEFAULTS, detail=detail)) == pytest.approx(stated_s, rel=0.05)


def test_what_is_accepted_ends_before_modal_stops_it() -> None:
    assert MAX_SECONDS / A100_SHARE < MODAL_TIMEOUT_S


def test_the_dearest_request_of_trellis2_is_refused_with_its_numbers_and_a_remedy() -> None:
    assert seconds(DEAREST, views=MAX_VIEWS) / A100_SHARE > MODAL_TIMEOUT_S
    with pytest.raises(InvalidRequest) as refused:
        check_work(find_spec("trellis2"), DEAREST, views=MAX_VIEWS, mode="stochastic")
    assert str(refused.value) == (
        "ss_sampling_steps 50, slat_sampling_steps 50, tex_sampling_steps 50, detail 1536, 8 views in mode "
        "multidiffusion would take about 1595 s of an H100; at most 270 s: ask for fewer steps or less detail, "
        "send fewer views, or use multi_image_mode stochastic"
    )


def test_the_mode_of_the_deployment_counts_where_the_request_has_none() -> None:
    spec, asked = find_spec("trellis2"), replace(DEFAULTS, detail=DETAILS[-1])
    check_work(spec, asked, views=MAX_VIEWS, mode="stochastic")
    with pytest.raises(InvalidRequest, match="8 views in mode multidiffusion would take"):
        check_work(spec, asked, views=MAX_VIEWS, mode="multidiffusion")
    check_work(spec, replace(asked, multi_image_mode="stochastic"), views=MAX_VIEWS, mode="multidiffusion")


@pytest.mark.parametrize("name", [spec.name for spec in ENGINES if spec.name != "trellis2"])
def test_every_request_of_the_other_engines_is_short_enough(name: str) -> None:
    spec = find_spec(name)
    views = max(spec.max_views, 1)
    check_work(spec, DEAREST, views=views, mode="multidiffusion")
    assert bool(spec.stages) == (spec.name in ("trellis", "trellis-text"))


@pytest.mark.parametrize("field", ["ss_sampling_steps", "slat_sampling_steps", "tex_sampling_steps"])
def test_more_steps_never_take_less(field: str) -> None:
    few, many = (seconds(replace(DEFAULTS, **{field: steps})) for steps in (12, 50))
    assert few < many
