"""USD's own validators, and the rules of `usdchecker --arkit` beyond them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

ALIGNMENT = 64
IMAGES = (".png", ".jpg", ".jpeg")


def issues_of(path: Path) -> list[str]:
    """What USD's validators and ARKit's rules say against a USDZ file; empty if nothing."""
    from pxr import Usd, UsdGeom, UsdValidation

    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    stage = Usd.Stage.Open(str(path))
    found = [str(issue.GetMessage()) for issue in UsdValidation.ValidationContext(validators).Validate(stage)]
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        root, *others = archive.infolist()
        found += [] if root.filename.endswith(".usdc") else [f"the first file is {root.filename}, no binary layer"]
        found += [f"{each.filename} is no image" for each in others if not each.filename.endswith(IMAGES)]
        found += [f"{each.filename} is compressed" for each in (root, *others) if each.compress_type]
    found += [] if UsdGeom.GetStageUpAxis(stage) == "Y" else ["the up axis is not Y"]
    return found
