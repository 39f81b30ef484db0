"""Download of background removers: one pinned file each, checked by its digest. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InvalidRequest, WeightsUnusable
from pipeline.imaging.rembg_remover import BIREFNET_FILE, REMOVER_FILE, U2NETP_FILE
from pipeline.nn.hub_download import OnBytes, Report, fetch_files, file_sha256, ignore_progress


@dataclass(frozen=True)
class RemoverSpec:
    """The file of a background remover.

    Attributes:
        repo_id: a copy on the model hub; `sha256` guarantees the bytes.
        revision: full commit hash there.
        size_bytes: size of the file.
        sha256: of that file.
        file: where it lies in the folder of all engines' weights.
        file_name: its path in the repository.
    """

    repo_id: str
    revision: str
    size_bytes: int
    sha256: str
    file: str = REMOVER_FILE
    file_name: str = Path(REMOVER_FILE).name


U2NETP = RemoverSpec(  # Qin et al. 2020, arXiv 2005.09007, the small version; Apache-2.0
    repo_id="Heliosoph/u2net-onnx",
    revision="7fc34deee10329bc039c10a73b98090d0c6f5c59",
    size_bytes=4_574_861,
    sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    file=U2NETP_FILE,
    file_name="u2netp.onnx",
)
U2NET = RemoverSpec(  # Qin et al. 2020, arXiv 2005.09007; Apache-2.0; the one that TRELLIS' release applies
    repo_id="Topurrra/u2net_onnx",
    revision="065dc383e4d551f458a30118b7d1570af4d868db",
    size_bytes=175_997_641,
    sha256="8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
)
BIREFNET = RemoverSpec(  # Zheng et al. 2024, arXiv 2401.03407, with the backbone Swin-T; MIT
    repo_id="onnx-community/BiRefNet_lite-ONNX",
    revision="de15b22ba131738a16dff04aab8bdf8dc32e3ac1",
    size_bytes=224_005_088,
    sha256="5600024376f572a557870a5eb0afb1e5961636bef4e1e22132025467d0f03333",
    file=BIREFNET_FILE,
    file_name="onnx/model.onnx",
)
REMOVERS = {"u2netp": U2NETP, "u2net": U2NET, "birefnet": BIREFNET}


def find_remover(name: str) -> RemoverSpec:
    """The remover of a name.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in REMOVERS:
        raise InvalidRequest(f"the remover must be one of {', '.join(REMOVERS)}, got {name!r}")
    return REMOVERS[name]


def missing_remover_bytes(weights: Path, spec: RemoverSpec = U2NET) -> int:
    """Return how many bytes `fetch_remover` would download; 0 if the file exists."""
    return 0 if (weights / spec.file).exists() else spec.size_bytes


def fetch_remover(
    weights: Path,
    *,
    spec: RemoverSpec = U2NET,
    endpoint: str | None = None,
    report: Report = ignore_progress,
    on_bytes: OnBytes = ignore_progress,
) -> Path:
    """Download a remover into the folder of all engines' weights and check its sha256.

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
    path = weights / spec.file
    folder = path.parents[len(Path(spec.file_name).parts) - 1]
    fetch_files(spec.repo_id, [spec.file_name], folder, revision=spec.revision, endpoint=endpoint, on_bytes=on_bytes)
    digest = file_sha256(path)
    if digest != spec.sha256:
        path.unlink()  # a worker uses any file that is there
        raise WeightsUnusable(f"{path.name} is not the published file: sha256 {digest}, published {spec.sha256}")
    report(f"{digest}  {path.name}, as published")
    return path
