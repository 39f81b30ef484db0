"""Subjects drawn by script for tests and benchmarks of the preview engine: RGBA images without background."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE_PX = 384
SCALE = 3  # drawn larger, then reduced


class _Drawing:
    """A pen whose unit is the side of the image."""

    def __init__(self, seed: int) -> None:
        self.image = Image.new("RGBA", (SIDE_PX * SCALE, SIDE_PX * SCALE), (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.image)
        self.random = np.random.default_rng(seed)

    def colour_at(self, x: float, y: float) -> tuple[int, int, int]:
        pixel = self.image.getpixel((int(x * SIDE_PX * SCALE), int(y * SIDE_PX * SCALE)))
        assert isinstance(pixel, tuple)
        return pixel[0], pixel[1], pixel[2]

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        self.pen.ellipse(_px(x - rx, y - ry, x + rx, y + ry), fill=(*colour, 255))

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        self.pen.rectangle(_px(left, top, right, bottom), fill=(*colour, 255))

    def polygon(self, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        self.pen.polygon([coordinate for point in points for coordinate in _px(*point)], fill=(*colour, 255))

    def line(self, *ends: float, colour: tuple[int, int, int], width: float) -> None:
        self.pen.line(_px(*ends), fill=(*colour, 255), width=round(width * SIDE_PX * SCALE))

    def face(self, x: float, y: float, size: float) -> None:
        """Two eyes, a nose and a mouth."""
        for side in (-1, 1):
            self.ellipse(x + side * 0.36 * size, y - 0.15 * size, 0.2 * size, 0.24 * size, (255, 255, 255))
            self.ellipse(x + side * 0.34 * size, y - 0.12 * size, 0.1 * size, 0.13 * size, (30, 60, 130))
        self.ellipse(x, y + 0.2 * size, 0.1 * size, 0.08 * size, (60, 30, 30))
        self.pen.chord(_px(x - 0.3 * size, y + 0.2 * size, x + 0.3 * size, y + 0.6 * size), 0, 180, (170, 30, 50, 255))

    def finished(self, *, grain: float = 8.0) -> NDArray[np.uint8]:
        """Return the image, (S, S, 4), with light from above and grain as a material has."""
        small = np.asarray(self.image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)).copy()
        noise = self.random.normal(0, 60, (SIDE_PX, SIDE_PX))
        soft = Image.fromarray(np.clip(noise + 128, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))
        pattern = (np.asarray(soft, np.float64) - 128) / max(float(np.asarray(soft).std()), 1e-6) * grain
        light = 1.1 - 0.25 * np.linspace(0, 1, SIDE_PX)[:, None]
        colours = small[..., :3] * light[..., None] + pattern[..., None]
        small[..., :3] = np.clip(colours, 0, 255).astype(np.uint8)
        return small


def _px(*values: float) -> list[float]:
    return [value * SIDE_PX * SCALE for value in values]


def draw_head() -> NDArray[np.uint8]:
    """Draw a head with hair all around the face, seen from its front."""
    drawing = _Drawing(1)
    drawing.ellipse(0.5, 0.48, 0.36, 0.42, (110, 60, 25))
    for k in range(160):  # strands
        turn = 2 * np.pi * k / 160
        x, y = 0.5 + 0.3 * np.sin(turn), 0.48 - 0.36 * np.cos(turn)
        drawing.line(x, y, x + 0.06 * np.sin(turn), y + 0.04, colour=(150 - k % 3 * 30, 85, 40), width=0.008)
    drawing.ellipse(0.5, 0.53, 0.24, 0.28, (235, 185, 150))
    drawing.face(0.5, 0.53, 0.26)
    drawing.box(0.38, 0.86, 0.62, 0.98, (60, 90, 160))
    return drawing.finished()


def draw_bottle() -> NDArray[np.uint8]:
    """Draw a bottle with rings around it and a label that bears text."""
    drawing = _Drawing(2)
    drawing.box(0.43, 0.02, 0.57, 0.3, (40, 110, 60))
    drawing.ellipse(0.5, 0.38, 0.22, 0.18, (40, 110, 60))
    drawing.box(0.28, 0.38, 0.72, 0.97, (40, 110, 60))
    for k in range(9):
        drawing.box(0.28, 0.42 + 0.06 * k, 0.72, 0.44 + 0.06 * k, (190, 210, 90))
    drawing.box(0.43, 0.02, 0.57, 0.1, (200, 170, 60))
    drawing.box(0.36, 0.5, 0.64, 0.84, (245, 240, 220))
    for k, word in enumerate(("OLD", "RIVER", "1871")):
        drawing.pen.text(
            (0.39 * SIDE_PX * SCALE, (0.53 + 0.1 * k) * SIDE_PX * SCALE),
            word,
            fill=(140, 20, 30, 255),
            font_size=0.075 * SIDE_PX * SCALE,
        )
    return drawing.finished(grain=5)


def draw_bear() -> NDArray[np.uint8]:
    """Draw a bear with fur and a belly, seen from its front."""
    drawing = _Drawing(3)
    brown = (140, 90, 50)
    for side in (-1, 1):
        drawing.ellipse(0.5 + side * 0.2, 0.12, 0.09, 0.09, brown)
        drawing.ellipse(0.5 + side * 0.3, 0.6, 0.1, 0.2, brown)
        drawing.ellipse(0.5 + side * 0.15, 0.9, 0.12, 0.09, brown)
    drawing.ellipse(0.5, 0.28, 0.26, 0.23, brown)
    drawing.ellipse(0.5, 0.68, 0.27, 0.26, brown)
    for _ in range(1500):
        x, y = drawing.random.uniform(0.1, 0.9), drawing.random.uniform(0.03, 0.98)
        if drawing.colour_at(x, y) == brown:
            drawing.line(x, y, x + 0.004, y + 0.02, colour=(105 + int(60 * (x * 97 % 1)), 70, 35), width=0.005)
    drawing.ellipse(0.5, 0.72, 0.16, 0.18, (220, 190, 140))
    drawing.face(0.5, 0.28, 0.26)
    return drawing.finished(grain=6)


def draw_tower() -> NDArray[np.uint8]:
    """Draw a tower of bricks with a door, windows and a roof."""
    drawing = _Drawing(4)
    drawing.box(0.3, 0.3, 0.7, 0.98, (120, 115, 110))
    for row in range(17):
        for column in range(-1, 6):
            left = 0.3 + 0.08 * column + 0.04 * (row % 2)
            tone = int(drawing.random.integers(150, 200))
            left, right = max(left + 0.004, 0.3), min(left + 0.076, 0.7)
            if left < right:
                drawing.box(left, 0.304 + 0.04 * row, right, 0.336 + 0.04 * row, (tone, tone - 15, tone - 35))
    drawing.polygon([(0.24, 0.3), (0.5, 0.02), (0.76, 0.3)], (150, 50, 40))
    for row in range(7):
        drawing.line(0.48 - 0.034 * row, 0.06 + 0.035 * row, 0.52 + 0.034 * row, 0.06 + 0.035 * row,
                     colour=(105, 30, 25), width=0.006)  # fmt: skip
    drawing.box(0.43, 0.8, 0.57, 0.98, (90, 50, 20))
    drawing.ellipse(0.5, 0.8, 0.07, 0.07, (90, 50, 20))
    for y in (0.42, 0.58):
        drawing.box(0.46, y, 0.54, y + 0.1, (40, 60, 110))
        drawing.line(0.5, y, 0.5, y + 0.1, colour=(240, 240, 230), width=0.008)
    return drawing.finished(grain=5)


def draw_knight() -> NDArray[np.uint8]:
    """Draw a standing figure in chain mail with an emblem on the chest and a slit in the helmet."""
    drawing = _Drawing(5)
    steel, mail = (170, 175, 185), (95, 100, 110)
    for side in (-1, 1):
        drawing.box(0.5 + side * 0.1 - 0.06, 0.7, 0.5 + side * 0.1 + 0.06, 0.96, mail)
        drawing.ellipse(0.5 + side * 0.12, 0.95, 0.09, 0.04, steel)
        drawing.polygon([(0.5 + side * 0.14, 0.32), (0.5 + side * 0.22, 0.34), (0.5 + side * 0.33, 0.62),
                         (0.5 + side * 0.24, 0.64)], mail)  # fmt: skip
        drawing.ellipse(0.5 + side * 0.29, 0.65, 0.05, 0.05, steel)
    drawing.box(0.34, 0.3, 0.66, 0.76, mail)
    drawing.ellipse(0.5, 0.18, 0.13, 0.15, steel)
    for row in range(40):
        for column in range(50):
            x, y = 0.17 + 0.0135 * column + 0.0067 * (row % 2), 0.31 + 0.0165 * row
            if drawing.colour_at(x, y) == mail:
                drawing.ellipse(x, y, 0.005, 0.005, (150, 155, 165))
    drawing.box(0.38, 0.34, 0.62, 0.74, (40, 70, 160))
    drawing.polygon([(0.5, 0.38), (0.58, 0.52), (0.5, 0.66), (0.42, 0.52)], (240, 200, 40))
    drawing.ellipse(0.5, 0.52, 0.03, 0.03, (200, 30, 30))
    drawing.box(0.42, 0.16, 0.58, 0.19, (20, 20, 25))
    drawing.box(0.49, 0.16, 0.51, 0.3, (20, 20, 25))
    return drawing.finished(grain=4)


def draw_owl() -> NDArray[np.uint8]:
    """Draw an owl with rows of feathers, seen from its front."""
    drawing = _Drawing(6)
    drawing.ellipse(0.5, 0.55, 0.3, 0.42, (120, 100, 80))
    drawing.polygon([(0.25, 0.08), (0.4, 0.2), (0.26, 0.34)], (120, 100, 80))
    drawing.polygon([(0.75, 0.08), (0.6, 0.2), (0.74, 0.34)], (120, 100, 80))
    for row in range(16):
        for column in range(14):
            x, y = 0.2 + 0.046 * column + 0.023 * (row % 2), 0.2 + 0.048 * row
            if ((x - 0.5) / 0.28) ** 2 + ((y - 0.55) / 0.4) ** 2 < 1:
                drawing.ellipse(x, y, 0.021, 0.027, (190, 165, 125))
                drawing.ellipse(x, y - 0.009, 0.021, 0.022, (120, 100, 80))
    for side in (-1, 1):
        drawing.ellipse(0.5 + side * 0.11, 0.3, 0.11, 0.11, (240, 225, 190))
        drawing.ellipse(0.5 + side * 0.11, 0.3, 0.07, 0.07, (230, 150, 20))
        drawing.ellipse(0.5 + side * 0.11, 0.3, 0.035, 0.035, (10, 10, 10))
    drawing.polygon([(0.46, 0.36), (0.54, 0.36), (0.5, 0.46)], (220, 120, 30))
    return drawing.finished(grain=5)


def draw_cow() -> NDArray[np.uint8]:
    """Draw a cow seen from its side."""
    drawing = _Drawing(7)
    white, black = (235, 230, 225), (35, 30, 30)
    for x in (0.27, 0.35, 0.66, 0.74):
        drawing.box(x, 0.6, x + 0.055, 0.88, white)
        drawing.box(x, 0.84, x + 0.055, 0.88, black)
    drawing.ellipse(0.53, 0.52, 0.29, 0.15, white)
    drawing.polygon([(0.2, 0.36), (0.34, 0.42), (0.32, 0.56), (0.2, 0.5)], white)
    drawing.ellipse(0.16, 0.4, 0.11, 0.08, white)
    drawing.ellipse(0.08, 0.43, 0.05, 0.05, (230, 160, 160))
    drawing.ellipse(0.16, 0.37, 0.014, 0.014, black)
    drawing.ellipse(0.25, 0.34, 0.04, 0.025, black)
    drawing.line(0.81, 0.46, 0.88, 0.7, colour=white, width=0.02)
    drawing.ellipse(0.88, 0.72, 0.02, 0.045, black)
    for x, y, rx, ry in ((0.42, 0.47, 0.07, 0.06), (0.6, 0.56, 0.09, 0.05), (0.7, 0.46, 0.05, 0.05)):
        drawing.ellipse(x, y, rx, ry, black)
    return drawing.finished(grain=5)


def draw_car() -> NDArray[np.uint8]:
    """Draw a car seen from its side."""
    drawing = _Drawing(8)
    drawing.polygon([(0.28, 0.46), (0.38, 0.32), (0.64, 0.32), (0.76, 0.46)], (200, 40, 40))
    drawing.polygon([(0.33, 0.46), (0.4, 0.35), (0.5, 0.35), (0.5, 0.46)], (150, 200, 230))
    drawing.polygon([(0.53, 0.46), (0.53, 0.35), (0.62, 0.35), (0.7, 0.46)], (150, 200, 230))
    drawing.box(0.06, 0.45, 0.95, 0.64, (200, 40, 40))
    drawing.box(0.06, 0.54, 0.95, 0.56, (240, 240, 240))
    drawing.ellipse(0.93, 0.5, 0.03, 0.03, (250, 230, 120))
    drawing.line(0.52, 0.46, 0.52, 0.62, colour=(120, 20, 20), width=0.006)
    for x in (0.24, 0.76):
        drawing.ellipse(x, 0.65, 0.09, 0.09, (25, 25, 30))
        drawing.ellipse(x, 0.65, 0.05, 0.05, (180, 180, 190))
    return drawing.finished(grain=4)


SUBJECTS: dict[str, Callable[[], NDArray[np.uint8]]] = {
    "head": draw_head,
    "bottle": draw_bottle,
    "bear": draw_bear,
    "tower": draw_tower,
    "knight": draw_knight,
    "owl": draw_owl,
    "cow": draw_cow,
    "car": draw_car,
}
SEEN_FROM_THE_SIDE = ("cow", "car")
