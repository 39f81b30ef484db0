"""The parity kits lie beside a checkout and not in it: tests that need one skip where it is missing."""

from __future__ import annotations

import pytest

from tests.parity.harness import KITS, fixture_paths


def needs_kit(name: str) -> pytest.MarkDecorator:
    """The mark of a test that reads fixtures of a kit, by the name of its folder."""
    return pytest.mark.skipif(not fixture_paths(KITS / name), reason=f"the kit {name} is not next to this checkout")
