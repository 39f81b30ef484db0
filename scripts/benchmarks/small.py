"""Measures every texture format and compression of a GLB: bytes, error of the texture and of the surface, and readers.

The readers are those of `python -m scripts.benchmarks readers`; what else is needed for them is said there.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import trimesh
from PIL import Image
from scipy.spatial import KDTree

from pipeline.engines.base import GenerationOptions, ignore_steps
from pipeline.engines.preview.engine import PreviewEngine
from pipeline.formats.encode import AssetEncoder
from pipeline.formats.reading import read_glb
from pipeline.formats.texture import psnr_db
from pipeline.imaging.background_removal import remove_background
from pipeline.imaging.decode import decode_image
from pipeline.mesh.asset import Asset
from pipeline.mesh.bake import NO_FACE, own_texels
from pipeline.stages.export import make_levels
from schemas.formats import TEXTURE_FORMATS, Compression, TextureFormat
from schemas.request import parse_request
from scripts.benchmarks.readers import NAME, Reader, readers

COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


@dataclass(frozen=True)
class Setting:
    """What a request can ask for."""

    texture_format: TextureFormat
    compression: Compression


SETTINGS = [Setting(texture, compression) for texture in TEXTURE_FORMATS for compression in COMPRESSIONS]


@dataclass(frozen=True)
class Measured:
    """One GLB.

    Attributes:
        size: bytes of the file.
        texture_size: bytes of the texture.
        texture_db: peak signal-to-noise ratio over the texels that are shown; infinite without loss.
        moved: the largest distance between a vertex and where a reader finds it, of the diagonal.
        encoding_s: CPU seconds.
    """

    size: int
    texture_size: int
    texture_db: float
    moved: float
    encoding_s: float


def asset_of(image: Path, **fields: Any) -> Asset:
    """The asset that the preview engine makes of an image."""
    request = parse_request({"image": image.name, "seed": 7, **fields}).request
    views = [remove_background(decode_image(image.read_bytes()))]
    generation = PreviewEngine().generate(views, GenerationOptions(seed=7, resolution=request.resolution))
    return make_levels(generation, request=request, on_step=ignore_steps)[0]


def encode(asset: Asset, setting: Setting) -> tuple[AssetEncoder, bytes, float]:
    """The encoder, the GLB, and the CPU seconds that it took."""
    encoder = AssetEncoder(asset, texture_format=setting.texture_format, compression=setting.compression)
    start = time.process_time()
    content = encoder.files("glb", stem=NAME)[f"{NAME}.glb"]
    return encoder, content, time.process_time() - start


def measure(asset: Asset, setting: Setting) -> Measured:
    """Encode an asset, read it back, and compare."""
    encoder, content, seconds = encode(asset, setting)
    (image,) = encoder.textures_in("glb").values()
    decoded = np.asarray(Image.open(io.BytesIO(image.content)).convert("RGB"))
    face, _ = own_texels(asset.unwrapped, texture_size=len(decoded))
    exact, read = _part(encode(asset, Setting("png", "none"))[1]), _part(content)
    # Every vertex is found again by its place and its texture coordinates together.
    _, which = KDTree(np.column_stack([exact.vertices, exact.visual.uv])).query(
        np.column_stack([read.vertices, read.visual.uv])
    )
    diagonal = float(np.linalg.norm(np.ptp(exact.vertices, axis=0)))
    return Measured(
        len(content),
        len(image.content),
        psnr_db(asset.material.base_colour[face != NO_FACE], decoded[face != NO_FACE]),
        float(np.linalg.norm(read.vertices - exact.vertices[which], axis=1).max()) / diagonal,
        seconds,
    )


def _part(content: bytes) -> Any:
    """The mesh of a GLB, where its nodes place it."""
    (part,) = (each for each in read_glb(content).dump() if isinstance(each, trimesh.Trimesh))
    return part


def table_of_sizes(assets: dict[str, Asset], rows: dict[tuple[str, Setting], Measured]) -> str:
    """Bytes of the first image's asset, and of all of them the range of the bytes and the largest errors."""
    first = next(iter(assets))
    usual = {name: rows[name, SETTINGS[0]].size for name in assets}
    others = f"all {len(assets)}"
    lines = [
        f"| texture | compression | {first}: bytes | of the first | of these the texture "
        f"| {others}: of the first | texture, dB | surface, % | CPU s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for setting in SETTINGS:
        own, every = rows[first, setting], [rows[name, setting] for name in assets]
        shares = [rows[name, setting].size / usual[name] for name in assets]
        worst = min(each.texture_db for each in every)
        lines.append(
            f"| {setting.texture_format} | {setting.compression} | {own.size:,} | {own.size / usual[first]:.0%} "
            f"| {own.texture_size:,} | {min(shares):.0%} to {max(shares):.0%} "
            f"| {'exact' if worst == float('inf') else f'{worst:.1f} or better'} "
            f"| {100 * max(each.moved for each in every):.4f} | {own.encoding_s:.1f} |"
        )
    return "\n".join(lines)


def table_of_readers(folder: Path, found: Sequence[Reader]) -> str:
    """What opens the files, by compression with a PNG, and by texture format without compression."""
    chosen = [*SETTINGS[: len(COMPRESSIONS)], Setting("jpeg", "none"), Setting("webp", "none")]
    titles = [*(each.compression for each in chosen[: len(COMPRESSIONS)]), "jpeg", "webp"]
    lines = [f"| reader | {' | '.join(titles)} |", f"| --- {'| --- ' * len(titles)}|"]
    for reader in found:
        cells = [_words(reader, folder / f"{each.texture_format}_{each.compression}.glb") for each in chosen]
        lines.append(f"| {reader.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _words(reader: Reader, path: Path) -> str:
    """Whether a reader opens a file as it opens the exact one: its size, its colours."""
    exact = reader.read(path.with_name("png_none.glb"))
    try:
        found = reader.read(path)
    except Exception as error:  # noqa: BLE001  # readers raise anything
        return f"no: {error}"[:60].replace("|", " ").replace("\n", " ")
    extents = exact.extents if found.extents is None else found.extents
    if extents is not None and exact.extents is not None and not np.allclose(extents, exact.extents, rtol=1e-3):
        return "another size"
    return "yes" if bool(found.texture) >= bool(exact.texture) else "without colours"


def main(argv: list[str]) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks small", description=__doc__)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--blender", help="a Python with bpy")
    parser.add_argument("--open3d", help="a Python with open3d")
    arguments = parser.parse_args(argv)
    assets = {image.stem: asset_of(image) for image in arguments.images}
    encode(next(iter(assets.values())), Setting("png", "meshopt"))  # compiles
    rows = {(name, each): measure(asset, each) for name, asset in assets.items() for each in SETTINGS}
    print(table_of_sizes(assets, rows), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        for each in SETTINGS:
            path = Path(folder, f"{each.texture_format}_{each.compression}.glb")
            path.write_bytes(encode(next(iter(assets.values())), each)[1])
        found = [each for each in readers(blender=arguments.blender, open3d=arguments.open3d) if "glb" in each.formats]
        print(table_of_readers(Path(folder), found))
    return 0
