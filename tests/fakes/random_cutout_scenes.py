"""Random subjects on random grounds with shadows cast to any side: what the cut-out's confidence is fitted to.

They share no subject, ground or shadow with the measuring set of `cutout_scenes`. Many are hard: subject and ground of
like colours, textures, things behind the subject. The same seed gives the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.fakes.cutout_scenes import Colour, Part, Points, Scene, draw_parts

Base = NDArray[np.float32]
SIZE = (640, 480)


def make_random_scene(seed: int) -> Scene:
    """Draw a scene: subject, ground, place, size, shadow, light and noise all depend on the seed."""
    rng = np.random.default_rng([seed, 77])
    width, height = SIZE if rng.uniform() < 0.7 else SIZE[::-1]
    cut = draw_random_subject(rng)
    rows, columns = (np.flatnonzero((cut[..., 3] >= 128).any(axis=axis)) for axis in (1, 0))
    cut = cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = rng.uniform(0.4, 0.88) * min(height / cut.shape[0], width / cut.shape[1])
    size = (max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale)))
    opacity = cut[..., 3:].astype(np.float32) / 255
    small = cv2.resize(np.dstack([cut[..., :3] * opacity, opacity]), size, interpolation=cv2.INTER_AREA)
    left = round(rng.uniform(0.1, 0.9) * (width - size[0]))
    top = round(rng.uniform(0.3, 0.97) * (height - size[1]))
    box = (slice(top, top + size[1]), slice(left, left + size[0]))
    alpha, premultiplied = np.zeros((height, width), np.float32), np.zeros((height, width, 3), np.float32)
    alpha[box], premultiplied[box] = small[..., 3], small[..., :3]
    base = GROUNDS[int(rng.integers(len(GROUNDS)))](rng, width, height)
    if rng.uniform() < 0.25:  # like colours
        mean = premultiplied[box].sum(axis=(0, 1)) / max(1.0, float(alpha.sum()))
        base += (mean - base.mean(axis=(0, 1))) * rng.uniform(0.5, 0.9)
    if rng.uniform() < 0.75:
        base *= 1 - _cast_shadow(rng, alpha)[..., None]
    noise = rng.normal(0, rng.uniform(0.3, 3), (height, width, 1)) + rng.normal(0, 0.7, (height, width, 3))
    pixels = premultiplied + base * (1 - alpha[..., None]) + noise
    if rng.uniform() < 0.3:
        pixels = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), rng.uniform(0.4, 1.2))
    rgb = np.clip(pixels, 0, 255).round().astype(np.uint8)
    return Scene(np.dstack([rgb, np.full((height, width), 255, np.uint8)]), alpha >= 0.5)


def draw_random_subject(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A body of one or two capsules with limbs, knobs and rings in two or three colours: (256, 256, 4) RGBA."""
    colours = [_colour(rng, 30, 245) for _ in range(3)]
    first = (rng.uniform(0.35, 0.65), rng.uniform(0.3, 0.6))
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.05, 0.3)
    last = (first[0] + length * np.cos(angle), first[1] + length * np.sin(angle))
    radius = rng.uniform(0.06, 0.17)
    stripes = colours[1] if rng.uniform() < 0.25 else None
    parts = [Part([(*first, radius), (*last, radius * rng.uniform(0.6, 1.2))], colours[0], 0.0, stripes)]
    for _ in range(int(rng.integers(1, 7))):
        share, turn, reach = rng.uniform(), rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.4)
        x, y = (a + share * (b - a) for a, b in zip(first, last, strict=True))
        thick, bend = rng.uniform(0.012, 0.07), rng.uniform(-0.7, 0.7)
        chain: Points = [
            (
                float(np.clip(x + reach * step * np.cos(turn + bend * step), 0.05, 0.95)),
                float(np.clip(y + reach * step * np.sin(turn + bend * step), 0.05, 0.95)),
                thick * (1 - 0.5 * step),
            )
            for step in (0.0, 0.5, 1.0)
        ]
        parts.append(Part(chain, colours[int(rng.integers(3))], rng.uniform(-0.1, 0.12)))
    for _ in range(int(rng.integers(0, 3))):
        place = (rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8))
        turns, ring = np.linspace(0, 2 * np.pi, 20), rng.uniform(0.06, 0.16)
        circle: Points = [(place[0] + ring * float(np.cos(t)), place[1] + ring * float(np.sin(t)), 0.02) for t in turns]
        bridge: Points = [(*first, 0.025), (*place, 0.025)]
        parts += [Part(circle, colours[2], 0.02), Part(bridge, colours[1], -0.05)]
    return draw_parts(parts, rng, 256)


def _cast_shadow(rng: np.random.Generator, alpha: Base) -> Base:
    """The silhouette sheared to one side and flattened to the ground, blurred: (H, W) 0 to 1."""
    height, width = alpha.shape
    feet = float(np.flatnonzero((alpha > 0.5).any(axis=1))[-1])
    shear, squash = rng.uniform(-1.4, 1.4), rng.uniform(-0.25, 0.45)  # a negative one falls towards the viewer
    matrix = np.array([[1, -shear, shear * feet], [0, squash, feet * (1 - squash)]], np.float32)
    cast = cv2.warpAffine(alpha, matrix, (width, height))
    return np.asarray(cv2.GaussianBlur(cast, (0, 0), rng.uniform(0.006, 0.03) * width) * rng.uniform(0.2, 0.6))


def _colour(rng: np.random.Generator, low: int, high: int) -> Colour:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


def _flat(rng: np.random.Generator, width: int, height: int, low: int = 60, high: int = 250) -> Base:
    return np.broadcast_to(np.float32(_colour(rng, low, high)), (height, width, 3)).copy()


def _light(rng: np.random.Generator, width: int, height: int) -> Base:
    """A plain ground under a lamp at any place."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot(x / width - rng.uniform(0, 1), y / height - rng.uniform(0, 1))[..., None]
    return np.asarray(_flat(rng, width, height) * (1 - rng.uniform(0, 0.6) * distance), np.float32)


def _horizon(rng: np.random.Generator, width: int, height: int) -> Base:
    """A sky, blended downwards, above a floor with a slanted edge."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    share = (y / height)[..., None]
    sky = _flat(rng, width, height) * (1 - share) + _flat(rng, width, height) * share
    edge = height * rng.uniform(0.45, 0.8) + (x - width / 2) * rng.uniform(-0.15, 0.15)
    base = np.where((y > edge)[..., None], _flat(rng, width, height, 40, 200), sky).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(base, (0, 0), 1.0), np.float32)


def _bokeh(rng: np.random.Generator, width: int, height: int) -> Base:
    """Blurred discs of many colours."""
    base = _flat(rng, width, height)
    for _ in range(int(rng.integers(6, 30))):
        place = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(base, place, int(rng.integers(10, 70)), _colour(rng, 20, 250), -1)
    return np.asarray(cv2.GaussianBlur(base, (0, 0), rng.uniform(2, 18)), np.float32)


def _shelf(rng: np.random.Generator, width: int, height: int) -> Base:
    """A floor and a wall with rotated boxes, in part shaded, behind the subject."""
    base = _horizon(rng, width, height)
    for _ in range(int(rng.integers(4, 16))):
        place = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        sides = (float(rng.uniform(0.03, 0.14) * width), float(rng.uniform(0.03, 0.2) * height))
        corners = cv2.boxPoints((place, sides, float(rng.choice([0.0, 0.0, rng.uniform(0, 90)]))))
        cv2.fillConvexPoly(base, corners.astype(np.int32), _colour(rng, 20, 250), cv2.LINE_AA)
    return base


def _tiles(rng: np.random.Generator, width: int, height: int) -> Base:
    """A chequered or striped cloth."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(15, 90)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(along / period * 2 * np.pi) * (np.sin(across / period * 2 * np.pi) if rng.uniform() < 0.5 else 1)
    first = _flat(rng, width, height)
    return np.where((wave > 0)[..., None], first, first * rng.uniform(0.75, 0.97)).astype(np.float32)


def _fabric(rng: np.random.Generator, width: int, height: int) -> Base:
    """Noise of any scale and direction."""
    grain = rng.normal(0, 1, (height, width)).astype(np.float32)
    fine = cv2.GaussianBlur(grain, (0, 0), sigmaX=rng.uniform(1, 12), sigmaY=rng.uniform(1, 12))
    return np.asarray(_flat(rng, width, height) + (fine / fine.std() * rng.uniform(3, 18))[..., None], np.float32)


GROUNDS: tuple[Callable[[np.random.Generator, int, int], Base], ...] = (
    _flat,
    _light,
    _horizon,
    _bokeh,
    _shelf,
    _shelf,
    _tiles,
    _fabric,
)
