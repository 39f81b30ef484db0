"""Solids with a part before a body, and solids with prints that lie in their surface. Knows nothing of engines."""

from __future__ import annotations

from tests.fakes.solids import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    RED,
    SAND,
    WOOD,
    Solid,
    box,
    ellipsoid,
    make_solid,
    rod,
    within,
)

_BALL = ellipsoid((0, 0, 0), (0.45, 0.45, 0.45))
_CRATE = box((0, 0, 0), (0.8, 0.6, 0.4))

LAYERED: dict[str, Solid] = {
    "folded arms": make_solid(
        (ellipsoid((0, 0.36, 0), (0.11, 0.13, 0.12)), SAND),
        (ellipsoid((0, 0.02, 0), (0.17, 0.24, 0.12)), RED),
        (rod((-0.15, 0.17, 0), (-0.25, -0.02, 0.08), 0.05), SAND),
        (rod((-0.25, -0.02, 0.08), (0.02, 0.0, 0.17), 0.045), SAND),
        (rod((0.15, 0.17, 0), (0.25, -0.05, 0.08), 0.05), SAND),
        (rod((0.25, -0.05, 0.08), (0.0, -0.1, 0.17), 0.045), SAND),
        (rod((-0.08, -0.1, 0), (-0.09, -0.5, 0), 0.06), BLUE),
        (rod((0.08, -0.1, 0), (0.09, -0.5, 0), 0.06), BLUE),
        pitch=5,
    ),
    "snout": make_solid(
        (ellipsoid((0, 0, -0.25), (0.3, 0.28, 0.35)), WOOD),
        (ellipsoid((0, 0.15, 0.1), (0.22, 0.22, 0.2)), WOOD),
        (ellipsoid((0, 0.09, 0.3), (0.1, 0.08, 0.14)), SAND),
        (ellipsoid((-0.17, 0.35, 0.05), (0.06, 0.1, 0.04)), DARK),
        (ellipsoid((0.17, 0.35, 0.05), (0.06, 0.1, 0.04)), DARK),
        (rod((-0.15, -0.4, 0), (-0.15, -0.1, 0), 0.08), WOOD),
        (rod((0.15, -0.4, 0), (0.15, -0.1, 0), 0.08), WOOD),
        pitch=8,
    ),
    "mug": make_solid(
        (rod((0, -0.4, 0), (0, 0.4, 0), 0.3), RED),
        (rod((0.28, 0.25, 0), (0.5, 0.2, 0), 0.05), SAND),
        (rod((0.5, 0.23, 0), (0.5, -0.23, 0), 0.05), SAND),
        (rod((0.5, -0.2, 0), (0.28, -0.25, 0), 0.05), SAND),
        yaw=60,
        pitch=10,
    ),
}
"""Subjects with arms, a snout or a handle before the body."""

PRINTED: dict[str, Solid] = {
    "labelled box": make_solid(
        (within(_CRATE, box((0.05, 0, 0.2), (0.35, 0.25, 0.1))), SAND), (_CRATE, WOOD), yaw=20, pitch=12, is_flat=True
    ),
    "lighthouse": make_solid(
        *((rod((0, y, 0), (0, y + 0.2, 0), 0.2 - y / 5, 0.16 - y / 5), c) for y, c in ((-0.5, RED), (-0.1, RED))),
        *((rod((0, y, 0), (0, y + 0.2, 0), 0.2 - y / 5, 0.16 - y / 5), c) for y, c in ((-0.3, GREY), (0.1, GREY))),
        (rod((0, 0.3, 0), (0, 0.5, 0), 0.14, 0.0), DARK),
        pitch=5,
    ),
    "patterned ball": make_solid(
        *((within(_BALL, rod((x, y, 0), (x, y, 1), 0.11)), SAND) for x, y in ((-0.2, 0.1), (0.15, 0.2), (0.1, -0.2))),
        (within(_BALL, box((0, 0.02, 0), (1, 0.07, 1))), GREEN),
        (_BALL, BLUE),
    ),
}
"""Subjects with a label, stripes or dots, which must change nothing."""
