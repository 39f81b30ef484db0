"""The checks of the TRELLIS kits, by `spec.target`."""

from __future__ import annotations

from tests.parity.harness import Check

TARGETS: dict[str, Check] = {}
