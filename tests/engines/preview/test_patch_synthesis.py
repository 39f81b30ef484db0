from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.engines.preview.patch_synthesis import FORBIDDEN, RADIUS, ROUNDS, PatchSynthesis, _Search, _search
from pipeline.engines.preview.seams import shading_correction


def fill(colours: np.ndarray, target: np.ndarray, cost: np.ndarray | None = None, *, seed: int = 1) -> np.ndarray:
    source_cost = np.where(target, FORBIDDEN, 0).astype(np.float32)
    if cost is not None:
        source_cost = np.maximum(source_cost, cost)
    columns = np.broadcast_to(np.arange(target.shape[1], dtype=np.float32), target.shape)
    start = np.where(target, 5, columns).astype(np.float32)
    return PatchSynthesis(colours, target, np.ones_like(target), start).fill(source_cost, seed=seed)


def textured(side: int = 64) -> np.ndarray:
    noise = np.random.default_rng(0).random((side, side, 3)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 1), np.float32)


def hole(side: int = 64) -> np.ndarray:
    target = np.zeros((side, side), bool)
    target[20:44, 22:42] = True
    return target


def test_stripes_go_on_through_the_region() -> None:
    rows = np.arange(64)
    stripes = np.zeros((64, 64, 3), np.float32)
    stripes[rows // 8 % 2 == 0] = (0.8, 0.1, 0.1)
    damaged = stripes.copy()
    damaged[hole()] = (0, 0, 1)

    found = fill(damaged, hole())

    np.testing.assert_allclose(found, stripes, atol=0.02)


def test_pixels_outside_the_region_keep_their_colours_to_the_bit() -> None:
    colours = textured()

    found = fill(colours, hole())

    assert np.array_equal(found[~hole()], colours[~hole()])
    assert not np.array_equal(found[hole()], colours[hole()])


def test_the_same_seed_gives_the_same_bytes() -> None:
    colours = textured()

    assert np.array_equal(fill(colours, hole(), seed=2**31 - 1), fill(colours, hole(), seed=2**31 - 1))


def test_excluded_sources_do_not_appear() -> None:
    colours = textured() * np.float32([0.1, 1, 1])
    cost = np.zeros((64, 64), np.float32)
    colours[24:40, 2:18] = (1, 0, 0)
    cost[24 - RADIUS : 40 + RADIUS, : 18 + RADIUS] = FORBIDDEN

    found = fill(colours, hole(), cost)

    assert found[hole()][:, 0].max() < 0.4


def test_unwanted_pixels_are_no_sources_and_the_search_begins_anew_only_for_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    colours = textured(160) * np.float32([0.1, 1, 1])
    target = cv2.resize(hole().astype(np.uint8), (160, 160)) > 0
    red = np.zeros_like(target)
    red[60:100, 5:45] = True
    colours[red] = (1, 0, 0)
    unwanted = cv2.dilate(red.astype(np.uint8), np.ones((4 * RADIUS + 1,) * 2, np.uint8)) > 0
    columns = np.broadcast_to(np.arange(160, dtype=np.float32), target.shape)
    synthesis = PatchSynthesis(colours, target, np.ones_like(target), np.where(target, 25, columns).astype(np.float32))
    source_cost = np.where(target, FORBIDDEN, 0).astype(np.float32)
    seen: list[np.ndarray] = []
    searched: list[int] = []
    improve = _Search.improve
    monkeypatch.setattr(_Search, "improve", lambda level, seed: searched.append(seed) or improve(level, seed))

    found = synthesis.fill(source_cost, seed=1, find_unwanted=lambda image: seen.append(image) or unwanted)

    assert seen[0][target][:, 0].max() > 0.9, "the coarser levels took what nobody had excluded"
    assert found[target][:, 0].max() < 0.4
    assert len(seen) == 2
    assert len(searched) == 2 * sum(ROUNDS[:2]) + ROUNDS[2], "the coarser levels twice, the finest one once"


@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (20, 20)])
def test_an_image_too_small_for_a_source_stays_as_it_is(shape: tuple[int, int]) -> None:
    colours = np.random.default_rng(1).random((*shape, 3)).astype(np.float32)

    assert np.array_equal(fill(colours, np.ones(shape, bool)), colours)


def test_the_search_comes_close_to_the_best_patches_of_all() -> None:
    exemplar = (textured(32) * 100).astype(np.float32)
    canvas = np.ascontiguousarray(exemplar[:, ::-1])
    inner = np.zeros((32, 32), bool)
    inner[RADIUS:-RADIUS, RADIUS:-RADIUS] = True
    targets = np.argwhere(inner).astype(np.int32)
    cost = np.where(inner, 0, FORBIDDEN).astype(np.float32)
    sources = np.full((32, 32, 2), 16, np.int32)
    costs = np.zeros((32, 32), np.float32)

    flat = (32, -1)
    _search(canvas.reshape(flat), exemplar.reshape(flat), targets, inner, cost, sources, costs, np.float32(0), 8, 1)

    def patches(image: np.ndarray) -> np.ndarray:
        return np.array([image[r - 3 : r + 4, c - 3 : c + 4].ravel() for r, c in targets], np.float64)

    of_canvas, of_exemplar = patches(canvas), patches(exemplar)
    every = ((of_canvas[:, None] - of_exemplar[None]) ** 2).sum(axis=2) / 49
    chosen = sources[targets[:, 0], targets[:, 1]] - RADIUS
    at_chosen = every[np.arange(len(targets)), chosen[:, 0] * 26 + chosen[:, 1]]
    np.testing.assert_allclose(costs[targets[:, 0], targets[:, 1]], at_chosen, rtol=1e-4)
    assert at_chosen.mean() < 1.25 * every.min(axis=1).mean()  # 25 %: chance of a random search in 26 x 26 sources


def test_a_step_of_shading_between_two_sources_disappears_and_a_border_stays() -> None:
    exemplar = np.zeros((9, 60, 3), np.float32)
    target = np.zeros((9, 60), bool)
    target[:, 20:40] = True
    own = np.stack(np.indices(target.shape), axis=2).astype(np.int32)
    sources = own.copy()
    sources[:, 20:30, 1], sources[:, 30:40, 1] = 5, 55

    def steps(right: tuple[float, float, float]) -> np.ndarray:
        exemplar[:, :30], exemplar[:, 30:] = (50, 0, 0), right
        copied = exemplar[sources[..., 0], sources[..., 1]]
        filled = copied + shading_correction(exemplar, sources, target=target, inside=np.ones_like(target))
        return np.abs(np.diff(filled[4], axis=0)).max(axis=0)

    assert steps((60, 0, 0))[0] < 2
    assert steps((50, 60, 0))[1] > 55


def test_averages_of_patches_keep_the_contrast_of_their_sources() -> None:
    side = 96
    colours = np.repeat(textured(side)[..., :1], 3, axis=2)
    target = np.zeros((side, side), bool)
    target[30:66, 30:66] = True

    found = fill(colours, target)

    inner = cv2.erode(target.astype(np.uint8), np.ones((9, 9))) > 0
    energy = (np.diff(found, axis=1) ** 2).sum(axis=2)
    ratio = energy[inner[:, :-1]].mean() / energy[~target[:, :-1]].mean()
    assert 0.95 < ratio < 1.1  # 0.88 of plain averages


def test_a_plain_region_gets_no_contrast() -> None:
    found = fill(np.full((64, 64, 3), 0.4, np.float32), hole())

    assert found[hole()].std(axis=0).max() < 1e-4
