"""How far a mask can be trusted: what speaks for it in the image, and whether other hypotheses agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np

from pipeline.imaging.cutout.ground import Area, Explained, Field, Ground, Rgb, border_of
from pipeline.imaging.cutout.parts import Parts


@dataclass(frozen=True)
class Evidence:
    """What the image says about one mask; shares are 0 to 1.

    Attributes:
        explained: share of the pixels outside of the mask that the ground explains.
        border_explained: the same along the image's border.
        edge: share of the mask's outline that lies on an edge of the image.
        inner_ground: share of the mask that looks like the ground.
        at_border: share of the image's border that the mask covers.
        dropped: area of what was dropped as no part of the subject, relative to the mask.
        pieces: components of the mask beyond the first, up to 5.
        spread: how much the ground varies, in levels.
    """

    explained: float
    border_explained: float
    edge: float
    inner_ground: float
    at_border: float
    dropped: float
    pieces: float
    spread: float


def evidence_of(image: Rgb, edges: Field, parts: Parts, explained: Explained, ground: Ground) -> Evidence:
    """Measure the evidence for a mask."""
    mask = parts.mask
    solid = mask.astype(np.uint8)
    near = np.minimum(explained.lit, explained.shadowed) < 3
    outline = (cv2.dilate(solid, np.ones((3, 3), np.uint8)) > 0) & ~(cv2.erode(solid, np.ones((3, 3), np.uint8)) > 0)
    strongest = cv2.dilate(edges, np.ones((3, 3), np.uint8))
    far = ~(cv2.dilate(solid, np.ones((5, 5), np.uint8)) > 0)
    core = cv2.erode(solid, np.ones((5, 5), np.uint8)) > 0
    border = border_of(mask.shape)
    return Evidence(
        explained=_mean(near[far]),
        border_explained=_mean((explained.lit < 3)[border]),
        edge=_mean(strongest[outline] > 5),
        inner_ground=_mean(near[core]),
        at_border=_mean(mask[border]),
        dropped=min(1.0, parts.dropped_share),
        pieces=float(min(5, cv2.connectedComponents(solid, connectivity=8)[0] - 2)),
        spread=ground.spread,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 1.0


def agreement(mask: Area, others: Sequence[Area]) -> float:
    """Median intersection over union with the other masks; 0 without any."""
    shared = [float((mask & other).sum() / max(1, (mask | other).sum())) for other in others if other is not mask]
    return float(np.median(shared)) if shared else 0.0


def features_of(evidence: Evidence, mask: Area, masks: Sequence[Area]) -> dict[str, float]:
    """The numbers that the confidence is computed from, by name."""
    shared = sorted(float((mask & other).sum() / max(1, (mask | other).sum())) for other in masks if other is not mask)
    return {
        **asdict(evidence),
        "agreement": shared[-1] if shared else 0.0,
        "least_agreement": shared[0] if shared else 0.0,
        "size": float(mask.mean()),
    }


def confidence_of(evidence: Evidence, mask: Area, masks: Sequence[Area]) -> float:
    """0 to 1."""
    e = evidence
    return float(
        np.clip(
            e.explained * (0.4 + 0.6 * e.edge) * (1 - e.at_border) * (1 - 0.5 * e.dropped) * (0.7 + 0.3 * agreement(mask, masks)),
            0,
            1,
        )
    )
