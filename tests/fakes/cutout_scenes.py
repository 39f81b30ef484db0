"""Subjects with known masks and grounds to paste them on, drawn by a script: the measuring set of background removal.

The same seed gives the same pixels. Knows nothing of how a background is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

GroundName = Literal["plain", "wall", "gradient", "clutter", "shadow", "vignette", "wood", "grass"]
GROUNDS: tuple[GroundName, ...] = ("plain", "wall", "gradient", "clutter")
HARD_GROUNDS: tuple[GroundName, ...] = ("shadow", "vignette", "wood", "grass")

Points = list[tuple[float, float, float]]
"""Corners of a chain: x and y in 0 to 1 of the subject's square, and the radius there."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """A chain of capsules in one colour; parts drawn later lie in front where their depth is equal.

    Attributes:
        depth: of its axis towards the viewer.
        stripes: a second colour in bands, if there is one.
    """

    points: Points
    colour: Colour
    depth: float = 0.0
    stripes: Colour | None = None


def _ring(x: float, y: float, radius: float, thickness: float, *, first: float = 0.0, last: float = 1.0) -> Points:
    turns = np.linspace(first, last, 25) * 2 * np.pi
    return [(x + radius * float(np.cos(t)), y + radius * float(np.sin(t)), thickness) for t in turns]


DARK, WHITE, STEEL, WOOD, LEAF = (45, 40, 42), (236, 234, 230), (150, 156, 165), (126, 84, 52), (70, 120, 60)
SUBJECTS: dict[str, list[Part]] = {
    "horse": [
        Part([(0.30, 0.45, 0.13), (0.66, 0.45, 0.14)], (150, 82, 45)),
        Part([(0.28, 0.42, 0.09), (0.16, 0.20, 0.06)], (150, 82, 45)),
        Part([(0.15, 0.18, 0.06), (0.05, 0.27, 0.035)], (140, 76, 42), 0.05),
        *(
            Part([(x, 0.52, 0.045), (x + 0.01, 0.75, 0.028), (x, 0.96, 0.022)], (120, 62, 36), depth)
            for x, depth in ((0.25, 0.1), (0.34, -0.1), (0.64, -0.1), (0.73, 0.1))
        ),
        Part([(0.78, 0.40, 0.04), (0.90, 0.55, 0.045), (0.91, 0.80, 0.02)], DARK),
        Part([(0.17, 0.14, 0.03), (0.27, 0.30, 0.035)], DARK, 0.08),
    ],
    "bust": [
        Part([(0.5, 0.24, 0.17), (0.5, 0.34, 0.14)], WHITE),
        Part([(0.5, 0.45, 0.09), (0.5, 0.55, 0.1)], WHITE),
        Part([(0.28, 0.72, 0.12), (0.5, 0.66, 0.15), (0.72, 0.72, 0.12)], WHITE),
        Part([(0.36, 0.93, 0.05), (0.64, 0.93, 0.05)], (205, 203, 198), 0.1),
        Part([(0.5, 0.8, 0.1), (0.5, 0.9, 0.1)], WHITE),
    ],
    "lamp": [
        Part([(0.3, 0.93, 0.03), (0.7, 0.93, 0.03)], STEEL),
        Part([(0.5, 0.92, 0.018), (0.38, 0.6, 0.018), (0.6, 0.3, 0.018)], STEEL),
        Part([(0.6, 0.3, 0.05), (0.74, 0.4, 0.12)], (198, 60, 48), 0.1),
    ],
    "tiger": [
        Part([(0.28, 0.48, 0.14), (0.68, 0.48, 0.13)], (222, 140, 52), 0.0, DARK),
        Part([(0.17, 0.33, 0.13)], (226, 146, 60), 0.1, DARK),
        Part([(0.14, 0.38, 0.06)], WHITE, 0.2),
        *(
            Part([(x, 0.55, 0.055), (x, 0.9, 0.04)], (216, 136, 50), depth, DARK)
            for x, depth in ((0.24, 0.1), (0.34, -0.1), (0.62, -0.1), (0.73, 0.1))
        ),
        Part([(0.8, 0.44, 0.03), (0.93, 0.3, 0.028), (0.9, 0.14, 0.025)], (222, 140, 52), 0.0, DARK),
    ],
    "plant": [
        Part([(0.42, 0.8, 0.1), (0.58, 0.8, 0.1)], (178, 92, 60)),
        Part([(0.42, 0.9, 0.07), (0.58, 0.9, 0.07)], (168, 86, 56)),
        *(
            Part([(0.5, 0.72, 0.018), ((0.5 + x) / 2, y + 0.1, 0.03), (x, y, 0.012)], LEAF, 0.05)
            for x, y in ((0.14, 0.4), (0.3, 0.16), (0.5, 0.06), (0.7, 0.18), (0.86, 0.42), (0.22, 0.6), (0.8, 0.62))
        ),
    ],
    "pot": [
        Part([(0.42, 0.62, 0.22), (0.56, 0.62, 0.22)], (92, 124, 168)),
        Part([(0.49, 0.36, 0.03)], (80, 108, 150), 0.1),
        Part([(0.40, 0.42, 0.03), (0.58, 0.42, 0.03)], (80, 108, 150), 0.2),
        Part(_ring(0.80, 0.60, 0.12, 0.022), (92, 124, 168), -0.1),
        Part([(0.22, 0.64, 0.05), (0.06, 0.46, 0.025)], (92, 124, 168)),
    ],
    "wheel": [
        Part(_ring(0.5, 0.5, 0.42, 0.03), DARK),
        *(
            Part([(0.5, 0.5, 0.014), (0.5 + 0.4 * np.cos(a), 0.5 + 0.4 * np.sin(a), 0.012)], STEEL)
            for a in np.linspace(0, 2 * np.pi, 9)[:-1]
        ),
        Part([(0.5, 0.5, 0.07)], (190, 170, 60), 0.1),
    ],
    "knight": [
        Part([(0.5, 0.18, 0.09)], STEEL),
        Part([(0.5, 0.36, 0.13), (0.5, 0.52, 0.11)], (120, 126, 138)),
        Part([(0.36, 0.3, 0.06), (0.22, 0.48, 0.045), (0.26, 0.58, 0.035)], STEEL, 0.05),
        Part([(0.64, 0.3, 0.06), (0.78, 0.48, 0.045), (0.74, 0.56, 0.035)], STEEL, 0.05),
        Part([(0.44, 0.6, 0.065), (0.42, 0.92, 0.05)], DARK),
        Part([(0.56, 0.6, 0.065), (0.58, 0.92, 0.05)], DARK),
        Part([(0.26, 0.78, 0.012), (0.24, 0.08, 0.012)], (196, 198, 205), 0.1),
        Part([(0.76, 0.52, 0.12)], (150, 40, 40), 0.1, (214, 180, 80)),
    ],
    "palm": [
        Part([(0.46, 0.95, 0.045), (0.5, 0.6, 0.035), (0.55, 0.32, 0.03)], WOOD),
        *(
            Part([(0.55, 0.3, 0.03), (0.55 + dx / 2, 0.18, 0.035), (0.55 + dx, y, 0.01)], (64, 132, 72), 0.05)
            for dx, y in ((-0.4, 0.42), (-0.42, 0.2), (-0.15, 0.06), (0.2, 0.06), (0.38, 0.22), (0.36, 0.46))
        ),
    ],
    "stool": [
        Part([(0.24, 0.3, 0.05), (0.76, 0.3, 0.05)], (188, 148, 96), 0.1),
        *(
            Part([(x, 0.34, 0.03), (x + dx, 0.94, 0.02)], (160, 120, 76))
            for x, dx in ((0.28, -0.08), (0.72, 0.08), (0.42, -0.02), (0.58, 0.02))
        ),
        Part([(0.24, 0.7, 0.014), (0.76, 0.7, 0.014)], (160, 120, 76), -0.05),
    ],
    "gnome": [
        Part([(0.5, 0.55, 0.2), (0.5, 0.7, 0.2)], (206, 162, 132)),
        Part([(0.5, 0.3, 0.11)], (226, 186, 160)),
        Part([(0.5, 0.22, 0.1), (0.5, 0.04, 0.015)], (150, 40, 44), 0.05),
        Part([(0.34, 0.5, 0.07), (0.6, 0.62, 0.06), (0.84, 0.58, 0.05)], (92, 96, 44), 0.2),
        Part([(0.42, 0.82, 0.07), (0.38, 0.95, 0.06)], (92, 96, 44), 0.1),
    ],
}


def draw_subject(name: str, side: int = 512) -> NDArray[np.uint8]:
    """Draw one of `SUBJECTS` as shaded capsules: (side, side, 4) RGBA, straight alpha."""
    big = 2 * side
    y, x = (np.mgrid[:big, :big] + np.float32(0.5)) / big
    colours = np.zeros((big, big, 3), np.float32)
    nearest = np.full((big, big), -np.inf, np.float32)
    light = np.array([-0.4, -0.6, 0.69], np.float32)
    rng = np.random.default_rng(sum(name.encode()))
    grain = cv2.GaussianBlur(rng.normal(0, 1, (big, big)).astype(np.float32), (0, 0), 2.5) * 22
    for part in SUBJECTS[name]:
        for start, end in zip(part.points, part.points[1:] or part.points, strict=False):
            along, height, normal = _capsule(x, y, start, end)
            is_front = (height >= 0) & (height + part.depth > nearest)
            shade = 0.42 + 0.62 * np.clip(sum(n * c for n, c in zip(normal, light, strict=True)), 0, 1)
            colour = np.asarray(part.colour, np.float32)[None, None]
            if part.stripes is not None:
                band = np.sin(70 * along * max(0.15, abs(end[0] - start[0]) + abs(end[1] - start[1]))) > 0.45
                colour = np.where(band[..., None], np.asarray(part.stripes, np.float32), colour)
            shine = 60 * np.clip(normal[2] * 0.7 - normal[0] * 0.4 - normal[1] * 0.6, 0, 1) ** 24
            pixels = colour * shade[..., None] + grain[..., None] + shine[..., None]
            colours[is_front], nearest[is_front] = pixels[is_front], (height + part.depth)[is_front]
    solid = (nearest > -np.inf).astype(np.float32)
    alpha = cv2.resize(solid, (side, side), interpolation=cv2.INTER_AREA)
    premultiplied = cv2.resize(np.clip(colours, 0, 255) * solid[..., None], (side, side), interpolation=cv2.INTER_AREA)
    straight = premultiplied / np.maximum(alpha, 1e-3)[..., None]
    return np.dstack([np.clip(straight, 0, 255), 255 * alpha]).round().astype(np.uint8)


def _capsule(
    x: NDArray[np.float32], y: NDArray[np.float32], start: tuple[float, float, float], end: tuple[float, float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[NDArray[np.float32], ...]]:
    """Position along a capsule in 0 to 1, height above its axis (negative outside), and the unit normal."""
    (x0, y0, r0), (x1, y1, r1) = start, end
    length_2 = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
    along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length_2, 0, 1)
    dx, dy, radius = x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0), r0 + along * (r1 - r0)
    height_2 = radius**2 - dx**2 - dy**2
    height = np.where(height_2 >= 0, np.sqrt(np.maximum(height_2, 0)), -np.float32(1))
    return along, height, (dx / radius, dy / radius, np.maximum(height, 0) / radius)


@dataclass(frozen=True, eq=False)
class Scene:
    """A subject pasted on a ground.

    Attributes:
        image: (H, W, 4) uint8, opaque.
        mask: (H, W) bool, where the subject is.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def make_scene(
    subject: NDArray[np.uint8], ground: GroundName, *, seed: int, size: tuple[int, int] = (768, 576)
) -> Scene:
    """Paste a cut-out on a ground with a soft shadow at its feet; the plain ground has no shadow.

    Args:
        subject: (h, w, 4) RGBA.
        seed: draws the ground, and the size and place of the subject.
        size: (W, H) of the scene in pixels.
    """
    rng = np.random.default_rng([seed, *ground.encode()])
    width, height = size
    cut = _trimmed(subject)
    scale = min(rng.uniform(0.68, 0.84) * height / cut.shape[0], 0.8 * width / cut.shape[1])
    cut = _resized(cut, scale)
    top = round(height * 0.93 - cut.shape[0] - rng.uniform(0, 0.06) * height)
    left = round((width - cut.shape[1]) / 2 + rng.uniform(-0.06, 0.06) * width)
    left = int(np.clip(left, 0, width - cut.shape[1]))
    alpha = np.zeros((height, width), np.float32)
    colours = np.zeros((height, width, 3), np.float32)
    box = (slice(max(top, 0), max(top, 0) + cut.shape[0]), slice(left, left + cut.shape[1]))
    alpha[box], colours[box] = cut[..., 3] / 255.0, cut[..., :3]
    base = _GROUNDS[ground](rng, width, height)
    if ground != "plain":
        base *= 1 - _shadow(alpha, strength=rng.uniform(0.3, 0.55))[..., None]
    noise = rng.normal(0, rng.uniform(1, 3), (height, width, 1)) + rng.normal(0, 1, (height, width, 3))
    pixels = colours * alpha[..., None] + base * (1 - alpha[..., None]) + noise
    rgb = np.clip(pixels, 0, 255).round().astype(np.uint8)
    return Scene(np.dstack([rgb, np.full((height, width), 255, np.uint8)]), alpha >= 0.5)


def _trimmed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = (np.flatnonzero((image[..., 3] >= 128).any(axis=axis)) for axis in (1, 0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _resized(image: NDArray[np.uint8], scale: float) -> NDArray[np.float32]:
    """Resize with premultiplied alpha, so that hidden colours do not leak into the edge."""
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    alpha = image[..., 3:].astype(np.float32) / 255
    premultiplied = np.dstack([image[..., :3] * alpha, 255 * alpha])
    small = np.clip(cv2.resize(premultiplied, size, interpolation=interpolation), 0, 255)
    small[..., :3] /= np.maximum(small[..., 3:] / 255, 1e-3)
    return np.clip(small, 0, 255)


def _shadow(alpha: NDArray[np.float32], *, strength: float) -> NDArray[np.float32]:
    """A soft ellipse under the subject: (H, W) in 0 to 1."""
    rows, columns = np.flatnonzero((alpha > 0.5).any(axis=1)), np.flatnonzero((alpha > 0.5).any(axis=0))
    height, width = alpha.shape
    half = (columns[-1] - columns[0]) * 0.55
    y, x = np.mgrid[:height, :width].astype(np.float32)
    centre_x, centre_y = (columns[0] + columns[-1]) / 2 + 0.1 * half, rows[-1] - 0.02 * height
    inside = ((x - centre_x) / half) ** 2 + ((y - centre_y) / (0.28 * half)) ** 2 < 1
    return np.asarray(cv2.GaussianBlur(inside.astype(np.float32) * strength, (0, 0), 0.022 * width), np.float32)


def _colour(rng: np.random.Generator, low: int = 40, high: int = 240) -> NDArray[np.float32]:
    return rng.uniform(low, high, 3).astype(np.float32)


def _plain(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    grey = rng.uniform(150, 255)
    colour = np.full(3, grey) + rng.uniform(-25, 25, 3) * (rng.uniform() < 0.6)
    return np.broadcast_to(np.clip(colour, 0, 252).astype(np.float32), (height, width, 3)).copy()


def _wall(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """A bright wall above a darker table."""
    wall = np.clip(np.array([190, 175, 150]) + rng.uniform(-35, 35, 3), 0, 250).astype(np.float32)
    table = np.clip(np.array([110, 72, 46]) + rng.uniform(-30, 30, 3), 0, 250).astype(np.float32)
    base = np.broadcast_to(wall, (height, width, 3)).copy()
    base[round(height * rng.uniform(0.62, 0.75)) :] = table
    return np.asarray(cv2.GaussianBlur(base, (0, 0), 1.0), np.float32)


def _gradient(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Two colours, blended along a random direction."""
    first, second = _colour(rng, 90, 220), _colour(rng, 90, 220)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)
    share = np.clip(along / 1.1 + 0.5, 0, 1)[..., None].astype(np.float32)
    return first * (1 - share) + second * share


def _clutter(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """A wall and a table, with boxes and discs of many colours in front of them."""
    base = _wall(rng, width, height)
    for _ in range(int(rng.integers(9, 15))):
        x, y = rng.uniform(0.02, 0.98) * width, rng.uniform(0.05, 0.8) * height
        w, h = rng.uniform(0.02, 0.09) * width, rng.uniform(0.03, 0.16) * height
        colour = tuple(float(c) for c in _colour(rng, 20, 240))
        if rng.uniform() < 0.75:
            cv2.rectangle(base, (round(x - w / 2), round(y - h / 2)), (round(x + w / 2), round(y + h / 2)), colour, -1)
        else:
            cv2.circle(base, (round(x), round(y)), round(w / 2 + 2), colour, -1, cv2.LINE_AA)
    return base


def _soft_white(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """White or grey without any structure; the shadow is the only difficulty."""
    return np.full((height, width, 3), rng.choice([252.0, 240.0, 200.0, 150.0]), np.float32)


def _vignette(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    radius = np.hypot((x - width / 2) / width, (y - height / 2) / height) / 0.7071
    colour = np.full(3, rng.uniform(150, 235)) + rng.uniform(-20, 20, 3)
    return (colour * (1 - rng.uniform(0.35, 0.6) * radius[..., None] ** 2)).astype(np.float32)


def _wood(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Planks with grain along the image."""
    fine = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), sigmaX=40, sigmaY=1.2)
    fine = fine / fine.std() * 9
    planks = np.repeat(rng.uniform(-14, 14, 8), -(-height // 8))[:height, None].astype(np.float32)
    base = np.array([156, 112, 72], np.float32) + rng.uniform(-20, 20, 3).astype(np.float32)
    return base + (fine + planks)[..., None] * np.array([1, 0.85, 0.65], np.float32)


def _grass(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    fine = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), sigmaX=1.0, sigmaY=3.0)
    broad = cv2.GaussianBlur(rng.normal(0, 1, (height, width)).astype(np.float32), (0, 0), 25)
    tone = fine / fine.std() * 18 + broad / broad.std() * 10
    base = np.array([88, 128, 52], np.float32) + rng.uniform(-15, 15, 3).astype(np.float32)
    return base + tone[..., None] * np.array([0.9, 1, 0.6], np.float32)


_GROUNDS: dict[GroundName, Callable[[np.random.Generator, int, int], NDArray[np.float32]]] = {
    "plain": _plain,
    "wall": _wall,
    "gradient": _gradient,
    "clutter": _clutter,
    "shadow": _soft_white,
    "vignette": _vignette,
    "wood": _wood,
    "grass": _grass,
}
