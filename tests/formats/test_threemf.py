"""3MF: read back by lib3mf in its strict mode, with unit, names and colours."""

from __future__ import annotations

import io
import time
import zipfile

import lib3mf
import numpy as np
import pytest

from pipeline.formats.reading import read_3mf
from pipeline.formats.threemf import threemf_bytes
from tests.formats.meshes import COLOURS, FACES, VERTICES, no_faces


def encoded(*, name: str = "toy", is_coloured: bool = True) -> bytes:
    return threemf_bytes(name=name, vertices=VERTICES * 100, faces=FACES, colours=COLOURS if is_coloured else None)


@pytest.mark.parametrize("is_coloured", [True, False])
def test_lib3mf_reads_it_back_strictly_as_one_closed_body_in_millimetres(is_coloured: bool) -> None:
    model = lib3mf.get_wrapper().CreateModel()
    reader = model.QueryReader("3mf")
    reader.SetStrictModeActive(True)
    reader.ReadFromBuffer(encoded(name="my <robot> & ö", is_coloured=is_coloured))
    objects, items = model.GetMeshObjects(), model.GetBuildItems()

    assert reader.GetWarningCount() == 0 and model.GetUnit() == lib3mf.ModelUnit.MilliMeter
    assert objects.Count() == items.Count() == 1 and objects.MoveNext()
    mesh = objects.GetCurrentMeshObject()
    assert mesh.GetName() == "my <robot> & ö" and mesh.IsManifoldAndOriented() and mesh.IsValid()
    found = np.array([tuple(vertex.Coordinates) for vertex in mesh.GetVertices()])
    np.testing.assert_allclose(found, VERTICES * 100, atol=1e-3)


def test_the_colours_are_those_of_the_vertices() -> None:
    (part,) = read_3mf(encoded()).geometry.values()

    assert np.array_equal(part.faces, FACES) and np.array_equal(part.visual.vertex_colors[:, :3], COLOURS)
    np.testing.assert_allclose(part.vertices, VERTICES / 10, atol=1e-6)  # in metres
    (plain,) = read_3mf(encoded(is_coloured=False)).geometry.values()
    assert plain.visual.kind != "vertex"


def test_equal_meshes_give_equal_bytes_at_any_time() -> None:
    first, begun_s = encoded(), time.time()
    while int(time.time()) // 2 == int(begun_s) // 2:  # zip archives count in steps of two seconds
        time.sleep(0.05)

    assert encoded() == first


def test_the_package_begins_with_its_content_types() -> None:
    names = zipfile.ZipFile(io.BytesIO(encoded())).namelist()
    assert names[0] == "[Content_Types].xml" and "3D/3dmodel.model" in names


def test_what_is_no_solid_is_refused() -> None:
    with pytest.raises(ValueError, match="at least four faces, got 0"):
        threemf_bytes(name="toy", vertices=VERTICES, faces=no_faces())
