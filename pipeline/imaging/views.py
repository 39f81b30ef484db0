"""A sheet that holds several cut-out views of one subject, taken apart. Knows nothing of how views are used."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableImage

SOLID_ALPHA = 128
LEAST_AREA = 0.05
"""A view's area as a share of the largest view's; anything smaller is a speck or a loose part."""
MARGIN_PX = 2


def split_sheet(sheet: NDArray[np.uint8], *, most: int) -> list[NDArray[np.uint8]]:
    """The views of a sheet in reading order: rows from the top, each from the left.

    Each connected opaque region is one view. Loose parts that lie inside a view's bounding box, such as an antenna's
    tip, stay with it.

    Args:
        sheet: (H, W, 4) uint8 RGBA, straight alpha.
        most: how many views are accepted.

    Returns:
        Views (h, w, 4) uint8, each with everything but itself transparent.

    Raises:
        UnreadableImage: no region is opaque, or there are more than `most` views.
    """
    solid = (sheet[..., 3] >= SOLID_ALPHA).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    labels, stats = np.asarray(labels, np.int32), np.asarray(stats, np.int32)
    if count <= 1:
        raise UnreadableImage("the sheet holds no view: every pixel is transparent")
    areas = stats[1:, cv2.CC_STAT_AREA]
    views = [k for k in range(1, count) if areas[k - 1] >= LEAST_AREA * areas.max()]
    if len(views) > most:
        raise UnreadableImage(f"the sheet holds {len(views)} views; at most {most} are accepted")
    boxes = {k: _box(stats[k]) for k in views}
    parts = {k: [k] for k in views}
    for k in set(range(1, count)) - set(views):
        middle = _middle(_box(stats[k]))
        for view, (left, top, right, bottom) in boxes.items():
            if left <= middle[0] < right and top <= middle[1] < bottom:
                parts[view].append(k)
                break
    return [_cut(sheet, labels, parts[k], boxes[k]) for k in _reading_order(boxes)]


Box = tuple[int, int, int, int]


def _box(stats: NDArray[np.int32]) -> Box:
    left, top = int(stats[cv2.CC_STAT_LEFT]), int(stats[cv2.CC_STAT_TOP])
    return left, top, left + int(stats[cv2.CC_STAT_WIDTH]), top + int(stats[cv2.CC_STAT_HEIGHT])


def _middle(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _reading_order(boxes: dict[int, Box]) -> list[int]:
    """Rows from the top: a view joins a row when its middle is beside the row's first view."""
    rows: list[list[int]] = []
    for k in sorted(boxes, key=lambda k: _middle(boxes[k])[1]):
        first = boxes[rows[-1][0]] if rows else None
        if first is not None and first[1] <= _middle(boxes[k])[1] < first[3]:
            rows[-1].append(k)
        else:
            rows.append([k])
    return [k for row in rows for k in sorted(row, key=lambda k: _middle(boxes[k])[0])]


def _cut(sheet: NDArray[np.uint8], labels: NDArray[np.int32], parts: list[int], box: Box) -> NDArray[np.uint8]:
    """One view with its soft edge: what touches its parts, and nothing of the neighbours."""
    left, top = max(0, box[0] - MARGIN_PX), max(0, box[1] - MARGIN_PX)
    window = (slice(top, box[3] + MARGIN_PX), slice(left, box[2] + MARGIN_PX))
    own = np.isin(labels[window], parts).astype(np.uint8)
    reach = cv2.dilate(own, np.ones((2 * MARGIN_PX + 1, 2 * MARGIN_PX + 1), np.uint8))
    view = sheet[window].copy()
    view[(np.asarray(reach) == 0) | ((labels[window] > 0) & (own == 0)), 3] = 0
    return view
