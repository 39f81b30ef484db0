"""Packed arrays: the same bits after unpacking, in fewer bytes where rows are alike; earlier pickles stay readable."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.mesh.packing import PacksArrays, on_grid, pack, with_fewer_digits
from pipeline.mesh.tri_mesh import TriMesh
from tests.mesh.shapes import organic

RNG = np.random.default_rng(0)
EXTREMES = np.iinfo(np.int32)
ARRAYS: dict[str, NDArray[Any]] = {
    "no rows": np.zeros((0, 3), np.float32),
    "no columns": np.zeros((3, 0), np.int32),
    "zeros": np.zeros((5, 3), np.float32),
    "float32": RNG.normal(size=(1000, 3)).astype(np.float32),
    "float64": RNG.normal(size=(1000, 3)),
    "float16": RNG.normal(size=(1000, 4)).astype(np.float16),
    "int16": RNG.integers(-999, 999, (1000, 3)).astype(np.int16),
    "int32 that wraps": RNG.choice([EXTREMES.min, EXTREMES.max, 0, -1], (1000, 2)).astype(np.int32),
    "int64": np.cumsum(RNG.integers(0, 9, 1000)),
    "uint8": RNG.integers(0, 256, (1000, 3), np.uint8),
    "bool": RNG.random((1000, 2)) < 0.5,
    "on a grid": on_grid(RNG.uniform(-0.5, 0.5, (1000, 3)), bits=20),
    "large and on a grid": on_grid(RNG.uniform(-64, 63, (1000, 3)), bits=10),
    "too large for a grid": np.float32([[1e9, -1e9, 2.0]]),
    "signed zero": np.float32([[-0.0, 1.0]]),
    "not finite": np.float32([[np.nan, np.inf, -np.inf]]),
    "not contiguous": np.arange(60, dtype=np.int32).reshape(5, 4, 3)[:, ::2].transpose(2, 0, 1),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_has_the_same_bits_after_unpacking(name: str) -> None:
    values = ARRAYS[name]
    packed = pack(values)
    found = packed.unpacked()

    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert found.tobytes() == values.tobytes()
    assert packed == pack(values.copy())  # equal arrays give equal bytes
    assert len(packed.content) < values.nbytes + 64


def test_numbers_on_a_grid_take_the_bits_of_the_grid() -> None:
    values = RNG.uniform(-0.5, 0.5, (50_000, 3))
    rounded = on_grid(values, bits=16)

    assert np.abs(rounded - values).max() <= 2**-17 * (1 + 1e-6)
    assert on_grid(rounded, bits=16).tobytes() == rounded.tobytes()
    assert len(pack(rounded).content) < 1.15 * 2 * rounded.size
    assert len(pack(values.astype(np.float32)).content) > 3 * rounded.size


def test_fewer_digits_keep_the_relative_error() -> None:
    values = np.exp(RNG.normal(-5, 1, 10_000))
    rounded = with_fewer_digits(values, bits=4)

    assert rounded.dtype == np.float16
    assert np.abs(rounded / values - 1).max() <= 2**-5 + 2**-11
    assert (rounded.view(np.uint16) & 0x3F == 0).all()
    assert with_fewer_digits(rounded, bits=4).tobytes() == rounded.tobytes()


def test_a_format_of_a_later_version_is_refused() -> None:
    later = replace(pack(np.zeros(3)), version=2)

    with pytest.raises(ValueError, match="format 2 are unknown"):
        later.unpacked()


def test_a_mesh_is_pickled_in_a_third_of_its_bytes_and_once() -> None:
    mesh = organic(96)
    mesh = TriMesh(on_grid(mesh.vertices, bits=20), mesh.faces)
    one, two = pickle.dumps(mesh), pickle.dumps((mesh, mesh))
    found, same = pickle.loads(two)

    assert found.vertices.tobytes() == mesh.vertices.tobytes() and found.faces.tobytes() == mesh.faces.tobytes()
    assert found.faces.dtype == np.int32
    assert same is found and len(two) < len(one) + 100
    assert len(one) < 0.3 * (mesh.vertices.nbytes + mesh.faces.nbytes)


def test_what_was_pickled_as_plain_arrays_is_read() -> None:
    mesh = organic(16)
    earlier = object.__new__(TriMesh)
    earlier.__setstate__({"vertices": mesh.vertices, "faces": mesh.faces})

    assert earlier.vertices is mesh.vertices and earlier.faces is mesh.faces


@dataclass(frozen=True, eq=False)
class Holder(PacksArrays):
    values: NDArray[np.float32]
    name: str


def test_a_dataclass_that_packs_its_arrays_keeps_the_rest_and_drops_what_is_derived() -> None:
    holder = Holder(RNG.normal(size=(10, 3)).astype(np.float32), "name")
    holder.__dict__["derived"] = np.zeros(1000)
    found = pickle.loads(pickle.dumps(holder))
    earlier = object.__new__(Holder)
    earlier.__setstate__({"values": holder.values, "name": "old"})

    assert (found.values.tobytes(), found.name) == (holder.values.tobytes(), "name")
    assert "derived" not in found.__dict__
    assert (earlier.values is holder.values, earlier.name) == (True, "old")
