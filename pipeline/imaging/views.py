"""Splits a sheet with several views of one subject into images. Knows nothing of how views are used."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnreadableImage

SOLID_ALPHA = 128
LEAST_AREA = 0.05
"""Least area of a view relative to the largest view; a smaller region is noise or a detached part."""
MARGIN_PX = 2
"""Width of the soft edge around a region that is kept with it."""


def split_sheet(sheet: NDArray[np.uint8], *, most: int) -> list[NDArray[np.uint8]]:
    """Split a sheet into its views, in reading order: rows from the top, each from the left.

    Each connected opaque region is one view. A detached part inside a view's bounding box, such as an antenna's tip,
    belongs to that view.

    Args:
        sheet: (H, W, 4) uint8 RGBA, straight alpha.
        most: largest number of views accepted.

    Returns:
        Views (h, w, 4) uint8 RGBA, transparent outside of the view.

    Raises:
        UnreadableImage: no region is opaque, or there are more than `most` views.
    """
    solid = (sheet[..., 3] >= SOLID_ALPHA).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    labels, stats = np.asarray(labels, np.int32), np.asarray(stats, np.int32)
    if count <= 1:
        raise UnreadableImage("the sheet has no view: every pixel is transparent")
    areas = stats[1:, cv2.CC_STAT_AREA]
    views = [k for k in range(1, count) if areas[k - 1] >= LEAST_AREA * areas.max()]
    if len(views) > most:
        raise UnreadableImage(f"the sheet has {len(views)} views; at most {most} are accepted")
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
    """Numbers of the views by row from the top; a view is in a row if its centre is level with the row's first view."""
    rows: list[list[int]] = []
    for k in sorted(boxes, key=lambda k: _middle(boxes[k])[1]):
        first = boxes[rows[-1][0]] if rows else None
        if first is not None and first[1] <= _middle(boxes[k])[1] < first[3]:
            rows[-1].append(k)
        else:
            rows.append([k])
    return [k for row in rows for k in sorted(row, key=lambda k: _middle(boxes[k])[0])]


def _cut(sheet: NDArray[np.uint8], labels: NDArray[np.int32], parts: list[int], box: Box) -> NDArray[np.uint8]:
    """Crop one view with its soft edge and make its neighbours transparent: (H, W, 4) -> (h, w, 4)."""
    left, top = max(0, box[0] - MARGIN_PX), max(0, box[1] - MARGIN_PX)
    window = (slice(top, box[3] + MARGIN_PX), slice(left, box[2] + MARGIN_PX))
    own = np.isin(labels[window], parts).astype(np.uint8)
    reach = cv2.dilate(own, np.ones((2 * MARGIN_PX + 1, 2 * MARGIN_PX + 1), np.uint8))
    view = sheet[window].copy()
    view[(np.asarray(reach) == 0) | ((labels[window] > 0) & (own == 0)), 3] = 0
    return view
