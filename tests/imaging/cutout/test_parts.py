"""Parts of the subject are kept by what they have to do with it, not by their size."""

from __future__ import annotations

import numpy as np

from pipeline.imaging.cutout.ground import edge_strength, noise_of
from pipeline.imaging.cutout.parts import subject_parts

RNG = np.random.default_rng(0)
IMAGE = np.clip(RNG.normal(200, 1, (120, 160, 3)), 0, 255).astype(np.uint8)
IMAGE[30:100, 60:100] = np.clip(RNG.normal((150, 80, 40), 18, (70, 40, 3)), 0, 255)
BODY = np.zeros((120, 160), bool)
BODY[30:100, 60:100] = True


def parts_of(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return subject_parts(mask, image, edge_strength(image), noise_of(image)).mask


def test_a_detached_arm_in_the_subjects_colours_stays() -> None:
    image, mask = IMAGE.copy(), BODY.copy()
    image[50:70, 103:110] = np.clip(RNG.normal((150, 80, 40), 18, (20, 7, 3)), 0, 255)
    mask[50:70, 103:110] = True

    assert np.array_equal(parts_of(image, mask), mask)


def test_flat_things_beside_the_subject_go() -> None:
    image, mask = IMAGE.copy(), BODY.copy()
    for left, colour in ((10, (20, 200, 40)), (130, (60, 60, 220))):
        image[20:40, left : left + 15] = colour
        mask[20:40, left : left + 15] = True

    assert np.array_equal(parts_of(image, mask), BODY)


def test_the_edge_of_a_table_goes_and_a_thin_tail_stays() -> None:
    mask = BODY.copy()
    mask[70:72, :60] = True  # from the side of the image
    tail = BODY.copy()
    tail[50:52, 100:130] = True  # ends inside

    assert np.array_equal(parts_of(IMAGE, mask), BODY)
    assert parts_of(IMAGE, tail)[50:52, 100:130].all()
