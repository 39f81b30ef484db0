"""Solids written down before any result on them was looked at; no rule or constant was changed afterwards.

A rule that is tuned on these makes them worthless as evidence: write new ones first.
"""

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
    pyramid,
    rod,
    star,
    torus,
    within,
)

_VEST = ellipsoid((0, 0.03, 0), (0.19, 0.24, 0.14))
_TIN = rod((0, -0.4, 0), (0, 0.4, 0), 0.3)
_COVER = box((0, 0, 0), (0.62, 0.85, 0.12))
_BALLOON = ellipsoid((0, 0.08, 0), (0.36, 0.42, 0.36))

UNSEEN: dict[str, Solid] = {
    "clock": make_solid(
        (rod((0, 0, -0.06), (0, 0, 0.06), 0.42), SAND),
        (torus((0, 0, 0.05), 0.41, 0.04), DARK),
        (box((0.1, 0.08, 0.07), (0.25, 0.03, 0.02), turn=40), DARK),
        yaw=15,
        pitch=5,
        is_flat=True,
    ),
    "shield": make_solid(
        (rod((0, 0.05, -0.04), (0, 0.05, 0.04), 0.4), RED), (rod((0, 0.05, 0), (0, 0.05, 0.12), 0.1), GREY), yaw=-20
    ),
    "road sign": make_solid(
        (rod((0, 0.28, -0.015), (0, 0.28, 0.015), 0.22), BLUE), (rod((0, -0.5, 0), (0, 0.1, 0), 0.025), GREY), pitch=4
    ),
    "photo frame": make_solid(
        (box((0, 0.05, 0), (0.9, 0.7, 0.06)), WOOD), (box((0, -0.35, 0), (0.4, 0.1, 0.3)), WOOD), pitch=6, is_flat=True
    ),
    "vase": make_solid(
        (ellipsoid((0, -0.15, 0), (0.28, 0.3, 0.28)), BLUE),
        (rod((0, 0.05, 0), (0, 0.35, 0), 0.12, 0.09), BLUE),
        (rod((0, 0.33, 0), (0, 0.42, 0), 0.09, 0.17), BLUE),
        pitch=8,
    ),
    "goblet": make_solid(
        (rod((0, -0.5, 0), (0, -0.45, 0), 0.24), SAND),
        (rod((0, -0.45, 0), (0, -0.05, 0), 0.04), SAND),
        (rod((0, -0.1, 0), (0, 0.5, 0), 0.06, 0.28), SAND),
        pitch=6,
    ),
    "pawn": make_solid(
        (rod((0, -0.5, 0), (0, -0.38, 0), 0.25), DARK),
        (rod((0, -0.4, 0), (0, 0.2, 0), 0.2, 0.08), DARK),
        (ellipsoid((0, 0.32, 0), (0.17, 0.17, 0.17)), DARK),
        pitch=10,
    ),
    "suitcase": make_solid(
        (box((0, -0.05, 0), (0.9, 0.6, 0.28)), WOOD),
        (box((0, 0.32, 0), (0.3, 0.05, 0.06)), DARK),
        (box((-0.12, 0.27, 0), (0.05, 0.1, 0.06)), DARK),
        (box((0.12, 0.27, 0), (0.05, 0.1, 0.06)), DARK),
        yaw=-20,
        pitch=8,
        is_flat=True,
    ),
    "well": make_solid(
        (rod((0, -0.45, 0), (0, -0.1, 0), 0.33), GREY),
        (rod((-0.28, -0.1, 0), (-0.28, 0.2, 0), 0.03), WOOD),
        (rod((0.28, -0.1, 0), (0.28, 0.2, 0), 0.03), WOOD),
        (pyramid((0, 0.18, 0), 0.75, 0.27), RED),
        yaw=10,
        pitch=10,
    ),
    "medal": make_solid((star(8, 0.45, 0.33, 0.08), SAND), (ellipsoid((0, 0, 0), (0.2, 0.2, 0.1)), RED), is_flat=True),
    "hugging bear": make_solid(
        (ellipsoid((0, 0.3, 0), (0.2, 0.18, 0.18)), WOOD),
        (ellipsoid((0, -0.12, 0), (0.25, 0.3, 0.2)), WOOD),
        (ellipsoid((0, 0.26, 0.17), (0.08, 0.065, 0.07)), SAND),
        (rod((-0.22, 0.05, 0), (-0.33, -0.1, 0.1), 0.07), DARK),
        (rod((-0.33, -0.1, 0.1), (-0.03, -0.12, 0.26), 0.065), DARK),
        (rod((0.22, 0.05, 0), (0.33, -0.06, 0.1), 0.07), DARK),
        (rod((0.33, -0.06, 0.1), (0.03, -0.08, 0.26), 0.065), DARK),
        (rod((-0.15, -0.35, 0.1), (-0.16, -0.42, 0.25), 0.1), WOOD),
        (rod((0.15, -0.35, 0.1), (0.16, -0.42, 0.25), 0.1), WOOD),
        pitch=6,
    ),
    "saluting guard": make_solid(
        (ellipsoid((0, 0.34, 0), (0.1, 0.12, 0.11)), SAND),
        (box((0, 0.03, 0), (0.3, 0.42, 0.18)), BLUE),
        (rod((-0.17, 0.18, 0), (-0.2, -0.2, 0.02), 0.05), BLUE),
        (rod((0.15, 0.18, 0.03), (0.31, 0.0, 0.1), 0.05), RED),
        (rod((0.31, 0.0, 0.1), (0.02, 0.1, 0.17), 0.045), RED),
        (rod((-0.08, -0.15, 0), (-0.08, -0.5, 0), 0.065), DARK),
        (rod((0.08, -0.15, 0), (0.08, -0.5, 0), 0.065), DARK),
        yaw=-8,
    ),
    "pig": make_solid(
        (ellipsoid((0, 0, -0.2), (0.36, 0.34, 0.4)), SAND),
        (ellipsoid((0, 0.05, 0.15), (0.24, 0.23, 0.2)), SAND),
        (rod((0, 0.0, 0.25), (0, -0.02, 0.45), 0.1, 0.09), RED),
        (rod((-0.2, -0.45, 0), (-0.2, -0.2, 0), 0.08), SAND),
        (rod((0.2, -0.45, 0), (0.2, -0.2, 0), 0.08), SAND),
        pitch=10,
    ),
    "vest": make_solid(
        (within(_VEST, box((0.05, 0.08, 0.2), (0.1, 0.1, 0.4))), SAND),
        (within(_VEST, box((0, -0.05, 0), (1, 0.06, 1))), GREY),
        (_VEST, RED),
        (ellipsoid((0, 0.36, 0), (0.11, 0.13, 0.12)), SAND),
        (rod((-0.17, 0.16, 0), (-0.32, -0.12, 0), 0.05), RED),
        (rod((0.17, 0.16, 0), (0.32, -0.12, 0), 0.05), RED),
        (rod((-0.09, -0.15, 0), (-0.1, -0.5, 0), 0.065), BLUE),
        (rod((0.09, -0.15, 0), (0.1, -0.5, 0), 0.065), BLUE),
    ),
    "labelled tin": make_solid(
        (within(_TIN, box((0, 0.05, 0.3), (0.3, 0.3, 0.5))), SAND),
        (within(_TIN, box((0, -0.25, 0), (1, 0.08, 1))), GREEN),
        (_TIN, GREY),
        pitch=12,
    ),
    "printed cover": make_solid(
        (within(_COVER, rod((0, 0.1, 0), (0, 0.1, 0.2), 0.18)), RED),
        (within(_COVER, box((-0.24, 0, 0), (0.06, 1, 1))), DARK),
        (_COVER, GREEN),
        yaw=-15,
        pitch=5,
        is_flat=True,
    ),
    "striped balloon": make_solid(
        (within(_BALLOON, rod((0, 0.4, 0), (0, 0.6, 0), 0.5)), RED),
        (within(_BALLOON, box((0, 0.0, 0), (1, 0.16, 1))), RED),
        (_BALLOON, SAND),
        (box((0, -0.45, 0), (0.16, 0.12, 0.16)), WOOD),
        (rod((0, -0.42, 0), (0, -0.3, 0), 0.03, 0.1), DARK),
    ),
}
"""Flat and turned bodies, subjects with a part before the body, and printed ones."""
