"""3MF for printing: one solid in millimetres, z-up, with a colour at every vertex. Equal arrays give equal bytes.

The colours are a colour group of the materials extension, not a texture. Of the slicers, Bambu Studio reads colour
groups and none reads textures; viewers (Windows, Printables) show both.

Source: 3MF Core Specification 1.3, 3MF Materials and Properties Extension 1.2.1.
"""

from __future__ import annotations

import ctypes
import io
import uuid
import zipfile
from typing import Any

import lib3mf
import numpy as np
from numpy.typing import NDArray

from pipeline.formats.archive import FIXED_TIME
from pipeline.version import __version__

CONTENT_TYPES = "[Content_Types].xml"
NAMESPACE = uuid.UUID("2f0e6f0e-6f0c-5a51-9a4e-3f6f7a9c1d10")
"""Chosen at random once; the UUIDs of parts are derived from it, since lib3mf would draw them."""


def threemf_bytes(
    *,
    name: str,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int32],
    colours: NDArray[np.uint8] | None = None,
) -> bytes:
    """Encode a closed mesh.

    Args:
        name: what slicers call the object.
        vertices: (V, 3) millimetres, z-up.
        faces: (F, 3), at least four.
        colours: (V, 3) uint8 sRGB, or (V, 4) with linear alpha; None without.

    Raises:
        ValueError: there are too few faces for a solid.
    """
    if len(faces) < 4:
        raise ValueError(f"a 3MF needs a solid of at least four faces, got {len(faces)}")
    library: Any = lib3mf.get_wrapper()  # its annotations say that any result may be None
    model = library.CreateModel()
    model.SetUnit(lib3mf.ModelUnit.MilliMeter)
    model.GetMetaDataGroup().AddMetaData("", "Title", name, "xs:string", True)
    model.GetMetaDataGroup().AddMetaData("", "Application", f"image-to-3d {__version__}", "xs:string", True)
    mesh = model.AddMeshObject()
    mesh.SetName(name)
    mesh.SetGeometry(
        (lib3mf.Position * len(vertices)).from_buffer_copy(vertices.astype(np.float32).tobytes()),
        (lib3mf.Triangle * len(faces)).from_buffer_copy(faces.astype(np.uint32).tobytes()),
    )
    if colours is not None:
        _set_colours(model, mesh, faces, colours)
    item = model.AddBuildItem(mesh, library.GetIdentityTransform())
    model.SetBuildUUID(_uuid_of("build"))
    item.SetUUID(_uuid_of("item"))
    mesh.SetUUID(_uuid_of("object"))
    return _with_fixed_times(_written(model))


def _set_colours(model: Any, mesh: Any, faces: NDArray[np.int32], colours: NDArray[np.uint8]) -> None:
    """Give every corner of a face the colour of its vertex."""
    group = model.AddColorGroup()
    palette, place = np.unique(colours, axis=0, return_inverse=True)
    ids = np.array([group.AddColor(lib3mf.Color(*map(int, (*colour, 255)[:4]))) for colour in palette], np.uint32)
    properties = np.empty((len(faces), 4), np.uint32)
    properties[:, 0] = group.GetResourceID()
    properties[:, 1:] = ids[place.reshape(-1)][faces]
    mesh.SetAllTriangleProperties((lib3mf.TriangleProperties * len(faces)).from_buffer_copy(properties.tobytes()))
    # A triangle without properties has those of its object; readers want them even where every triangle has its own.
    mesh.SetObjectLevelProperty(group.GetResourceID(), int(ids[0]))


def _written(model: Any) -> bytes:
    """A model as lib3mf writes it. Its own `WriteToBuffer` makes a Python list of all bytes."""
    content = io.BytesIO()

    def write(address: int, count: int, _: object) -> None:
        content.write(ctypes.string_at(address, count))

    def seek(position: int, _: object) -> None:
        content.seek(position)

    writer = model.QueryWriter("3mf")
    writer.WriteToCallback(lib3mf.WriteCallback(write), lib3mf.SeekCallback(seek), None)
    return content.getvalue()


def _with_fixed_times(archive: bytes) -> bytes:
    """The same archive with one time for all its files, which lib3mf gives the present one."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as given, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as fixed:
        # The list of content types first, as packages of its kind have it: readers of streams need it before the parts.
        for name in sorted(given.namelist(), key=lambda name: name != CONTENT_TYPES):
            entry = zipfile.ZipInfo(name, FIXED_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            fixed.writestr(entry, given.read(name))
    return result.getvalue()


def _uuid_of(part: str) -> str:
    return str(uuid.uuid5(NAMESPACE, part))
