"""The table of engines, and the checks before an engine is constructed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.registry import (
    ENGINES,
    TINY_WEIGHTS,
    EngineSpec,
    check_input,
    check_views,
    choose_engine,
    find_spec,
    make_engine,
    require_weights,
)
from pipeline.engines.triposr.weights import FILE_NAME, WEIGHTS_FOLDER
from pipeline.errors import InvalidRequest, WeightsUnusable


@pytest.mark.parametrize(("engine", "weights"), [("preview", "nowhere"), ("trellis", TINY_WEIGHTS)])
def test_engines_without_weight_files_require_none(engine: str, weights: str) -> None:
    require_weights(find_spec(engine), weights, remedy="")


@pytest.mark.parametrize("engine", ["trellis", "triposr"])
def test_a_refusal_counts_the_missing_weights_and_names_the_remedy(engine: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match=rf"^\d\.\d\d GB of the weights of {engine} are missing; .*: fetch them$"):
        require_weights(find_spec(engine), str(tmp_path), remedy="fetch them")


def test_a_folder_with_missing_weights_is_refreshed_and_checked_again(tmp_path: Path) -> None:
    refreshes = []

    def refresh() -> None:
        refreshes.append(1)
        (tmp_path / WEIGHTS_FOLDER).mkdir()
        (tmp_path / WEIGHTS_FOLDER / FILE_NAME).touch()

    for _ in range(2):
        require_weights(find_spec("triposr"), str(tmp_path), remedy="", refresh=refresh)

    assert len(refreshes) == 1


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    known = [spec.name for spec in ENGINES]

    with pytest.raises(InvalidRequest) as refused:
        make_engine("magic")

    assert str(refused.value) == f"engine must be one of {', '.join(known)}, got 'magic'"
    assert {"preview", "trellis", "trellis-text", "triposr", "trellis2"} <= set(known)


@pytest.mark.parametrize("spec", [each for each in ENGINES if "image" in each.inputs], ids=lambda spec: spec.name)
def test_an_engine_takes_up_to_its_largest_number_of_views(spec: EngineSpec) -> None:
    check_views(spec, 1)
    check_views(spec, spec.max_views)

    with pytest.raises(InvalidRequest, match=rf"^engine {spec.name} takes .* got {spec.max_views + 1}"):
        check_views(spec, spec.max_views + 1)


def test_a_refusal_of_several_views_names_only_the_offered_engines_that_take_them() -> None:
    with pytest.raises(InvalidRequest, match=r"^engine triposr takes one view, got 2; preview would take them$"):
        check_views(find_spec("triposr"), 2, offered=["triposr", "preview"])


@pytest.mark.parametrize("spec", ENGINES, ids=lambda spec: spec.name)
def test_an_engine_takes_what_it_declares(spec: EngineSpec) -> None:
    for kind in ("image", "text"):
        if kind in spec.inputs:
            check_input(spec, kind)
        else:
            with pytest.raises(InvalidRequest, match=rf"^engine {spec.name} takes no {kind}; .* would take it$"):
                check_input(spec, kind)
    assert (spec.max_views > 0) == ("image" in spec.inputs)


def test_a_refusal_of_a_text_names_only_the_offered_engines_that_take_one() -> None:
    with pytest.raises(InvalidRequest, match=r"^engine preview takes no text; trellis-text would take it$"):
        choose_engine("preview", "text", offered=["preview", "trellis-text"])
    with pytest.raises(InvalidRequest, match=r"no engine of this deployment takes one; trellis-text would, if its"):
        choose_engine(None, "text", offered=["preview", "trellis"])
    with pytest.raises(InvalidRequest, match=r"^engine must be one of preview, got 'trellis-text'$"):
        choose_engine("trellis-text", "text", offered=["preview"])


def test_a_request_that_names_no_engine_gets_the_first_that_takes_its_input() -> None:
    offered = ["trellis-text", "triposr", "preview"]

    assert choose_engine(None, "text", offered=offered).name == "trellis-text"
    assert choose_engine(None, "image", offered=offered).name == "triposr"
    assert choose_engine("preview", "image", offered=offered).name == "preview"
