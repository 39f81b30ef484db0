"""Measure a 3D file: faces, whether it is watertight, bounds, texture. Changes nothing and knows no engine."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InvalidRequest, MissingExtra
from pipeline.formats.file_type import file_type_of
from schemas.formats import FORMATS

if TYPE_CHECKING:
    import trimesh

    from pipeline.mesh.print_check import PrintReport
    from pipeline.mesh.tri_mesh import TriMesh
    from schemas.request import UpAxis


@dataclass(frozen=True)
class InspectionReport:
    """What a 3D file holds. Vertices that lie in one place count as one, so that the seams of a texture are no holes.

    STL states no unit and is taken to be in millimetres, as slicers do.

    Attributes:
        faces: triangles, those without area left out.
        vertices: places where corners of faces lie.
        components: bodies that share no vertex.
        is_watertight: every edge has exactly two faces.
        is_winding_consistent: the two faces of every edge run along it in opposite directions.
        non_manifold_edges: edges with more than two faces.
        boundary_edges: edges with one face.
        volume: signed, cubic metres.
        lowest, highest: corners of the axis-aligned bounding box, metres.
        texture_size: width and height of the texture in pixels; None without one.
        has_vertex_colours: whether the colours are those of vertices.
    """

    faces: int
    vertices: int
    components: int
    is_watertight: bool
    is_winding_consistent: bool
    non_manifold_edges: int
    boundary_edges: int
    volume: float
    lowest: tuple[float, float, float]
    highest: tuple[float, float, float]
    texture_size: tuple[int, int] | None
    has_vertex_colours: bool


def inspect(file: str | PathLike[str] | bytes, *, file_type: str | None = None) -> InspectionReport:
    """Measure a 3D file.

    Args:
        file: a path, or the content of a file.
        file_type: glb, obj, stl, ply, usdz or 3mf; by default the ending of the path, or what the content looks like.

    Raises:
        InvalidRequest: it cannot be read, or holds no mesh.
        MissingExtra: the part of the installation that reads 3D files is absent.
    """
    parts, mesh, _ = _read(file, file_type)
    from pipeline.mesh.measure import measure

    report = measure(mesh)
    reported = {field.name for field in fields(InspectionReport)}
    counts = {field.name: getattr(report, field.name) for field in fields(report) if field.name in reported}
    return InspectionReport(
        **counts,
        texture_size=_texture_size(parts[0]),
        has_vertex_colours=getattr(parts[0].visual, "kind", None) == "vertex",
    )


def inspect_print(
    file: str | PathLike[str] | bytes,
    *,
    file_type: str | None = None,
    min_wall_mm: float = 0.8,
    up_axis: UpAxis | None = None,
) -> PrintReport:
    """Measure what a 3D printer needs to know of a file, at the size that it has.

    Args:
        file, file_type: as for `inspect`.
        min_wall_mm: thinner walls are reported.
        up_axis: the axis that points up on the printer; by default z for STL, 3MF and PLY, and y for the others.

    Raises:
        InvalidRequest: it cannot be read, or holds no mesh.
        MissingExtra: the part of the installation that reads 3D files is absent.
    """
    _, mesh, read_as = _read(file, file_type)
    from pipeline.mesh.print_check import check_print
    from pipeline.mesh.tri_mesh import TriMesh

    if (up_axis or FORMATS[read_as].up_axis) == "z":
        mesh = TriMesh(mesh.vertices[:, [0, 2, 1]] * (1, 1, -1), mesh.faces)
    return check_print(mesh, mm_per_unit=1000, min_wall_mm=min_wall_mm)


def _read(file: str | PathLike[str] | bytes, file_type: str | None) -> tuple[list[trimesh.Trimesh], TriMesh, str]:
    """The parts of a file, all of them as one mesh in metres, and the format that it was read as.

    Raises:
        InvalidRequest: it cannot be read, or holds no mesh.
        MissingExtra: the part of the installation that reads 3D files is absent.
    """
    name = "the file" if isinstance(file, bytes) else str(Path(file))
    if isinstance(file, bytes):
        source, ending = io.BytesIO(file), file_type_of(file)
    else:
        source, ending = _readable(Path(file)), Path(file).suffix[1:].lower()
    try:
        import trimesh

        from pipeline.formats.glb_reading import UnreadExtension
        from pipeline.formats.reading import read_scene
    except ModuleNotFoundError as error:
        raise MissingExtra("inspect", extra="local") from error
    read_as = file_type or ending
    try:
        loaded = read_scene(source, file_type=read_as)
        parts = [part for part in loaded.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        if not parts:
            raise ValueError("no mesh")
        return parts, _join(parts, units_per_metre=_units_per_metre(read_as)), read_as
    except UnreadExtension as error:
        raise InvalidRequest(f"{name}: {error}") from error
    except Exception as error:  # readers of foreign files raise anything
        raise InvalidRequest(f"{name}: is no 3D file that can be read") from error


def _readable(path: Path) -> Path:
    """The same path, when it is a file's that can be read.

    Raises:
        InvalidRequest: it is not.
    """
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from None
    except ValueError:
        raise InvalidRequest("the file's path holds a NUL character") from None


def _units_per_metre(file_type: str) -> float:
    """What a metre is in what `read_scene` returns of a format: STL states no unit, and is read in millimetres."""
    return FORMATS[file_type].units_per_metre if file_type == "stl" else 1.0


def _join(parts: list[trimesh.Trimesh], *, units_per_metre: float) -> TriMesh:
    """All parts as one mesh in metres, vertices joined that lie close together, without faces that have no area.

    Close is a millionth of the longest side, so that the size of the subject and the unit of the file do not matter.
    """
    import numpy as np

    from pipeline.mesh.tri_mesh import TriMesh

    points = np.concatenate([np.asarray(part.vertices, np.float64) for part in parts])
    offsets = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    faces = np.concatenate([np.asarray(part.faces) + start for part, start in zip(parts, offsets, strict=True)])
    cell = max(float(np.ptp(points, axis=0).max()) * 1e-6, 1e-30)
    _, first, place = np.unique(
        np.round(points / cell).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    welded = place.reshape(-1)[faces].astype(np.int32)
    has_area = (welded != np.roll(welded, 1, axis=1)).all(axis=1)
    return TriMesh(points[first] / units_per_metre, welded[has_area])


def _texture_size(part: trimesh.Trimesh) -> tuple[int, int] | None:
    """Width and height of a part's texture, None without one."""
    from trimesh.visual.material import empty_material

    material = getattr(part.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is None or image == empty_material().image:  # trimesh's stand-in for a missing texture
        return None
    return image.size[0], image.size[1]
