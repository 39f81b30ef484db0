"""Stage 1: images by URL, data URI, base64 and path."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import CallerError, DownloadFailed
from pipeline.imaging.background_removal import TRUSTED_CONFIDENCE
from pipeline.imaging.cutout import Separation
from pipeline.stages.intake import foreground_images, load_views, read_image
from schemas.request import parse_request
from tests.fakes.images import draw_figure, encode

FIGURE = draw_figure(96)
PNG = encode(FIGURE)
BASE64 = base64.b64encode(PNG).decode()


def no_network(url: str) -> bytes:
    raise AssertionError(f"asked for {url}")


def views_of(image: Any, *, multi_image: bool = False, allow_paths: bool = False) -> list[np.ndarray]:
    request = parse_request({"image": image, "multi_image": multi_image}).request
    return load_views(request, fetch=no_network, allow_paths=allow_paths)


@pytest.mark.parametrize(
    "image",
    [
        BASE64,
        BASE64.rstrip("="),
        "\n".join(BASE64[k : k + 76] for k in range(0, len(BASE64), 76)),
        base64.urlsafe_b64encode(PNG).decode(),
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;charset=x;BASE64,{BASE64.replace('+', '%2B')}",
    ],
)
def test_an_image_is_accepted_as_text_in_several_forms(image: str) -> None:
    (view,) = views_of(image)
    assert np.array_equal(view, FIGURE)


def test_a_url_is_downloaded_by_the_given_fetch() -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return PNG

    (view,) = load_views(parse_request({"image": "HTTPS://example.com/a.png"}).request, fetch=fetch)
    assert asked == ["HTTPS://example.com/a.png"] and np.array_equal(view, FIGURE)


def test_a_failed_download_is_passed_on() -> None:
    def fetch(url: str) -> bytes:
        raise DownloadFailed("example.com answered 404 instead of an image")

    with pytest.raises(DownloadFailed):
        load_views(parse_request({"image": "https://example.com/"}).request, fetch=fetch)


def test_a_path_is_read_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_bytes(PNG)
    assert np.array_equal(views_of(str(path), allow_paths=True)[0], FIGURE)
    with pytest.raises(CallerError, match="neither an http"):
        views_of(str(path))


def test_a_list_keeps_its_order_and_a_sheet_is_split() -> None:
    other = encode(draw_figure(120))
    views = views_of([BASE64, base64.b64encode(other).decode()], multi_image=True)
    assert [view.shape[0] for view in views] == [96, 120]
    sheet = base64.b64encode(encode(np.concatenate([FIGURE, FIGURE], axis=1))).decode()
    assert len(views_of(sheet, multi_image=True)) == 2
    assert len(views_of(sheet)) == 1


def test_a_sheet_has_as_many_views_as_angles() -> None:
    sheet = base64.b64encode(encode(np.concatenate([FIGURE, FIGURE], axis=1))).decode()

    def load(angles: str) -> int:
        request = parse_request({"image": sheet, "multi_image": True, "view_angles": angles}).request
        return len(load_views(request, fetch=no_network))

    assert load("front, back") == 2
    with pytest.raises(CallerError, match="view_angles must be one angle for each view, got 3 for 2"):
        load("front, back, top")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("data:image/png;base64", "without a comma"),
        ("not base64 at all!", "neither an http"),
        ("data:image/png;base64,@@@", "neither an http"),
        ("A", "neither an http"),
        ("A" * (30 * 2**20), "larger than 20 MiB"),
    ],
)
def test_text_that_is_not_an_image_is_refused(source: str, words: str) -> None:
    with pytest.raises(CallerError, match=words) as refused:
        read_image(source, fetch=no_network)
    assert len(str(refused.value)) < 200


def test_paths_without_a_readable_file_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(21 * 2**20)
    for source, words in [
        (str(tmp_path), "is a folder, not an image"),
        (str(tmp_path / "missing.png"), "does not exist"),
        ("x" * 5000, "its name is too long"),
        ("a\0b", "NUL"),
        (str(large), "larger than 20 MiB"),
    ]:
        with pytest.raises(CallerError, match=words):
            read_image(source, fetch=no_network, allow_paths=True)


def test_a_removed_background_has_a_confidence_and_one_that_was_there_has_none() -> None:
    opaque = base64.b64encode(encode(draw_figure(160, background=(230, 230, 230)))).decode()

    views = load_views(parse_request({"image": [BASE64, opaque], "multi_image": True}).request, fetch=no_network)

    assert views.confidences[0] is None
    assert views.confidences[1] is not None and views.confidences[1] >= TRUSTED_CONFIDENCE
    assert [cutout.was_removed for cutout in views.cutouts] == [False, True]
    assert views.warnings == ()


def test_a_low_confidence_names_the_image_and_what_to_do() -> None:
    def unsure(rgb: np.ndarray) -> Separation:
        return Separation(np.full(rgb.shape[:2], 255, np.uint8), 0.31)

    opaque = draw_figure(64, background=(230, 230, 230))
    one = foreground_images([opaque], multi_image=False, remover=unsure)
    several = foreground_images([FIGURE, opaque], multi_image=True, remover=unsure)

    assert len(one.warnings) == len(several.warnings) == 1
    assert one.warnings[0].startswith("The background of the image was removed with a confidence of 0.31")
    assert "the image 2 was removed" in several.warnings[0]
    assert "transparent PNG" in one.warnings[0] and "--remover" in one.warnings[0]


def test_remove_bg_false_keeps_the_whole_image_whatever_its_transparency() -> None:
    opaque = draw_figure(96, background=(230, 230, 230))
    glass = opaque.copy()
    glass[:, :48, 3] = 100

    scene, figure, half = foreground_images([opaque, FIGURE, glass], multi_image=True, remove_bg=False)

    assert np.array_equal(scene, opaque)
    assert (figure[..., 3] == 255).all() and figure.shape == FIGURE.shape
    assert (figure[0, 0] == 255).all()  # what was transparent is white
    assert half[0, 0].tolist() == [245, 245, 245, 255] and half[0, 90].tolist() == [230, 230, 230, 255]


def test_remove_bg_false_says_which_cut_outs_are_not_kept() -> None:
    opaque = draw_figure(64, background=(230, 230, 230))
    views = foreground_images([opaque, FIGURE], multi_image=True, remove_bg=False)

    assert len(views.warnings) == 1 and "the image 2 is ignored, because remove_bg is false" in views.warnings[0]
    assert not any(cutout.was_removed for cutout in views.cutouts)
    assert foreground_images([opaque], multi_image=False, remove_bg=False).warnings == ()


def test_remove_bg_false_keeps_each_rectangle_of_a_sheet() -> None:
    photo = draw_figure(80, background=(230, 230, 230))
    sheet = np.zeros((100, 200, 4), np.uint8)
    sheet[10:90, 10:90] = photo
    sheet[10:90, 110:190] = photo

    views = foreground_images([sheet], multi_image=True, remove_bg=False)

    assert len(views) == 2 and all(np.array_equal(view, photo) for view in views)
    assert views.warnings == ()
    assert len(foreground_images([photo], multi_image=True, remove_bg=False)) == 1


def test_the_request_decides_whether_the_background_is_removed() -> None:
    opaque = base64.b64encode(encode(draw_figure(96, background=(230, 230, 230)))).decode()

    (kept,) = load_views(parse_request({"image": opaque, "remove_bg": "no"}).request, fetch=no_network)
    (removed,) = load_views(parse_request({"image": opaque}).request, fetch=no_network)

    assert (kept[..., 3] == 255).all() and (removed[..., 3] == 0).mean() > 0.4
