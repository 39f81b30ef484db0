"""Splitting a sheet into its views."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import UnreadableImage
from pipeline.imaging.views import split_sheet


def sheet_of(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (120, 300)) -> NDArray[np.uint8]:
    """A sheet with one filled box (left, top, right, bottom) a view, each with its own red value: 10, 20, …"""
    sheet = np.zeros((*size, 4), np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        sheet[top:bottom, left:right] = (10 * number, 0, 0, 255)
    return sheet


def reds(views: list[NDArray[np.uint8]]) -> list[int]:
    return [int(view[view[..., 3] >= 128][0, 0]) for view in views]


def test_views_are_in_reading_order_even_if_rows_are_not_level() -> None:
    sheet = sheet_of((200, 5, 240, 50), (10, 12, 50, 55), (100, 8, 150, 52), (120, 65, 160, 110), (20, 70, 60, 115))
    assert reds(split_sheet(sheet, most=8)) == [20, 30, 10, 50, 40]


def test_a_view_contains_nothing_of_its_neighbours() -> None:
    sheet = sheet_of((10, 10, 60, 60), (61, 10, 110, 60))
    first, second = split_sheet(sheet, most=8)
    assert set(first[first[..., 3] > 0][:, 0]) == {10} and set(second[second[..., 3] > 0][:, 0]) == {20}
    assert (first[..., 3] >= 128).sum() == 2500


def test_small_regions_are_no_views_but_a_detached_part_stays_with_its_view() -> None:
    sheet = sheet_of((10, 10, 60, 60), (100, 10, 150, 60), (280, 100, 283, 103))
    sheet[20:40, 20:50] = 0
    sheet[25:30, 30:35] = (10, 0, 0, 255)  # an island inside the first view
    views = split_sheet(sheet, most=8)
    assert len(views) == 2
    assert views[0][..., 3].any() and (views[0][15:20, 20:25, 3] == 255).any()


def test_a_view_keeps_its_soft_edge() -> None:
    sheet = sheet_of((10, 10, 60, 60))
    sheet[10:60, 9] = (10, 0, 0, 100)
    assert (split_sheet(sheet, most=8)[0][..., 3] == 100).sum() == 50


def test_too_many_views_and_none_are_refused() -> None:
    nine = sheet_of(*((10 + 30 * k, 10, 30 + 30 * k, 40) for k in range(9)))
    with pytest.raises(UnreadableImage, match="the sheet has 9 views; at most 8 are accepted"):
        split_sheet(nine, most=8)
    with pytest.raises(UnreadableImage, match="has no view"):
        split_sheet(np.zeros((20, 20, 4), np.uint8), most=8)
