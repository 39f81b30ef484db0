"""Background removal: an image's own alpha is kept, else the background is recognised by its colours."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UnreadableImage
from pipeline.imaging.background_removal import cut_out, remove_background
from pipeline.imaging.cutout import Separation, separate
from tests.fakes.images import draw_figure, mask_iou


def test_an_image_with_alpha_keeps_it() -> None:
    figure = draw_figure(128)
    assert np.array_equal(remove_background(figure), figure)


@pytest.mark.parametrize("side", [200, 900])
@pytest.mark.parametrize("background", [(255, 255, 255), (128, 128, 128), (30, 90, 40)])
def test_a_plain_background_is_removed_with_thin_parts_kept(side: int, background: tuple[int, int, int]) -> None:
    truth = draw_figure(side)[..., 3] >= 128
    mask = remove_background(draw_figure(side, background=background))[..., 3] >= 128
    assert mask_iou(mask, truth) > 0.95
    tips = np.zeros_like(truth)
    tips[: int(0.15 * side)] = True  # the antennae alone
    assert mask_iou(mask & tips, truth & tips) > 0.6


def test_a_gradient_with_noise_is_removed_too() -> None:
    rng = np.random.default_rng(3)
    image = draw_figure(300, background=(0, 0, 0))
    truth = draw_figure(300)[..., 3:].astype(np.float32) / 255
    wall = np.linspace(120, 200, 300)[:, None, None] + rng.normal(0, 4, (300, 300, 3))
    noisy = draw_figure(300)[..., :3] * truth + wall * (1 - truth)
    image[..., :3] = np.clip(noisy, 0, 255).astype(np.uint8)
    assert mask_iou(remove_background(image)[..., 3] >= 128, truth[..., 0] >= 0.5) > 0.9


def test_removing_a_background_gives_the_same_mask_every_time() -> None:
    image = draw_figure(200, background=(90, 120, 150))[..., :3]
    first, second = separate(image), separate(image)

    assert np.array_equal(first.alpha, second.alpha) and first.confidence == second.confidence


def test_a_model_replaces_the_hypotheses() -> None:
    image = draw_figure(64, background=(255, 255, 255))
    alpha = np.zeros((64, 64), np.uint8)
    alpha[16:48, 16:48] = 200
    assert np.array_equal(remove_background(image, remover=lambda rgb: Separation(alpha))[..., 3], alpha)


def opaque(side: int, colour: int) -> np.ndarray:
    return np.dstack([np.full((side, side, 3), colour, np.uint8), np.full((side, side), 255, np.uint8)])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((64, 64, 4), np.uint8), "every pixel is transparent"),
        (opaque(1, 200), "the subject is 1 × 1 pixels; at least 8"),
        (opaque(8, 10), "no subject that stands out"),
        (opaque(64, 255), "no subject that stands out"),
        (np.dstack([np.full((1, 1, 3), 9, np.uint8), np.full((1, 1), 200, np.uint8)]), "the subject is 1 × 1 pixels"),
    ],
)
def test_an_image_without_a_subject_is_refused(image: np.ndarray, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        remove_background(image)


def opaque_scene() -> np.ndarray:
    return draw_figure(256, background=(235, 235, 235))


def with_rounded_corners(image: np.ndarray, radius: int) -> np.ndarray:
    side = len(image)
    y, x = np.mgrid[:side, :side]
    inset = [np.maximum(radius - np.minimum(v, side - 1 - v), 0) for v in (x, y)]
    rounded = image.copy()
    rounded[np.hypot(*inset) > radius] = 0
    return rounded


@pytest.mark.parametrize("case", ["rounded", "app icon", "one pixel", "alpha 254", "alpha 250 with noise"])
def test_nearly_opaque_alpha_is_no_cut_out(case: str) -> None:
    image, truth = opaque_scene(), draw_figure(256)[..., 3] >= 128
    if case == "rounded":
        image = with_rounded_corners(image, 20)
    elif case == "app icon":
        image = with_rounded_corners(image, 57)
    elif case == "one pixel":
        image[0, 0, 3] = 0
    elif case == "alpha 254":
        image[..., 3] = 254
    else:
        image[..., 3] = 250 + np.random.default_rng(0).integers(0, 6, (256, 256))

    cutout = cut_out(image)

    assert cutout.was_removed and cutout.confidence is not None
    assert mask_iou(cutout.image[..., 3] >= 128, truth) > 0.95


def test_a_tight_cut_out_keeps_its_alpha() -> None:
    figure = draw_figure(256)
    rows, columns = (np.flatnonzero((figure[..., 3] >= 128).any(axis=axis)) for axis in (1, 0))
    tight = figure[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    cutout = cut_out(tight)

    assert not cutout.was_removed and cutout.confidence is None
    assert np.array_equal(cutout.image, tight)


def test_a_round_subject_that_fills_the_image_keeps_its_alpha() -> None:
    y, x = np.mgrid[:100, :100]
    ball = np.full((100, 100, 4), 200, np.uint8)
    ball[..., 3] = 255 * (np.hypot(x - 49.5, y - 49.5) < 50)

    assert not cut_out(ball).was_removed


def framed(image: np.ndarray, margin: int) -> np.ndarray:
    return np.pad(image, ((margin, margin), (margin, margin), (0, 0)))


@pytest.mark.parametrize("margin", [3, 20, 100])
@pytest.mark.parametrize("case", ["plain", "rounded", "two sides"])
def test_the_background_of_a_photograph_in_a_transparent_frame_is_removed(case: str, margin: int) -> None:
    image, truth = opaque_scene(), draw_figure(256)[..., 3] >= 128
    if case == "rounded":
        image = with_rounded_corners(image, 20)
    padded, truth = framed(image, margin), np.pad(truth, margin)
    if case == "two sides":
        padded, truth = padded[margin:-margin], truth[margin:-margin]

    cutout = cut_out(padded)

    assert cutout.was_removed and cutout.image.shape == padded.shape
    assert mask_iou(cutout.image[..., 3] >= 128, truth) > 0.95


@pytest.mark.parametrize("case", ["one colour", "gradient", "noise", "stripes"])
def test_a_rectangle_without_a_subject_in_it_is_the_subject(case: str) -> None:
    y, x = np.mgrid[:160, :120]
    grey = {
        "one colour": np.full((160, 120), 90),
        "gradient": 40 + x + y / 2,
        "noise": np.random.default_rng(0).integers(0, 256, (160, 120)),
        "stripes": np.where(x // 12 % 2, 60, 200),
    }[case]
    poster = framed(np.dstack([*[grey] * 3, np.full((160, 120), 255)]).astype(np.uint8), 30)

    cutout = cut_out(poster)

    assert not cutout.was_removed and np.array_equal(cutout.image, poster)
