"""Whether an engine's weights are there is known before a machine is started for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.registry import TINY_WEIGHTS, find_spec, require_weights
from pipeline.engines.triposr.weights import FILE_NAME, WEIGHTS_FOLDER
from pipeline.errors import WeightsUnusable


@pytest.mark.parametrize(("engine", "weights"), [("preview", "nowhere"), ("trellis", TINY_WEIGHTS)])
def test_engines_without_files_want_none(engine: str, weights: str) -> None:
    require_weights(find_spec(engine), weights, remedy="")


@pytest.mark.parametrize("engine", ["trellis", "triposr"])
def test_missing_weights_are_counted_and_the_remedy_is_named(engine: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnusable, match=rf"^\d\.\d\d GB of the weights of {engine} are missing; .*: fetch them$"):
        require_weights(find_spec(engine), str(tmp_path), remedy="fetch them")


def test_a_folder_that_shows_an_earlier_state_is_looked_at_again(tmp_path: Path) -> None:
    looks = []

    def refresh() -> None:
        looks.append(1)
        (tmp_path / WEIGHTS_FOLDER).mkdir()
        (tmp_path / WEIGHTS_FOLDER / FILE_NAME).touch()

    for _ in range(2):
        require_weights(find_spec("triposr"), str(tmp_path), remedy="", refresh=refresh)

    assert len(looks) == 1
