"""The codecs of EXT_meshopt_compression, read back by meshoptimizer's decoder and by our own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline.formats.meshopt import encode_attributes, encode_triangles
from pipeline.formats.meshopt_decode import decode_attributes, decode_view
from pipeline.formats.quantize import octahedral
from tests.formats.meshopt_decoder import decode

MANY = settings(max_examples=300, deadline=None)
ELEMENTS = st.integers(1, 600).flatmap(
    lambda count: st.integers(1, 16).flatmap(
        lambda quarter: arrays(np.uint8, (count, 4 * quarter), elements=st.sampled_from([0, 1, 2, 7, 8, 127, 128, 255]))
    )
)
FACES = st.integers(0, 200).flatmap(
    lambda count: arrays(np.int64, (count, 3), elements=st.sampled_from([*range(24), 200, 70_000, 2**31 - 1]))
)


def as_sets_of_rotations(indices: NDArray[np.integer]) -> NDArray[np.integer]:
    """Triangles, each begun with the rotation that is the smallest: (F, 3)."""
    rotations = np.stack([np.roll(indices, -turn, axis=1) for turn in range(3)], axis=1)  # (F, 3 rotations, 3)
    order = np.lexsort(rotations.transpose(2, 0, 1)[::-1], axis=-1)[:, 0]
    return rotations[np.arange(len(indices)), order]


@MANY
@given(ELEMENTS)
@example(np.arange(4 * 257, dtype=np.uint8).reshape(257, 4))  # a block and one element
def test_elements_come_back_from_both_decoders(elements: NDArray[np.uint8]) -> None:
    count, stride = elements.shape

    code = encode_attributes(elements)

    assert decode(code, mode="ATTRIBUTES", count=count, stride=stride) == elements.tobytes()
    assert np.array_equal(decode_attributes(code, count=count, stride=stride), elements)


@pytest.mark.parametrize("stride", [4, 100, 256])
def test_every_length_of_an_element_fills_its_blocks(stride: int) -> None:
    elements = np.random.default_rng(stride).integers(0, 256, (900, stride), np.uint8)  # incompressible

    code = encode_attributes(elements)

    assert decode(code, mode="ATTRIBUTES", count=900, stride=stride) == elements.tobytes()
    assert np.array_equal(decode_attributes(code, count=900, stride=stride), elements)


def test_equal_elements_take_two_bits_for_sixteen_bytes() -> None:
    elements = np.full((256 * 10, 8), 77, np.uint8)

    assert len(encode_attributes(elements)) == 1 + 10 * 8 * 4 + 32


@pytest.mark.parametrize("shape", [(0, 4), (3, 6), (3, 260), (3, 0)])
def test_elements_that_the_codec_does_not_know_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="elements of 4 to 256 bytes"):
        encode_attributes(np.zeros(shape, np.uint8))


@MANY
@given(FACES)
def test_any_triangles_come_back_in_their_order_with_their_winding(faces: NDArray[np.int64]) -> None:
    code = encode_triangles(faces)

    for decoded in (
        decode(code, mode="TRIANGLES", count=faces.size, stride=4),
        decode_view(code, mode="TRIANGLES", count=faces.size, stride=4),
    ):
        found = np.frombuffer(decoded, np.uint32).reshape(-1, 3)
        assert np.array_equal(as_sets_of_rotations(found), as_sets_of_rotations(faces))


def test_a_strip_takes_a_byte_for_a_triangle() -> None:
    strip = np.array([[n, n + 1, n + 2] if n % 2 == 0 else [n + 1, n, n + 2] for n in range(1000)])

    assert len(encode_triangles(strip)) == 1 + 1000 + 16


def test_unit_vectors_come_back_from_the_filter_within_a_degree() -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = np.column_stack([octahedral(vectors), np.full(4000, 127), np.zeros(4000)]).astype(np.int8)
    code = encode_attributes(places.view(np.uint8))

    for decoded in (
        decode(code, mode="ATTRIBUTES", count=4000, stride=4, filter_name="OCTAHEDRAL"),
        decode_view(code, mode="ATTRIBUTES", count=4000, stride=4, filter_name="OCTAHEDRAL"),
    ):
        found = np.frombuffer(decoded, np.int8).reshape(-1, 4)[:, :3] / 127
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        angles = np.degrees(np.arccos(np.clip((found * vectors).sum(axis=1), -1, 1)))
        assert angles.mean() < 0.4 and angles.max() < 1.0


@pytest.mark.parametrize("mode", ["ATTRIBUTES", "TRIANGLES"])
def test_damaged_code_is_refused_by_our_decoder(mode: str) -> None:
    code = encode_triangles(np.arange(300).reshape(-1, 3))
    if mode == "ATTRIBUTES":
        code = encode_attributes(np.random.default_rng(0).integers(0, 256, (300, 4), np.uint8))

    with pytest.raises(ValueError, match="header of the data is 0xff"):
        decode_view(b"\xff" + code[1:], mode=mode, count=300, stride=4)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_view(code[: len(code) // 2], mode=mode, count=300, stride=4)


def test_indices_without_triangles_are_read() -> None:
    # The sequence 5, 6, 4 from the first baseline: deltas +5, +1, -2, zigzag 10, 2, 3, the baseline's bit below.
    assert (
        decode_view(b"\xd1" + bytes([20, 4, 6]) + bytes(4), mode="INDICES", count=3, stride=2)
        == np.array([5, 6, 4], "<u2").tobytes()
    )
    assert (
        decode(b"\xd1" + bytes([20, 4, 6]) + bytes(4), mode="INDICES", count=3, stride=2)
        == np.array([5, 6, 4], "<u2").tobytes()
    )


def test_a_filter_that_is_not_read_is_named() -> None:
    code = encode_attributes(np.zeros((4, 8), np.uint8))
    with pytest.raises(ValueError, match="filter QUATERNION is not read"):
        decode_view(code, mode="ATTRIBUTES", count=4, stride=8, filter_name="QUATERNION")
