"""Models of what a background looks like without the subject, each fitted to the image's border."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Rgb = NDArray[np.uint8]
Field = NDArray[np.float32]
Area = NDArray[np.bool_]

BORDER_SHARE = 0.025  # width of the border that is assumed to be background, relative to the longer side
MAX_SAMPLES = 4000  # pixels that a fit reads
LEAST_SPREAD, MOST_SPREAD = 3.0, 25.0  # levels; a flat background has a spread too, a texture not any
LEAST_CLUSTER = 0.08  # share of the border; a smaller cluster may be the subject, where it touches the border
CALM_GRADIENT, CALM_NOISE = 0.1, 0.5  # levels per pixel that noise alone makes of an area without shading
MOST_NOISE = 2.5  # levels; on a textured ground nothing can be told to be flat
THING_SHARE = 0.15  # of the height; a shorter thing at a side of the image is no part of a wall or table
THING_LEVELS = 25.0  # from the colours above and below it; planks and gradients differ by less
LEAST_SHARP = 1.2  # levels per pixel by which an edge is steeper than at three times the scale
DARKEST_SHADOW, BRIGHTEST_SHADOW = 0.3, 1.05  # brightness of a shadowed ground relative to the lit one
LIT, SHADOWED = 2.5, 2.2  # distances up to which a pixel counts as ground, in spreads
TEXTURE_PX = 7  # working pixels of the window in which texture is measured
LEAST_TEXTURE = 0.05  # of the border, in log luminance
SMOOTH_SHARE = 0.45  # of the border's texture up to which an area is smoother than that ground
LEAST_SMOOTH_PX = 25  # working pixels; a smaller patch occurs in a texture
MOST_SMOOTH_BORDER = 0.01  # of the border; a ground with more smooth areas, such as planks, has them everywhere


@dataclass(frozen=True, eq=False)
class Ground:
    """The background as one model predicts it.

    Attributes:
        colours: (h, w, 3) predicted sRGB, 1 to 255.
        spread: typical distance of a background pixel from its prediction, in levels.
    """

    colours: Field
    spread: float


@dataclass(frozen=True, eq=False)
class Explained:
    """How well a ground explains an image; distances are (h, w), in spreads.

    Attributes:
        lit: distance from the predicted colour.
        shadowed: distance from the predicted colour at any brightness that a shadow has; large beyond.
        area: (h, w) what is connected to the border through pixels that the ground explains, without a sharp edge.
        candidates: (h, w) pixels that the ground explains, connected or not.
        smooth: (h, w) pixels that are too smooth to be ground.
    """

    lit: Field
    shadowed: Field
    area: Area
    candidates: Area
    smooth: Area


def border_of(shape: tuple[int, int], *, bottom: bool = True) -> Area:
    """The band along the border; the subject and its shadow often touch the bottom."""
    width = max(2, round(BORDER_SHARE * max(shape)))
    band = np.ones(shape, bool)
    band[width : -width if bottom else None, width:-width] = False
    return band


def smooth_ground(image: Rgb, edge_limit: float) -> Ground:
    """A polynomial in x and y per channel: degree 2 on three sides of the border, then 3 and 4 on what it explains.

    Gradients and vignettes are smooth; the robust weights ignore what else touches the border.
    """
    values = image.astype(np.float32)
    band = border_of(image.shape[:2], bottom=False)
    ground = _ground(values, _polynomial(values, band, degree=2), band)
    for degree in (3, 4):
        explained = explain(image, ground, edge_limit)
        area = explained.area & (explained.lit < LIT)  # without shadows, which would bend the polynomial
        if area.mean() < 0.1:
            break
        ground = _ground(values, _polynomial(values, area, degree=degree), area)
    return ground


def row_ground(image: Rgb) -> Ground:
    """Each row blended from its two ends: a wall above a table, and gradients."""
    values = image.astype(np.float32)
    height, width = image.shape[:2]
    strip = max(2, round(0.03 * width))
    left, right = (_side_colours(side) for side in (values[:, :strip], values[:, -strip:]))
    share = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    return _ground(values, left * (1 - share) + right * share, border_of((height, width)))


def _side_colours(side: Field) -> Field:
    """Colour of each row at one side of the image, without the things that stand there: (h, n, 3) -> (h, 1, 3).

    A median along the side keeps the edge between wall and table, and drops whatever is shorter than half of its reach.
    """
    rows = np.median(side, axis=1).astype(np.float32)
    reach = round(THING_SHARE * len(rows))
    padded = np.pad(rows, ((reach, reach), (0, 0)), mode="edge")
    calm = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0), axis=-1)
    is_thing = np.abs(rows - calm).max(axis=1, keepdims=True) > THING_LEVELS
    colours = np.where(is_thing, calm, rows).astype(np.float32).reshape(-1, 1, 3)
    return np.asarray(cv2.blur(colours, (1, 3)), np.float32).reshape(-1, 1, 3)


def palette_ground(image: Rgb) -> Ground:
    """The nearest of up to four colours of the border: textures, and several plain areas."""
    values = image.astype(np.float32)
    band = border_of(image.shape[:2])
    border = values[band]
    border = border[:: max(1, len(border) // MAX_SAMPLES)]
    clusters = min(4, len(np.unique(border, axis=0)))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
    cv2.setRNGSeed(0)
    _, labels, centres = cv2.kmeans(border, clusters, np.zeros((0, 0), np.int32), criteria, 3, cv2.KMEANS_PP_CENTERS)
    shares = np.bincount(np.asarray(labels).ravel(), minlength=clusters) / len(border)
    kept = np.asarray(centres, np.float32)[shares > LEAST_CLUSTER]
    distances = np.stack([((values - centre) ** 2).sum(axis=2) for centre in kept])
    return _ground(values, kept[distances.argmin(axis=0)], band)


def _ground(values: Field, colours: NDArray[np.floating], area: Area) -> Ground:
    colours = np.clip(colours, 1, 255).astype(np.float32)
    residual = np.sqrt(((values - colours) ** 2).sum(axis=2))[area]
    return Ground(colours, float(np.clip(1.48 * np.median(residual), LEAST_SPREAD, MOST_SPREAD)))


def _polynomial(values: Field, area: Area, *, degree: int) -> Field:
    """Fit by iteratively reweighted least squares with Cauchy weights: (h, w, 3) -> (h, w, 3)."""
    height, width = area.shape
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    terms = np.stack([x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)], axis=-1)
    places = np.flatnonzero(area)
    places = places[:: len(places) // MAX_SAMPLES + 1]
    matrix, targets = terms.reshape(-1, terms.shape[-1])[places], values.reshape(-1, 3)[places]
    weights, factors = np.ones((len(places), 1), np.float32), np.zeros((terms.shape[-1], 3), np.float32)
    damping = 1e-2 * np.eye(terms.shape[-1], dtype=np.float32)
    for _ in range(8):
        weighted = matrix * weights
        factors = np.linalg.solve(weighted.T @ matrix + damping, weighted.T @ targets)
        residual = np.sqrt(((targets - matrix @ factors) ** 2).sum(axis=1, keepdims=True))
        weights = 1 / (1 + (residual / (2 * max(2.0, 1.48 * float(np.median(residual))))) ** 2)
    return np.asarray(terms @ factors, np.float32)


def smoother_than_ground(image: Rgb) -> Area:
    """Areas that are much smoother than a ground of even texture, such as a green leg on grass: (h, w, 3) -> (h, w).

    In the logarithm of the luminance a shadow shifts a texture and does not weaken it. Empty where the border is smooth
    or its texture uneven.
    """
    values = np.log(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32) + 8)
    window = (TEXTURE_PX, TEXTURE_PX)
    mean = np.asarray(cv2.boxFilter(values, -1, window), np.float32)
    variance = np.asarray(cv2.boxFilter(values**2, -1, window), np.float32) - mean**2
    texture = np.sqrt(np.maximum(variance, 0))
    border, nothing = border_of(image.shape[:2]), np.zeros(image.shape[:2], bool)
    typical = float(np.median(texture[border]))
    if typical < LEAST_TEXTURE:
        return nothing
    smooth = cv2.morphologyEx((texture < SMOOTH_SHARE * typical).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3)))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=8)
    large = np.flatnonzero(np.asarray(stats)[:, cv2.CC_STAT_AREA] >= LEAST_SMOOTH_PX)
    # The window measures an edge as texture: the area reaches half of it further.
    reach = np.ones((TEXTURE_PX // 2, TEXTURE_PX // 2), np.uint8)
    found = cv2.dilate(np.isin(np.asarray(labels), large[large > 0]).astype(np.uint8), reach) > 0
    return nothing if found[border].mean() > MOST_SMOOTH_BORDER else found


def explain(image: Rgb, ground: Ground, edge_limit: float, *, smooth: Area | None = None) -> Explained:
    """Compare an image with a ground.

    A shadow scales all channels alike and has soft edges (Horprasert et al. 1999, brightness and chromaticity
    distortion), so explained pixels are followed inwards from the border until an edge.

    Args:
        edge_limit: levels per pixel from which the edges of the residual stop the ground.
        smooth: (h, w) what is too smooth to be ground, as `smoother_than_ground` found it.
    """
    values, colours = image.astype(np.float32), ground.colours
    square = (colours**2).sum(axis=2)
    brightness = (values * colours).sum(axis=2) / square
    lit = np.sqrt(((values - colours) ** 2).sum(axis=2)) / ground.spread
    off_colour = np.sqrt(((values - brightness[..., None] * colours) ** 2).sum(axis=2)) / ground.spread
    too_bright = np.maximum(0, brightness - 1) * np.sqrt(square) / ground.spread
    shadowed = np.maximum(off_colour / np.clip(brightness, 0.45, 1), too_bright)
    shadowed = np.where(brightness > DARKEST_SHADOW - 0.02, shadowed, 9).astype(np.float32)
    lit, shadowed = (np.asarray(cv2.blur(each, (3, 3)), np.float32) for each in (lit, shadowed))
    residual = values - colours
    edges = edge_strength(residual)
    # A soft shadow is as steep at a coarser scale; the outline of a pale subject on a pale ground is not.
    sharpness = edges - edge_strength(np.asarray(cv2.GaussianBlur(residual, (0, 0), 3.0), np.float32))
    sharp_limit = max(LEAST_SHARP, 0.5 + 1.1 * noise_of(image))
    in_shadow = (shadowed < SHADOWED) & (brightness > DARKEST_SHADOW) & (brightness < BRIGHTEST_SHADOW)
    candidates = ((lit < LIT) | in_shadow) & (edges < edge_limit)
    candidates |= ((lit < 1.5) | in_shadow & (shadowed < 1.0)) & (edges < 1.6 * edge_limit)
    candidates &= sharpness < sharp_limit
    candidates |= _edge_of_ground(values, ground)
    smooth = np.zeros(lit.shape, bool) if smooth is None else smooth
    candidates &= ~smooth
    area = touching_border(candidates)
    for _ in range(2):  # an edge is some pixels wide, and its outer side is ground
        grown = cv2.dilate(area.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        area = area | (grown & (lit < SHADOWED))
    return Explained(lit, shadowed, area, candidates, smooth)


def _edge_of_ground(values: Field, ground: Ground) -> Area:
    """Pixels beside an edge of the ground itself, such as that of a table, whose colour is found within two pixels."""
    found = edge_strength(ground.colours) > 4
    if not found.any():
        return found
    distance = np.full(found.shape, np.inf, np.float32)
    for shift in range(-2, 3):
        shifted = np.roll(ground.colours, shift, axis=0)
        blend = (shifted + ground.colours) / 2
        for colours in (shifted, blend):
            distance = np.minimum(distance, np.sqrt(((values - colours) ** 2).sum(axis=2)))
    return (cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & (distance < LIT * ground.spread)


def edge_strength(values: Field | Rgb) -> Field:
    """Length of the colour gradient in levels per pixel: (h, w, 3) -> (h, w)."""
    calm = cv2.GaussianBlur(values.astype(np.float32), (0, 0), 1.0)
    across, down = (cv2.Scharr(calm, cv2.CV_32F, dx, 1 - dx, scale=1 / 32) for dx in (1, 0))
    return np.sqrt((across**2 + down**2).sum(axis=2)).astype(np.float32)


def noise_of(image: Rgb) -> float:
    """Standard deviation of the noise in levels, from the Laplacian's median; its gain on white noise is 4.47."""
    laplacian = cv2.Laplacian(image.astype(np.float32).mean(axis=2), cv2.CV_32F, ksize=1)
    return 1.48 * float(np.median(np.abs(laplacian))) / 4.47


def without_shading(edges: Field, noise: float) -> Area:
    """Where an image changes no more than its noise: (h, w) -> (h, w); nowhere in a noisy one."""
    return np.asarray(edges < CALM_GRADIENT + CALM_NOISE * noise) & (noise < MOST_NOISE)


def touching_border(area: Area) -> Area:
    """The parts of an area that are connected to the image's border: (h, w) -> (h, w)."""
    _, labels = cv2.connectedComponents(area.astype(np.uint8), connectivity=4)
    labels = np.asarray(labels)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return area & np.isin(labels, border[border > 0])
