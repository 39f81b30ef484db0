"""Fetching the background remover that the released model was shown its images through. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import WeightsUnusable
from pipeline.imaging.rembg_remover import REMOVER_FILE
from pipeline.nn.hub_download import OnBytes, Report, fetch_files, file_sha256, ignore_progress


@dataclass(frozen=True)
class RemoverSpec:
    """The file of a background remover.

    Attributes:
        repo_id, revision: a copy of it on the model hub; whoever keeps the copy, the bytes are held by `sha256`.
        size_bytes, sha256: of the file as rembg's release v0.0.0 has it.
    """

    repo_id: str
    revision: str
    size_bytes: int
    sha256: str


U2NET = RemoverSpec(  # Qin et al. 2020, arXiv 2005.09007; Apache-2.0
    repo_id="Topurrra/u2net_onnx",
    revision="065dc383e4d551f458a30118b7d1570af4d868db",
    size_bytes=175_997_641,
    sha256="8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
)


def missing_remover_bytes(weights: Path, spec: RemoverSpec = U2NET) -> int:
    """How much `fetch_remover` would bring; 0 where the file is there."""
    return 0 if (weights / REMOVER_FILE).exists() else spec.size_bytes


def fetch_remover(
    weights: Path,
    *,
    spec: RemoverSpec = U2NET,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Bring the remover's file below the folder of all engines' weights, and check that it is the known one.

    Raises:
        WeightsUnusable: it cannot be fetched; or it is another file, which is then removed.
    """
    path = weights / REMOVER_FILE
    fetch_files(spec.repo_id, [path.name], path.parent, revision=spec.revision, endpoint=endpoint, on_bytes=on_bytes)
    digest = file_sha256(path)
    if digest != spec.sha256:
        path.unlink()  # a server would use it
        raise WeightsUnusable(f"{path.name} is not the published file: sha256 {digest}, published {spec.sha256}")
    report(f"{digest}  {path.name}, as published")
    return path
