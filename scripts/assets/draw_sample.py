"""Draws the sample image of `scripts/try` and the playground: a small lighthouse without a background."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIDE, SCALE = 768, 3
RED, WHITE, DARK, GLOW, STONE = (196, 52, 46), (246, 242, 232), (48, 52, 66), (255, 214, 102), (122, 128, 136)


def draw() -> Image.Image:
    """The image, RGBA with a transparent background."""
    side = SIDE * SCALE
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)

    def at(*values: float) -> list[float]:
        return [value * side for value in values]

    pen.polygon(at(0.2, 0.95, 0.27, 0.86, 0.4, 0.83, 0.6, 0.83, 0.74, 0.87, 0.82, 0.95), fill=STONE)
    for band in range(6):
        top, bottom = 0.34 + band * 0.085, 0.34 + (band + 1) * 0.085
        left, right = (0.41 - 0.1 * (y - 0.34) for y in (top, bottom))
        pen.polygon(
            at(left, top, 1 - left, top, 1 - right, bottom, right, bottom), fill=RED if band % 2 == 0 else WHITE
        )
    pen.rounded_rectangle(at(0.36, 0.315, 0.64, 0.35), radius=0.015 * side, fill=DARK)
    pen.rectangle(at(0.42, 0.2, 0.58, 0.32), fill=GLOW)
    for x in (0.42, 0.473, 0.527, 0.58):
        pen.line(at(x, 0.2, x, 0.32), fill=DARK, width=round(0.012 * side))
    pen.pieslice(at(0.39, 0.11, 0.61, 0.3), 180, 360, fill=RED)
    pen.line(at(0.5, 0.12, 0.5, 0.05), fill=DARK, width=round(0.012 * side))
    pen.ellipse(at(0.487, 0.035, 0.513, 0.061), fill=DARK)
    pen.rounded_rectangle(at(0.46, 0.7, 0.54, 0.85), radius=0.03 * side, fill=DARK)
    for y in (0.42, 0.585):
        pen.ellipse(at(0.475, y, 0.525, y + 0.05), fill=DARK)
    return _lit(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _lit(image: Image.Image) -> Image.Image:
    """The image with soft light from the left, so that it looks round."""
    alpha = image.getchannel("A")
    shade = Image.linear_gradient("L").rotate(90).resize(image.size)
    blurred = alpha.filter(ImageFilter.GaussianBlur(image.width // 40))
    dark = Image.new("RGBA", image.size, (20, 22, 40, 255))
    strength = Image.composite(shade.point(lambda v: v * 0.45), Image.new("L", image.size, 90), blurred)
    lit = Image.composite(dark, image.convert("RGBA"), strength.point(lambda v: v // 2))
    lit.putalpha(alpha)
    return lit


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "pipeline" / "api" / "playground" / "sample.png"
    draw().save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")
